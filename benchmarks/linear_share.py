"""How much of the embedded study's brains a linear model can know: without noise, from many pictures.

    python benchmarks/linear_share.py config/config.yaml

Reads the study's image embedding and writes nothing. For every simulated subject: the share of the embedding's variance that ridge
regression explains from responses without noise to 2500 pictures, in 500 others (penalty by cross-validation), and the share of an early
and of a later voxel's variance that it explains the other way round, from the embedding.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import RidgeCV
from sklearn.preprocessing import StandardScaler

from unimind.data.drawn import combinations, render
from unimind.data.sources.simulated import without_noise
from unimind.foundations import load_embedding
from unimind.study import layout, read_study
from unimind.study.data import SimulatedData

#: Pictures fitted to, and asked; drawn as subjects' pictures are, by a seed of their own.
FITTED, ASKED, SEED = 2500, 500, 4_000_000


def unexplained(given: NDArray, wanted: NDArray) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sums of squares of every column of `wanted` in the last rows: what ridge regression on the first rows leaves, and what their mean leaves."""
    scale = StandardScaler().fit(given[:FITTED])
    predicted = RidgeCV(np.logspace(-1, 6, 15)).fit(scale.transform(given[:FITTED]), wanted[:FITTED]).predict(scale.transform(given[FITTED:]))
    asked = wanted[FITTED:]
    return ((predicted - asked) ** 2).sum(0), ((asked - wanted[:FITTED].mean(0)) ** 2).sum(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    study = read_study(parser.parse_args().study)
    embedder = load_embedding(Path(study.results, layout.path(layout.FOUNDATION, name="embedding")))
    print("| subject | embedding from voxels | an early voxel from the embedding | a later one |\n|---|---|---|---|")
    for dataset, subject in [*study.pairs("train"), *study.pairs("new")]:
        section = study.datasets[dataset]
        if not isinstance(section, SimulatedData):
            continue
        drawn = render(combinations("training", (section.seed, SEED), FITTED + ASKED), study.picture_size)
        signal, early = without_noise(section, subject, drawn)
        pictures = torch.from_numpy(drawn.images).permute(0, 3, 1, 2)
        with torch.no_grad():
            embedding = torch.cat([embedder.encode(part.float() / 255) for part in pictures.split(64)]).numpy()
        left, all_of_it = unexplained(signal, embedding)
        voxel_left, of_voxel = unexplained(embedding, signal)
        voxel = 1 - voxel_left / of_voxel
        print(f"| {subject} | {1 - left.sum() / all_of_it.sum():.2f} | {voxel[early].mean():.2f} | {voxel[~early].mean():.2f} |", flush=True)


if __name__ == "__main__":
    main()

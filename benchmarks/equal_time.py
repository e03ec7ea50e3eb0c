"""Identification that two encoders reach in equal training time, by the alignment stage alone, from no regression.

    python benchmarks/equal_time.py config/macaque_v4.yaml --seconds 60 180

Needs a run of the study as far as its embeddings (`snakemake ... results/macaque_v4/tables` does). The thesis's ConvMixer
and MinD-Vis's ViT (1024 x 24), both with patch 16 on the study's first method, are given as many steps as fit the time on
this machine, found from two steps each; test pictures of every training subject are then identified two-way.
"""

import argparse
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import torch

from unimind.data.prepared import PreparedSubject
from unimind.evaluation.score import embedding_measures, rows_at
from unimind.models.encoder import load_encoder, subject_key
from unimind.reconstruction.predict import responses_by_image
from unimind.storage import read_json
from unimind.study import Study, Voxels, parse_study, read_study, resolved
from unimind.training.align import align
from unimind.training.benchmark import ENCODERS


def with_encoder(study: Study, name: str, steps: int) -> Study:
    """The study with one method: its first one, with another encoder, for so many steps."""
    method = dict(next(iter(resolved(study)["methods"].values())))
    training = method["align"]["training"] | {"steps": steps, "epochs": None, "validate_every": steps}
    method |= {"encoder": ENCODERS[name].model_dump(), "pretrain": None, "align": method["align"] | {"start": "plain", "training": training}}
    return parse_study(resolved(study) | {"methods": {"m": method}, "transfer": None})


def trained(study: Study, name: str, steps: int, files: tuple[list[Path], list[Path]], group: str, out: Path) -> float:
    """Train; seconds the steps took."""
    align(with_encoder(study, name, steps), "m", group, *files, None, out / "checkpoints", out / "model")
    return float(read_json(out / "model" / "efficiency.json")["seconds"])


def identification(model: Path, pairs: list[tuple[str, str]], files: tuple[list[Path], list[Path]], voxels: Voxels, embedding: Path) -> float:
    """Two-way identification of test pictures by the predicted embedding, mean over subjects."""
    encoder, _ = load_encoder(model)
    encoder.eval()
    scores = []
    for (dataset, subject), prepared, embeddings in zip(pairs, *files, strict=True):
        with PreparedSubject(prepared) as data, h5py.File(embeddings) as file:
            stimulus, responses = responses_by_image(data, "test", voxels, encoder.channels)
            truth, training = rows_at(file["embedding"], stimulus), rows_at(file["embedding"], data.images("train"))
        with torch.no_grad():
            predicted = encoder.embed(encoder(torch.from_numpy(responses), subject_key(dataset, subject)).pooled).numpy()
        found: dict[str, dict] = {"reconstruction": {}}
        embedding_measures(["identification"], found, truth, {"reconstruction": predicted}, training, embedding, 0)
        scores.append(found["reconstruction"]["identification"].mean())
    return float(np.mean(scores))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--seconds", nargs="+", type=float, default=[60.0, 180.0])
    given = parser.parse_args()
    study = read_study(given.study)
    method = next(iter(study.methods))
    group = study.group(method, *next(study.pairs("train")))
    pairs = study.members(method, group)
    results = Path(study.results)
    files = (
        [results / f"prepared/{dataset}/{subject}.h5" for dataset, subject in pairs],
        [results / f"embeddings/{dataset}/{study.stimuli(dataset, subject)}.h5" for dataset, subject in pairs],
    )
    print("| encoder | seconds allowed | steps | seconds trained | two-way identification |\n|---|---|---|---|---|")
    for name in ENCODERS:
        with tempfile.TemporaryDirectory() as folder:
            each = trained(study, name, 2, files, group, Path(folder)) / 2
        for allowed in given.seconds:
            steps = max(1, int(allowed / each))
            with tempfile.TemporaryDirectory() as folder:
                begun = time.perf_counter()
                seconds = trained(study, name, steps, files, group, Path(folder))
                score = identification(Path(folder) / "model", pairs, files, study.methods[method].voxels, results / "foundations/embedding")
                whole = time.perf_counter() - begun
            print(f"| {name} | {allowed:.0f} | {steps} | {seconds:.0f} (with start and validation {whole:.0f}) | {score:.3f} |", flush=True)


if __name__ == "__main__":
    main()

"""Identification that two bodies reach in equal training time, by the alignment stage alone.

    python benchmarks/equal_time.py config/macaque_v4.yaml --seconds 60 180

Needs a run of the study as far as its embeddings (`snakemake ... results/macaque_v4/tables` does). The thesis's ConvMixer
and MinD-Vis's ViT (1024 x 24), both with patch 16 on the study's first method that trains on voxels, are given as many steps as fit the time on
this machine, found from two steps each; test pictures of every training subject are then identified two-way.
"""

import argparse
import math
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import torch

from unimind.data.prepared import PreparedSubject
from unimind.evaluation.score import Predicted, embedding_measures, rows_at
from unimind.models.encoder import load_encoder
from unimind.models.enter import subject_key
from unimind.storage import read_json
from unimind.study import Study, parse_study, read_study, resolved
from unimind.training.align import align
from unimind.training.benchmark import ENCODERS


def chosen(study: Study) -> str:
    """The study's first method whose body is trained on voxels."""
    found = [name for name, method in study.methods.items() if not method.closed and method.align is not None]
    if not found:
        raise SystemExit(f"{study.name}: no method trains a body on voxels; its alignment is what is timed")
    return found[0]


def with_body(study: Study, name: str, steps: int) -> Study:
    """The study with one method: the one that is chosen, with another body, for so many steps."""
    method = resolved(study)["methods"][chosen(study)]
    training = method["align"]["training"] | {"steps": steps, "epochs": None, "validate_every": steps}
    size = math.ceil(method["enter"]["size"] / ENCODERS[name].patch) * ENCODERS[name].patch
    method |= {"enter": method["enter"] | {"size": size}, "body": ENCODERS[name].model_dump(exclude={"decoder_width", "decoder_depth"}), "pretrain": None}
    method |= {"align": method["align"] | {"training": training}}
    return parse_study(resolved(study) | {"methods": {"m": method}, "transfer": None})


def trained(study: Study, name: str, steps: int, files: tuple[list[Path], list[Path]], group: str, out: Path) -> float:
    """Train; seconds the steps took."""
    align(with_body(study, name, steps), "m", group, *files, None, None, out / "checkpoints", out / "model")
    return float(read_json(out / "model" / "efficiency.json")["seconds"])


def identification(model: Path, pairs: list[tuple[str, str]], files: tuple[list[Path], list[Path]], embedding: Path) -> float:
    """Two-way identification of test pictures by the predicted embedding, mean over subjects."""
    encoder, _ = load_encoder(model)
    encoder.eval()
    scores = []
    for (dataset, subject), prepared, embeddings in zip(pairs, *files, strict=True):
        with PreparedSubject(prepared) as data, h5py.File(embeddings) as file:
            stimulus, responses, _ = data.by_picture(data.trials("test"), encoder.arguments["enter"]["order"], encoder.channels)
            truth, training = rows_at(file["embedding"], stimulus), rows_at(file["embedding"], data.images("train"))
        with torch.no_grad():
            output = encoder(torch.from_numpy(responses), subject_key(dataset, subject))
            retrieval = encoder.retrieval(output)
        assert retrieval is not None
        predicted = Predicted(encoder.predict(output, "embedding").numpy(), retrieval.numpy())
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
    method = chosen(study)
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
                score = identification(Path(folder) / "model", pairs, files, results / "foundations/embedding")
                whole = time.perf_counter() - begun
            print(f"| {name} | {allowed:.0f} | {steps} | {seconds:.0f} (with start and validation {whole:.0f}) | {score:.3f} |", flush=True)


if __name__ == "__main__":
    main()

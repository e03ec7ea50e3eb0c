"""What the network behind a closed form is worth, and each of its parts: new subjects of a finished study, over seeds.

    python benchmarks/ablations.py config/macaque_v4.yaml --method unimind [--seeds 3] [--only NAME ...]

Reads what the study's stages `teach` and `enter` wrote, trains the method's body anew with one part changed at a time and several seeds
(the stage `align`, on signals; no voxel is read), and prints two-way identification of the new subjects' test pictures by budget: the
mean over subjects and seeds, and in brackets the spread (standard deviation) between seeds. Trials of a budget are drawn as `transfer`
draws them.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from unimind.data.prepared import PreparedSubject
from unimind.models.encoder import load_encoder
from unimind.models.enter import Context, subject_key
from unimind.stages import STAGES
from unimind.study import Study, parse_study, read_study, resolved
from unimind.training.align import align
from unimind.training.alignment import two_way
from unimind.training.data import Targets, budget_rows
from unimind.training.enter import closed_form_of, enter, load_taught, read_trials

#: Name -> what is changed of the method; `in-sample` also needs signals of its own.
VARIANTS: dict[str, dict[str, Any]] = {
    "as in the study": {},
    "without noise on the signals": {"align": {"noise": 0.0}},
    "trained on in-sample signals": {"align": {"in_sample": True}},
    "without SoftCLIP": {"align": {"losses": {"softclip": 0.0}, "temperature": 0.05}},
    "with the Siamese loss": {"align": {"losses": {"siamese": 0.5}}},
    "Siamese loss, pseudo-labels shuffled": {"align": {"losses": {"siamese": 0.5}, "shuffle_labels": True}},
    "body ConvMixer": {"body": {"kind": "convmixer", "width": 128, "depth": 2, "patch": 32, "kernel": 5}},
    "body ViT": {"body": {"kind": "vit", "width": 128, "depth": 2, "heads": 8, "patch": 32, "decoder_width": 64, "decoder_depth": 2}},
}


def changed(study: Study, method: str, change: dict[str, Any], seed: int) -> Study:
    """The study with a method changed, and another seed."""
    content = resolved(study)
    own = content["methods"][method]
    for key, value in change.items():
        own[key] = value if key == "body" else merged(own[key], value)
    content["seed"] = study.seed + seed
    return parse_study(content)


def merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """A section with some of its keys changed, at any depth."""
    return old | {key: merged(old[key], value) if isinstance(value, dict) else value for key, value in new.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--method", default="unimind")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=list(VARIANTS))
    given = parser.parse_args()
    study, method = read_study(given.study), given.method
    results, budgets = Path(study.results), study.transfer.trials if study.transfer else ["all"]
    (dataset,) = study.datasets
    taught = results / f"models/{method}/teach/{dataset}"
    space, prior = load_taught(taught)
    members = study.members(method, dataset)

    def files(subject: str) -> tuple[Path, Path]:
        return results / f"prepared/{dataset}/{subject}.h5", results / f"embeddings/{dataset}/{study.stimuli(dataset, subject)}.h5"

    cases = []  # budget, subject, its map and context, responses asked, true embedding, centre and deviation of its training pictures
    for _, subject in study.pairs("new"):
        prepared, embeddings = files(subject)
        with PreparedSubject(prepared) as data:
            shown, asked, _ = data.by_picture(data.trials("test"), "stored")
        with h5py.File(embeddings) as file:
            known = file["embedding"][:]
        own = known[read_trials(prepared).images]
        scale = [torch.from_numpy(values) for values in (known[shown], own.mean(0), own.std(0) + 1e-6)]
        for budget in budgets:
            for seed in range(3 if budget != "all" else 1):
                with PreparedSubject(prepared) as data:
                    rows = None if budget == "all" else budget_rows(data, int(budget), seed)
                trials = read_trials(prepared, rows)
                coordinates = Targets(embeddings, trials.images, space).coordinates(trials.images).numpy()
                found = closed_form_of(study.method(method), subject_key(dataset, subject), prior, coordinates, trials.responses, study.seed)
                cases.append((budget, subject, found, Context.of(coordinates, space.spread.numpy()), asked, *scale))

    def scores(encoder) -> dict[Any, float]:
        by: dict[Any, dict[str, list[float]]] = {budget: {} for budget in budgets}
        for budget, subject, found, context, asked, truth, centre, deviation in cases:
            encoder.take_map("asked", found, context)
            with torch.no_grad():
                predicted = encoder.predict(encoder(torch.from_numpy(asked), "asked"), "embedding")
            by[budget].setdefault(subject, []).append(two_way((predicted - centre) / deviation, (truth - centre) / deviation))
        return {budget: float(np.mean([np.mean(values) for values in own.values()])) for budget, own in by.items()}

    print(f"| {given.study.stem}, {method}: identification by trials | " + " | ".join(map(str, budgets)) + " |\n|---|" + "---|" * len(budgets))
    first = load_encoder(results / f"models/{method}/enter/{subject_key(dataset, members[0][1])}")[0]
    print("| closed form alone | " + " | ".join(f"{value:.3f}" for value in scores(first).values()) + " |", flush=True)
    entered = [results / f"models/{method}/enter/{subject_key(*pair)}" for pair in members]
    for name in given.only:
        runs = []
        for seed in range(given.seeds):
            own = changed(study, method, VARIANTS[name], seed)
            with tempfile.TemporaryDirectory() as folder:
                places = entered
                if VARIANTS[name].get("align", {}).get("in_sample"):
                    places = [Path(folder, subject_key(*pair)) for pair in members]
                    for place, (_, subject) in zip(places, members, strict=True):
                        seen = STAGES["enter"].view(own, method=method, dataset=dataset, subject=subject)
                        enter(seen, method, dataset, subject, *files(subject), taught, place)
                view = STAGES["align"].view(own, method=method, group=dataset)
                out = Path(folder, "out")
                align(view, method, dataset, None, [files(subject)[1] for _, subject in members], places, None, Path(folder, "checkpoints"), out)
                runs.append(scores(load_encoder(out)[0]))
        cells = [f"{np.mean([one[b] for one in runs]):.3f} [{np.std([one[b] for one in runs]):.3f}]" for b in budgets]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()

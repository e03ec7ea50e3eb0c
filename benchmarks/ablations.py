"""What the network behind a closed form is worth, and each of its parts: new subjects of a finished study, over seeds.

    python benchmarks/ablations.py config/macaque_v4.yaml --method unimind [--seeds 3] [--only NAME ...]

Reads what the study's stages `teach` and `enter` wrote, trains the method's body anew with one part changed at a time and several seeds
(the stage `align`, on signals; no voxel is read), and prints two-way identification of the new subjects' test pictures by budget: the
mean over subjects and seeds, and in brackets the spread (standard deviation) between seeds; and behind it the squared error of the
embedding that pictures are drawn from, as a share of the test pictures' own. Trials of a budget are drawn as `transfer`
draws them. Rows of fewer training subjects, or of fewer trials of them, teach the closed form anew as well; the row of its own beside
them has no network. One training subject alone gives no signals to train on: they are decoded by what other subjects teach.
"""

import argparse
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from unimind.data.prepared import PreparedSubject
from unimind.models.encoder import Encoder, load_encoder
from unimind.models.enter import Context, subject_key
from unimind.stages import STAGES
from unimind.study import Study, parse_study, read_study, resolved
from unimind.training.align import align
from unimind.training.alignment import told_apart
from unimind.training.data import PictureCoordinates, budget_rows
from unimind.training.enter import closed_form_of, enter, load_taught, read_trials, teach

#: Name -> what is changed of the method.
VARIANTS: dict[str, dict[str, Any]] = {
    "as in the study": {},
    "without noise on the signals": {"align": {"noise": 0.0}},
    "trained on in-sample signals": {"align": {"in_sample": True}},
    "without SoftCLIP": {"align": {"losses": {"softclip": 0.0}, "temperature": 0.05, "retrieval_head": False}},
    "one head for both": {"align": {"retrieval_head": False}},
    "body counts alike whatever varies": {"variety": 1.0},
    "with the Siamese loss": {"align": {"losses": {"siamese": 0.5}}},
    "Siamese loss, pseudo-labels shuffled": {"align": {"losses": {"siamese": 0.5}, "shuffle_labels": True}},
    "body ConvMixer": {"body": {"kind": "convmixer", "width": 128, "depth": 2, "patch": 32, "kernel": 5}},
    "body ViT": {"body": {"kind": "vit", "width": 128, "depth": 2, "heads": 8, "patch": 32}},
    "2 training subjects": {"trained_on": {"subjects": 2}},
    "3 training subjects": {"trained_on": {"subjects": 3}},
    "3 training subjects, 952 trials in all": {"trained_on": {"subjects": 3, "trials": 952}},
    "7 training subjects, 952 trials in all": {"trained_on": {"subjects": 7, "trials": 952}},
}
#: The method's name where only a part of the training subjects serves it; such methods stand under `transfer.baselines`.
PART = "part"


def changed(study: Study, method: str, change: dict[str, Any], seed: int) -> tuple[Study, str]:
    """The study with a method changed, and another seed; and the method's name there."""
    content = resolved(study)
    own = content["methods"][method]
    for key, value in change.items():
        if key == "variety":
            continue
        own[key] = value if key in ("body", "trained_on") else merged(own[key], value)
    content["seed"] = study.seed + seed
    if "trained_on" in change:
        del content["methods"][method]
        del own["sampling"]
        content["transfer"] |= {"methods": [name for name in content["transfer"]["methods"] if name != method], "baselines": {PART: own}}
        method = PART
    return parse_study(content), method


def merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """A section with some of its keys changed, at any depth."""
    return old | {key: merged(old[key], value) if isinstance(value, dict) else value for key, value in new.items()}


class Bench:
    """The files of a finished study, its new subjects and their budgets."""

    def __init__(self, study: Study, method: str) -> None:
        self.study, self.method = study, method
        self.results, self.budgets = Path(study.results), study.transfer.trials if study.transfer else ["all"]
        (self.dataset,) = study.datasets
        self.taught = self.results / f"models/{method}/teach/{self.dataset}"

    def files(self, subject: str) -> tuple[Path, Path]:
        """A subject's prepared file and its embeddings."""
        stimuli = self.study.stimuli(self.dataset, subject)
        return self.results / f"prepared/{self.dataset}/{subject}.h5", self.results / f"embeddings/{self.dataset}/{stimuli}.h5"

    def scores(self, taught: Path, alike: bool = False) -> Callable[[Encoder], dict[Any, NDArray]]:
        """A function that scores an encoder: identification and error (2,) by budget, of the new subjects' test pictures by closed forms that `taught` taught.

        With `alike`, whatever the variety of a subject's pictures is.
        """
        space, prior = load_taught(taught)
        cases = []  # budget, subject, its map and context, responses asked, true embedding, centre and deviation of its training pictures
        for _, subject in self.study.pairs("new"):
            prepared, embeddings = self.files(subject)
            with PreparedSubject(prepared) as data:
                shown, asked, _ = data.by_picture(data.trials("test"), "stored")
            with h5py.File(embeddings) as file:
                known = file["embedding"][:]
            own = known[read_trials(prepared).images]
            scale = [torch.from_numpy(values) for values in (known[shown], own.mean(0), own.std(0) + 1e-6)]
            for budget in self.budgets:
                for seed in range(3 if budget != "all" else 1):
                    with PreparedSubject(prepared) as data:
                        rows = None if budget == "all" else budget_rows(data, int(budget), seed)
                    trials = read_trials(prepared, rows)
                    coordinates = PictureCoordinates(embeddings, trials.images, space).coordinates(trials.images).numpy()
                    found = closed_form_of(
                        self.study.method(self.method), subject_key(self.dataset, subject), space, prior, coordinates, trials.responses, self.study.seed
                    )
                    context = Context.of(coordinates, space)
                    cases.append((budget, subject, found, context._replace(variety=np.ones_like(context.variety)) if alike else context, asked, *scale))

        def of(encoder: Encoder) -> dict[Any, NDArray]:
            by: dict[Any, dict[str, list[tuple[float, float]]]] = {budget: {} for budget in self.budgets}
            for budget, subject, found, context, asked, truth, centre, deviation in cases:
                encoder.take_map("asked", found, context)
                with torch.no_grad():
                    output = encoder(torch.from_numpy(asked), "asked")
                    told, drawn, seen = ((one - centre) / deviation for one in (encoder.retrieval(output), encoder.predict(output, "embedding"), truth))
                by[budget].setdefault(subject, []).append((told_apart(told, seen), float((drawn - seen).square().mean() / seen.square().mean())))
            return {budget: np.mean([np.mean(values, 0) for values in one.values()], 0) for budget, one in by.items()}

        return of

    def trained(self, change: dict[str, Any], seed: int, folder: Path) -> tuple[Path, Path, Path]:
        """Where the variant's body, what taught its closed forms, and one of these closed forms lie."""
        study, method = changed(self.study, self.method, change, seed)
        members = [subject for _, subject in study.members(method, self.dataset)]
        keys = [subject_key(self.dataset, subject) for subject in members]
        prepared, embeddings = [self.files(subject)[0] for subject in members], [self.files(subject)[1] for subject in members]
        taught, entered = self.taught, [self.results / f"models/{self.method}/enter/{key}" for key in keys]
        anew = "trained_on" in change
        if anew:
            taught = folder / "taught"
            teach(STAGES["teach"].view(study, method=method, group=self.dataset), method, self.dataset, prepared, embeddings, taught)
        if anew or change.get("align", {}).get("in_sample"):
            entered = [folder / key for key in keys]
            for place, subject in zip(entered, members, strict=True):
                seen = STAGES["enter"].view(study, method=method, dataset=self.dataset, subject=subject)
                enter(seen, method, self.dataset, subject, *self.files(subject), taught, place)
        if "variety" in change:
            entered = [folder / key for key in keys]
            for place, key in zip(entered, keys, strict=True):
                shutil.copytree(self.results / f"models/{self.method}/enter/{key}", place)
                with h5py.File(place / "entered.h5", "a") as file:
                    file["variety"][:] = change["variety"]
        out = folder / "out"
        view = STAGES["align"].view(study, method=method, group=self.dataset)
        align(view, method, self.dataset, None, embeddings, entered, None, folder / "checkpoints", out)
        return out, taught, entered[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--method", default="unimind")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=list(VARIANTS), choices=list(VARIANTS))
    given = parser.parse_args()
    bench = Bench(read_study(given.study), given.method)
    whole, alike = bench.scores(bench.taught), bench.scores(bench.taught, alike=True)
    print(f"| {given.study.stem}, {given.method}: identification; error, by trials | " + " | ".join(map(str, bench.budgets)) + " |")
    print("|---|" + "---|" * len(bench.budgets))

    def row(name: str, runs: list[dict[Any, NDArray]]) -> None:
        cells = []
        for budget in bench.budgets:
            (identified, error), (spread, _) = (measure([one[budget] for one in runs], 0) for measure in (np.mean, np.std))
            cells.append(f"{identified:.3f}" + (f" [{spread:.3f}]" if len(runs) > 1 else "") + f"; {error:.2f}")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)

    first = bench.study.members(bench.method, bench.dataset)[0]
    row("closed form alone", [whole(load_encoder(bench.results / f"models/{bench.method}/enter/{subject_key(*first)}")[0])])
    for name in given.only:
        runs, alone = [], []
        for seed in range(given.seeds):
            with tempfile.TemporaryDirectory() as folder:
                out, taught, closed = bench.trained(VARIANTS[name], seed, Path(folder))
                score = alike if "variety" in VARIANTS[name] else whole if taught == bench.taught else bench.scores(taught)
                runs.append(score(load_encoder(out)[0]))
                if taught != bench.taught:
                    alone.append(score(load_encoder(closed)[0]))
        if alone:
            row(f"{name}: closed form alone", alone)
        row(name, runs)


if __name__ == "__main__":
    main()

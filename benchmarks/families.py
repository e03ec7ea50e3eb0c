"""How much methods lose when test pictures are unlike all that anybody was trained on: the split families of `test_pictures`, in a finished study.

    python benchmarks/families.py config/macaque_v4.yaml --methods unimind ridge [--clusters 5] [--share 0.2] [--leave-out 0.4]

Splits the study's pictures at random, far from every training picture, and by clusters of the image embedding, each cluster in turn, and
for each split prepares every subject and trains the methods anew (stages `split`, `prepare`, `teach`, `enter`, `align`, `adapt`; no
diffusion model, no picture drawn). Prints two-way identification of the test pictures by the predicted embedding, mean over subjects and
95 % intervals over pictures within subjects, and what is lost from random to far, whose test pictures are the same wherever no one else's
training picture is near. The closed form behind a body has a row of its own. A subject with fewer than ten pictures in a cluster is trained
on, and not asked, where that one is held out.
"""

import argparse
import contextlib
import io
import shutil
import tempfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from unimind.data.prepare import prepare
from unimind.data.prepared import Stimuli
from unimind.data.split import split
from unimind.errors import InputError
from unimind.evaluation.statistics import bootstrap
from unimind.evaluation.transfer import Cell, Files, measured_once, serve
from unimind.stages import STAGES
from unimind.study import Study, Transfer, parse_study, read_study, resolved
from unimind.training.adapt import adapt
from unimind.training.align import align
from unimind.training.enter import enter, teach

#: Test pictures that a subject has at least.
FEWEST = 10
#: Identification of one subject's test pictures by what makes them the same in every session, the SHA-256 of their pixels.
Pictures = dict[str, float]
#: By method and subject.
Scores = dict[str, dict[str, Pictures]]


def tests_of(stimuli: Path) -> int:
    """How many pictures of a file are tested on; of fewer than two, which no prepared file may have, others make up two whose scores nobody looks at."""
    with h5py.File(stimuli, "a") as file:
        if "left_out" not in file:  # as `split` found it
            file["test"][:] = False
            file["left_out"] = np.zeros(len(file["test"]), bool)
        count = int(file["test"][:].sum())
        if count < 2:
            file["test"][np.flatnonzero(~file["test"][:] & ~file["left_out"][:])[: 2 - count]] = True
    return count


class Family:
    """One split of a finished study's pictures: its subjects prepared, and methods trained, in a folder."""

    def __init__(self, study: Study, rule: dict[str, Any], folder: Path) -> None:
        (self.dataset,) = study.datasets
        content = resolved(study)
        content["datasets"][self.dataset] |= {"test_pictures": rule}
        content["evaluation"]["metrics"] = ["identification"]
        split_anew = parse_study(content)
        self.study = split_anew.model_copy(update={"transfer": (split_anew.transfer or Transfer()).model_copy(update={"pictures": False})})
        self.folder, self.results = folder, Path(study.results)
        self.tested: dict[str, int] = {}
        stimuli = {self.study.stimuli(self.dataset, subject) for _, subject in self.study.pairs()}
        own = {name: (self.results / f"prepared/{self.dataset}/{name}.h5", self.results / f"embeddings/{self.dataset}/{name}.h5") for name in stimuli}
        training = sorted({self.study.stimuli(self.dataset, subject) for _, subject in self.study.pairs("train")})
        self.stimuli = {name: folder / f"{name}.h5" for name in stimuli}
        for name, (pictures, embeddings) in own.items():
            try:
                split(self.study, self.dataset, pictures, [own[one][0] for one in training], embeddings, [own[one][1] for one in training], self.stimuli[name])
            except InputError:
                shutil.copyfile(pictures, self.stimuli[name])
            self.tested[name] = tests_of(self.stimuli[name])
        self.embeddings = {subject: own[self.study.stimuli(self.dataset, subject)][1] for _, subject in self.study.pairs()}
        self.prepared = {subject: folder / f"{subject}.prepared.h5" for _, subject in self.study.pairs()}
        for subject in set(self.prepared) - set(self.asked()) - {one for _, one in self.study.pairs("train")}:
            del self.prepared[subject]  # neither trained on nor asked
        for subject, out in self.prepared.items():
            fetched = self.results / f"fetched/{self.dataset}/{subject}.json"
            pictures = self.stimuli[self.study.stimuli(self.dataset, subject)]
            prepare(self.study, self.dataset, subject, fetched, pictures, [self.stimuli[one] for one in training], out)

    def view(self, stage: str, method: str, **more: str) -> Study:
        return STAGES[stage].view(self.study, method=method, **more)

    def identification(self, methods: list[str]) -> Scores:
        """Of every method, and of the closed form behind each body, the test pictures' identification by subject."""
        found: Scores = {}
        for method in methods:
            settings, group = self.study.method(method), self.dataset
            place = self.folder / method
            members = [subject for _, subject in self.study.members(method, group)] if self.study.shares(method) else []
            files = [self.prepared[one] for one in members], [self.embeddings[one] for one in members]
            entered: dict[str, Path] = {}
            shared = None
            if settings.closed:
                taught = None
                if self.study.shares(method):
                    taught = place / "taught"
                    teach(self.view("teach", method, group=group), method, group, *files, taught)
                for subject, prepared in self.prepared.items():
                    entered[subject] = place / subject
                    seen = self.view("enter", method, dataset=self.dataset, subject=subject)
                    enter(seen, method, self.dataset, subject, prepared, self.embeddings[subject], taught, entered[subject])
            if settings.align is not None:
                shared, signals = place / "align", [entered[one] for one in members] if settings.closed else None
                align(self.view("align", method, group=group), method, group, None if signals else files[0], files[1], signals, None, place / "kept", shared)
            for subject in self.asked():
                if shared is None:
                    found.setdefault(method, {})[subject] = self.measured(method, subject, entered[subject])
                elif settings.closed:
                    found.setdefault(f"{method}, closed form alone", {})[subject] = self.measured(method, subject, entered[subject])
                    found.setdefault(method, {})[subject] = self.measured(method, subject, shared, entered[subject])
                elif subject in members:
                    found.setdefault(method, {})[subject] = self.measured(method, subject, shared)
                else:
                    seen, out = self.view("adapt", method, dataset=self.dataset, subject=subject), place / subject
                    adapt(
                        seen, method, self.dataset, subject, self.prepared[subject], self.embeddings[subject], shared, place / "kept", out, None, None, *files
                    )
                    found.setdefault(method, {})[subject] = self.measured(method, subject, out)
        return found

    def asked(self) -> list[str]:
        """Subjects with enough test pictures."""
        return [subject for _, subject in self.study.pairs() if self.tested[self.study.stimuli(self.dataset, subject)] >= FEWEST]

    def measured(self, method: str, subject: str, model: Path, entered: Path | None = None) -> Pictures:
        """Identification of a subject's test pictures, as the comparison over budgets measures it."""
        files = Files(
            prepared=self.prepared[subject], embeddings=self.embeddings[subject], shared=None, taught=None, diffusion=None, autoencoder=None,
            embedding=self.results / "foundations/embedding", features=None, stimuli=self.stimuli[self.study.stimuli(self.dataset, subject)],
            training_prepared=[], training_embeddings=[], embedding_prior=None,
        )  # fmt: skip
        cell = Cell("entered", "all", self.study.seed)
        served = serve(self.study, method, self.dataset, subject, cell, files, model, entered)
        found = measured_once(self.study, method, self.dataset, subject, cell, files, served)
        with Stimuli(files.stimuli) as pictures:
            names = pictures.sha256[found["stimulus"]].tolist()
        return dict(zip(names, found["measures"]["identification"], strict=True))


def shown(scores: list[Pictures], sign: str = "") -> str:
    """Mean over subjects that were asked of means over pictures, and its interval; subjects that were shown the same picture share it."""
    scores = [one for one in scores if one]
    values = [np.array(list(one.values())) for one in scores]
    low, high = bootstrap(values, 2000, 0, [list(one) for one in scores])
    return f"{np.mean([one.mean() for one in values]):{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, nargs="+")
    parser.add_argument("--methods", nargs="+", default=["unimind", "ridge"])
    parser.add_argument("--clusters", type=int, default=5)
    parser.add_argument("--share", type=float, default=0.2)
    parser.add_argument("--leave-out", type=float, default=0.4)
    given = parser.parse_args()
    study = read_study(*given.study)
    rules: dict[str, dict[str, Any]] = {rule: {"rule": rule, "share": given.share, "leave_out": given.leave_out} for rule in ("random", "far")}
    rules |= {f"cluster {number}": {"rule": "clusters", "count": given.clusters, "test": number} for number in range(given.clusters)}
    found: dict[str, Scores] = {}
    for name, rule in rules.items():
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
            found[name] = Family(study, rule, Path(folder)).identification(given.methods)
    (dataset,) = study.datasets
    for role in ("train", "new"):
        subjects = [subject for _, subject in study.pairs(role)]
        print(f"\n| {study.name}, {'training subjects' if role == 'train' else 'new subjects'} ({len(subjects)}) | random | far | clusters | random - far |")
        print("|---|---|---|---|---|")
        for method in found["random"]:
            own = {name: [scores[method].get(subject, {}) for subject in subjects] for name, scores in found.items()}
            clusters = [dict(pair for name, of in own.items() if name.startswith("cluster") for pair in of[k].items()) for k in range(len(subjects))]
            both = zip(own["random"], own["far"], strict=True)
            lost = [{picture: one[picture] - other[picture] for picture in other if picture in one} for one, other in both]
            print(f"| {method} | {shown(own['random'])} | {shown(own['far'])} | {shown(clusters)} | {shown(lost, '+')} |", flush=True)
    counts = {name: f"{np.mean([len(values) for values in next(iter(scores.values())).values()]):.0f}" for name, scores in found.items()}
    print("\nTest pictures a subject: " + ", ".join(f"{name} {count}" for name, count in counts.items()))


if __name__ == "__main__":
    main()

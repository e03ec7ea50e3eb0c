"""All methods of a study on the same pictures: new subjects over budgets of trials, and the training subjects.

    python benchmarks/arena.py config/macaque_v4.yaml config/additions/rivals_of_macaque.yaml [--drawings 1] [--only METHOD ...] [--measures MEASURE ...]

Reads what the study's stages `prepare`, `embed` and `foundation` wrote below results/<study>/, runs the stages `teach`, `enter`, `align` and
`transfer` of the methods compared (those of `transfer`; what a stage has written is not made again) and prints two-way identification by
the image embedding: the mean over new subjects by budget with its 95 % interval over drawings and pictures; of the training subjects' test
pictures with all trials; the difference from ridge by budget, paired picture by picture; parameters, without the generator's (in brackets
those that a trained method makes anew or changes for a new subject); wall-clock seconds of training what is shared, and of serving one new
subject with all its trials. With `--measures squeezenet pixcorr` a picture is drawn of each test picture, by the same generator for all,
and measured by these. A pretraining or condition stage that a method has is not made, and must be there.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

from unimind.data.prepared import Stimuli
from unimind.evaluation.statistics import bootstrap
from unimind.evaluation.transfer import OF_PICTURES, Cell, Files, measured_once, serve
from unimind.foundations import parameters_of
from unimind.stages import STAGES
from unimind.storage import read_json
from unimind.study import Study, layout, read_study

PLACES = {
    "pretrain": layout.PRETRAINED, "teach": layout.TAUGHT, "enter": layout.ENTERED, "align": layout.ALIGNED, "condition": layout.CONDITIONED,
    "embedding-prior": layout.EMBEDDING_PRIOR,
}  # fmt: skip
#: What every method is compared with, where the study has it.
REFERENCE = "ridge"


class Arena:
    """The methods of a study, their models and their scores."""

    def __init__(self, study: Study) -> None:
        self.study = study

    def place(self, pattern: str, **names: str) -> Path:
        """Path of a result."""
        return Path(self.study.results) / layout.path(pattern, **names)

    def files(self, pairs: list[tuple[str, str]]) -> tuple[list[Path], list[Path]]:
        """Prepared files and embeddings of subjects."""
        prepared = [self.place(layout.PREPARED, dataset=dataset, subject=subject) for dataset, subject in pairs]
        return prepared, [self.place(layout.EMBEDDINGS, dataset=dataset, stimuli=self.study.stimuli(dataset, subject)) for dataset, subject in pairs]

    def run(self, stage: str, out: Path, names: dict[str, str], **given: Any) -> None:
        """Run a stage, if its result is not there."""
        if not out.exists():
            STAGES[stage].load()(STAGES[stage].view(self.study, **names), **names, **given, out=out)

    def train(self, method: str) -> float:
        """Make a method's models; seconds that training what is shared took."""
        own, seconds = self.study.method(method), 0.0
        for stage, all_names in self.study.models(method).items():
            if stage == "adapt":
                continue  # by `transfer`, from every budget
            for names in all_names:
                given: dict[str, Any] = {}
                out = self.place(PLACES[stage], **names)
                if stage in ("pretrain", "condition", "embedding-prior"):
                    if not out.exists():
                        sys.exit(f"arena: {out} is missing; run the study as far as that")
                elif stage == "enter":
                    pair = names["dataset"], names["subject"]
                    prepared, embeddings = self.files([pair])
                    taught = self.study.taught(method, self.study.group(method, *pair))
                    given = {"prepared": prepared[0], "embeddings": embeddings[0], "taught": Path(self.study.results) / taught if taught else None}
                else:
                    members = self.study.members(method, names["group"])
                    prepared, embeddings = self.files(members)
                    given = {"prepared": prepared, "embeddings": embeddings}
                if stage == "align":
                    entered = [self.place(layout.ENTERED, method=method, dataset=dataset, subject=subject) for dataset, subject in members]
                    given |= {"prepared": None, "entered": entered} if own.closed else {"entered": None}
                    given |= {
                        "pretrained": self.place(layout.PRETRAINED, method=method) if own.pretrain else None,
                        "checkpoints": out.parent / f"{out.name}.checkpoints",
                    }
                self.run(stage, out, names, **given)
                if stage != "enter" or (own.scope != "subject" and self.study.role(*pair) == "train"):
                    seconds += read_json(out / "efficiency.json")["seconds"]
        return seconds

    def given(self, dataset: str, subject: str) -> dict[str, Any]:
        """What measuring a subject reads, by the names of the stage `transfer`."""
        (prepared,), (embeddings,) = self.files([(dataset, subject)])
        networks = {name: self.place(layout.FOUNDATION, name=name) for name in ("diffusion", "autoencoder", "embedding")}
        stimuli = {"dataset": dataset, "stimuli": self.study.stimuli(dataset, subject)}
        return {
            "prepared": prepared,
            "embeddings": embeddings,
            "features": self.place(layout.FEATURES, **stimuli),
            "stimuli": self.place(layout.STIMULI, **stimuli),
            **networks,
        }

    def transfer(self, method: str) -> list[dict[str, Any]]:
        """Entries of all new subjects."""
        entries = []
        others = self.files(list(self.study.pairs("train")))
        for dataset, subject in self.study.pairs("new"):
            out, group = self.place(layout.TRANSFER, method=method, dataset=dataset, subject=subject), self.study.group(method, dataset, subject)
            taught = self.study.taught(method, group)
            names = {"method": method, "dataset": dataset, "subject": subject}
            self.run(
                "transfer", out, names, taught=Path(self.study.results) / taught if taught else None,
                shared=Path(self.study.results) / self.study.shared_model(method, group) if self.study.shares(method) else None,
                training_prepared=others[0], training_embeddings=others[1], checkpoints=out.with_suffix(".checkpoints"), **self.given(dataset, subject),
            )  # fmt: skip
            entries += read_json(out)["entries"]
        return entries

    def pictures(self, dataset: str, subject: str, stimulus: list[int]) -> list[str]:
        """What makes a subject's pictures the same as others': the SHA-256 of their pixels."""
        with Stimuli(self.place(layout.STIMULI, dataset=dataset, stimuli=self.study.stimuli(dataset, subject))) as file:
            return file.sha256[stimulus].tolist()

    def training_subjects(self, method: str) -> tuple[dict[str, list[np.ndarray]], list[list[str]]]:
        """Values (1, pictures) of every training subject's test pictures, by measure, and these pictures."""
        found: dict[str, list[np.ndarray]] = {}
        pictures = []
        for dataset, subject in self.study.pairs("train"):
            entered = self.study.entered(method, dataset, subject) if self.study.shares(method) else None
            model = Path(self.study.results) / self.study.serving_model(method, dataset, subject)
            given = self.given(dataset, subject)
            files = Files(shared=model, taught=None, training_prepared=[], training_embeddings=[], embedding_prior=None, **given)
            own = Path(self.study.results) / entered if entered else None
            cell = Cell("entered", "all", self.study.seed)
            measured = measured_once(self.study, method, dataset, subject, cell, files, serve(self.study, method, dataset, subject, cell, files, model, own))
            pictures.append(self.pictures(dataset, subject, measured["stimulus"]))
            for name, values in measured["measures"].items():
                found.setdefault(name, []).append(np.asarray(values, float)[None])
        return found, pictures


def per_drawing(entry: dict[str, Any], measure: str, drawings: int) -> np.ndarray:
    """Values (drawings, pictures) of the first drawings of a budget."""
    values = entry["rows"]["reconstruction"][measure]
    return np.atleast_2d(np.array(values.get("per_drawing", values["per_image"]), float))[:drawings]


def interval(values: list[np.ndarray], pictures: list[list[str]], seed: int) -> tuple[float, float, float]:
    """Mean over subjects, and its interval, of values (drawings, pictures) each; subjects that were shown the same picture share it."""
    low, high = bootstrap(values, 2000, seed, pictures, drawings=True)
    return float(np.mean([one.mean() for one in values])), float(low), float(high)


def shown(found: tuple[float, float, float], sign: str = "") -> str:
    """A value and its interval, to three places, without the zero before the point."""
    return "{} [{}, {}]".format(*(f"{value:{sign}.3f}".replace("0.", ".") for value in found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, nargs="+")
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--drawings", type=int, help="of every budget; by default the study's transfer.seeds")
    parser.add_argument("--measures", nargs="+", default=["identification"], help=f"others than of the embedding: {', '.join(OF_PICTURES)}")
    given = parser.parse_args()
    study = read_study(*given.study)
    assert study.transfer is not None
    drawings, budgets = given.drawings or study.transfer.seeds, [str(budget) for budget in study.transfer.trials]
    pictures = bool(set(given.measures) & set(OF_PICTURES))
    transfer = study.transfer.model_copy(update={"pictures": pictures, "seeds": drawings})
    study = study.model_copy(update={"transfer": transfer, "evaluation": study.evaluation.model_copy(update={"metrics": given.measures})})
    arena = Arena(study)
    methods = [name for name in study.transferred() if given.only is None or name in given.only]
    if REFERENCE in methods:
        methods = [REFERENCE, *(name for name in methods if name != REFERENCE)]
    reference: dict[tuple[str, str], list[np.ndarray]] = {}
    costs_of: list[str] = []
    lines: dict[tuple[str, str], list[str]] = {(measure, kind): [] for measure in given.measures for kind in ("values", "differences")}
    for method in methods:
        label, seconds, entries = study.method(method).label or method, arena.train(method), arena.transfer(method)
        by = {budget: [one for one in entries if one["budget"] == budget and one["method"] == method] for budget in budgets}
        known, seen = arena.training_subjects(method) if method in study.methods else ({}, [])
        pictures_of = {budget: [arena.pictures(one["dataset"], one["subject"], one["stimulus"]) for one in own] for budget, own in by.items()}
        for measure in given.measures:
            of = {budget: [per_drawing(one, measure, drawings) for one in own] for budget, own in by.items()}
            cells = [shown(interval(of[budget], pictures_of[budget], study.seed)) for budget in budgets]
            cells.append(shown(interval(known[measure], seen, study.seed)) if known else "-")
            lines[measure, "values"].append(f"| {label} | {' | '.join(cells)} |")
            if method == REFERENCE:
                reference |= {(measure, budget): values for budget, values in of.items()}
            elif reference:
                paired = {budget: [a - b for a, b in zip(of[budget], reference[measure, budget], strict=True)] for budget in budgets}
                cells = [shown(interval(own, pictures_of[budget], study.seed), "+") for budget, own in paired.items()]
                lines[measure, "differences"].append(f"| {label} | {' | '.join(cells)} |")
            print(measure, lines[measure, "values"][-1], flush=True)
        costs = {key: np.mean([one["costs"][key] for one in by["all"]]) for key in ("parameters", "trainable_parameters", "seconds")}
        costs["parameters"] -= parameters_of(arena.place(layout.FOUNDATION, name="diffusion"))
        made = "" if study.method(method).closed else f" ({costs['trainable_parameters'] / 1e6:.2f} M)"
        costs_of.append(f"| {label} | {costs['parameters'] / 1e6:.2f} M{made} | {seconds:.0f} | {costs['seconds']:.1f} |")
    for measure in given.measures:
        print(f"\n| {measure} by trials of new subjects | {' | '.join([*budgets, 'training subjects'])} |\n|---|" + "---|" * (len(budgets) + 1))
        print("\n".join(lines[measure, "values"]))
        print(f"\n| {measure}, difference from {REFERENCE} | {' | '.join(budgets)} |\n|---|" + "---|" * len(budgets))
        print("\n".join(lines[measure, "differences"]))
    print("\n| | parameters (made anew for a new subject) | seconds, shared | seconds, new subject |\n|---|---|---|---|")
    print("\n".join(costs_of))


if __name__ == "__main__":
    main()

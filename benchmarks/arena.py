"""All methods of a study on the same pictures: new subjects over budgets of trials, and the training subjects.

    python benchmarks/arena.py config/macaque_v4.yaml config/additions/rivals_of_macaque.yaml [--drawings 1] [--only METHOD ...]

Reads what the study's stages `prepare`, `embed` and `foundation` wrote below results/<study>/, runs the stages `teach`, `enter`, `align` and
`transfer` of the methods compared (those of `transfer`; what a stage has written is not made again) and prints two-way identification by
the image embedding: the mean over new subjects by budget with its 95 % interval over drawings and pictures; of the training subjects' test
pictures with all trials; the difference from ridge by budget, paired picture by picture; parameters, without the generator's (in brackets
those that a trained method makes anew or changes for a new subject); wall-clock seconds of training what is shared, and of serving one new
subject with all its trials. No pictures are drawn.
"""

import argparse
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from unimind.data.prepared import PreparedSubject
from unimind.device import on_device
from unimind.evaluation.score import Predicted, embedding_measures
from unimind.evaluation.statistics import bootstrap
from unimind.foundations import parameters_of
from unimind.reconstruction.decoder import Decoder
from unimind.reconstruction.predict import predict_pictures
from unimind.stages import STAGES
from unimind.storage import read_json
from unimind.study import Study, layout, read_study

#: What every method is compared with, where the study has it.
REFERENCE = "ridge"
BATCH = 256


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
                given: dict[str, Any]
                out = self.place({"teach": layout.TAUGHT, "enter": layout.ENTERED, "align": layout.ALIGNED}[stage], **names)
                if stage == "enter":
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
                    given |= {"pretrained": None, "checkpoints": out.parent / f"{out.name}.checkpoints"}
                self.run(stage, out, names, **given)
                if stage != "enter" or (own.scope != "subject" and self.study.role(*pair) == "train"):
                    seconds += read_json(out / "efficiency.json")["seconds"]
        return seconds

    def transfer(self, method: str) -> list[dict[str, Any]]:
        """Entries of all new subjects."""
        entries = []
        members = list(self.study.pairs("train"))
        for dataset, subject in self.study.pairs("new"):
            out, group = self.place(layout.TRANSFER, method=method, dataset=dataset, subject=subject), self.study.group(method, dataset, subject)
            prepared, embeddings = self.files([(dataset, subject)])
            taught, stimuli = self.study.taught(method, group), self.study.stimuli(dataset, subject)
            others = self.files(members)
            names = {"method": method, "dataset": dataset, "subject": subject}
            networks = {name: self.place(layout.FOUNDATION, name=name) for name in ("diffusion", "autoencoder", "embedding")}
            self.run(
                "transfer", out, names, prepared=prepared[0], embeddings=embeddings[0], taught=Path(self.study.results) / taught if taught else None,
                shared=Path(self.study.results) / self.study.shared_model(method, group) if self.study.shares(method) else None, **networks,
                features=self.place(layout.FEATURES, dataset=dataset, stimuli=stimuli), stimuli=self.place(layout.STIMULI, dataset=dataset, stimuli=stimuli),
                training_prepared=others[0], training_embeddings=others[1], checkpoints=out.with_suffix(".checkpoints"),
            )  # fmt: skip
            entries += read_json(out)["entries"]
        return entries

    def training_subjects(self, method: str) -> list[np.ndarray]:
        """Identification (1, pictures) of every training subject's test pictures."""
        values = []
        for dataset, subject in self.study.pairs("train"):
            entered = self.study.entered(method, dataset, subject) if self.study.shares(method) else None
            model = Path(self.study.results) / self.study.serving_model(method, dataset, subject)
            decoder = Decoder(model, Path(self.study.results) / entered if entered else None, dataset, subject).to(on_device())
            prepared, embeddings = self.files([(dataset, subject)])
            with PreparedSubject(prepared[0]) as data:
                pictures, prediction = predict_pictures(decoder, data, "test", BATCH)
                training = data.images("train")
            with h5py.File(embeddings[0]) as file:
                known = file["embedding"][:]
            values_of = Predicted.of(prediction)
            assert values_of is not None
            found: dict[str, dict[str, Any]] = {"reconstruction": {}}
            embedding = self.place(layout.FOUNDATION, name="embedding")
            predicted = {"reconstruction": values_of}
            embedding_measures(["identification"], found, known[pictures], predicted, known[training], embedding, self.study.seed)
            values.append(np.asarray(found["reconstruction"]["identification"])[None])
        return values


def per_drawing(entry: dict[str, Any], drawings: int) -> np.ndarray:
    """Identification (drawings, pictures) of the first drawings of a budget."""
    measure = entry["rows"]["reconstruction"]["identification"]
    return np.atleast_2d(np.array(measure.get("per_drawing", measure["per_image"]), float))[:drawings]


def interval(values: list[np.ndarray], seed: int) -> tuple[float, float, float]:
    """Mean over subjects, and its interval, of values (drawings, pictures) each."""
    low, high = bootstrap(values, 2000, seed, drawings=True)
    return float(np.mean([one.mean() for one in values])), float(low), float(high)


def shown(found: tuple[float, float, float], sign: str = "") -> str:
    """A value and its interval, to three places, without the zero before the point."""
    return "{} [{}, {}]".format(*(f"{value:{sign}.3f}".replace("0.", ".") for value in found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, nargs="+")
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--drawings", type=int, help="of every budget; by default the study's transfer.seeds")
    given = parser.parse_args()
    study = read_study(*given.study)
    assert study.transfer is not None
    drawings, budgets = given.drawings or study.transfer.seeds, [str(budget) for budget in study.transfer.trials]
    study = study.model_copy(update={"transfer": study.transfer.model_copy(update={"pictures": False, "seeds": drawings})})
    arena = Arena(study)
    methods = [name for name in study.transferred() if given.only is None or name in given.only]
    reference: dict[str, list[np.ndarray]] = {}
    if REFERENCE in methods:
        methods = [REFERENCE, *(name for name in methods if name != REFERENCE)]
    lines: dict[str, list[str]] = {"values": [], "differences": []}
    for method in methods:
        label, seconds, entries = study.method(method).label or method, arena.train(method), arena.transfer(method)
        by = {budget: [one for one in entries if one["budget"] == budget and one["method"] == method] for budget in ("0", *budgets)}
        of = {budget: [per_drawing(one, drawings) for one in own] for budget, own in by.items()}
        known = interval(arena.training_subjects(method), study.seed) if method in study.methods else None
        costs = {key: np.mean([one["costs"][key] for one in by["all"]]) for key in ("parameters", "trainable_parameters", "seconds")}
        cells = [shown(interval(of[budget], study.seed)) for budget in budgets]
        costs["parameters"] -= parameters_of(arena.place(layout.FOUNDATION, name="diffusion"))
        made = "" if study.method(method).closed else f" ({costs['trainable_parameters'] / 1e6:.2f} M)"
        cells += [shown(known) if known else "-", f"{costs['parameters'] / 1e6:.2f} M{made}", f"{seconds:.0f}"]
        lines["values"].append(f"| {label} | " + " | ".join([*cells, f"{costs['seconds']:.1f}"]) + " |")
        if method == REFERENCE:
            reference = of
        elif reference:
            differences = [interval([a - b for a, b in zip(of[budget], reference[budget], strict=True)], study.seed) for budget in budgets]
            lines["differences"].append(f"| {label} | " + " | ".join(shown(one, "+") for one in differences) + " |")
        print(lines["values"][-1], flush=True)
    head = " | ".join([*budgets, "training subjects", "parameters (made anew for a new subject)", "seconds, shared", "seconds, new subject"])
    print(f"\n| identification by trials of new subjects | {head} |\n|---|" + "---|" * (len(budgets) + 4))
    print("\n".join(lines["values"]))
    print(f"\n| difference from {REFERENCE} | {' | '.join(budgets)} |\n|---|" + "---|" * len(budgets))
    print("\n".join(lines["differences"]))


if __name__ == "__main__":
    main()

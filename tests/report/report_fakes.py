"""A small fake study's results in the shapes of docs/architecture.md, for the report to read."""

import itertools
import json
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest

from unimind.data.prepared import SPLITS, write_prepared
from unimind.data.shapes import shapes
from unimind.evaluation.efficiency import QUANTITIES
from unimind.storage import write_json
from unimind.study import Study, parse_study

METHODS = {"unimind-convmixer": 0.96, "unimind-vit": 0.945, "mindvis": 0.87, "ridge": 0.95}
SUBJECTS = {"subj01": "train", "subj02": "train", "subj03": "train", "subj04": "new"}
PANEL = ("mse", "pixcorr", "ssim", "study_clip", "classifier", "identification", "embedding_error", "perceptual_distance")
OF_THE_EMBEDDING = ("identification", "embedding_error")
LOWER = ("mse", "embedding_error", "perceptual_distance")
OF_A_METHOD = ("samples-mean", "body-removed", "shuffled", "chance", "nearest-training-image")


def fake_study() -> Study:
    condition = {"training": {"steps": 400}}
    neural = {"enter": {"kind": "adapter"}, "align": {}, "adapt": {}, "pretrain": {}, "condition": condition, "scope": "dataset", "sampling": {"samples": 3}}
    return parse_study(
        {
            "name": "fake",
            "title": "A fake study",
            "picture_size": 64,
            "datasets": {"drawings": {"source": "simulated", "training_subjects": ["subj01", "subj02", "subj03"], "new_subjects": ["subj04"]}},
            "unpaired": {"source": "simulated", "subjects": ["100206"]},
            "foundations": {
                "embedding": {"kind": "study-clip"},
                "autoencoder": {"kind": "study"},
                "diffusion": {"kind": "study"},
                "classifier": {"kind": "study"},
            },
            "methods": {
                "unimind-convmixer": {**neural, "body": {"kind": "convmixer"}},
                "unimind-vit": {**neural, "body": {"kind": "vit", "width": 256, "depth": 4, "heads": 4}},
                "mindvis": {
                    "scope": "subject",
                    "enter": {"kind": "wrap"},
                    "body": {"kind": "vit", "width": 256, "depth": 4, "heads": 4},
                    "pretrain": {},
                    "condition": condition,
                },
                "ridge": {"scope": "subject", "enter": {"kind": "ridge"}},
            },
            "evaluation": {"metrics": [*PANEL, "inception_score", "lpips"]},
        }
    )


@dataclass
class Fake:
    root: Path
    study: Study
    test: np.ndarray

    @property
    def models(self) -> list[Path]:
        return sorted(path.parent for path in (self.root / "models").rglob("config.json"))

    def inputs(self) -> dict:
        """Arguments of the figures stage, but `out`."""
        return {
            "tables": self.root / "tables",
            "models": self.models,
            "reconstructions": sorted(path for path in (self.root / "reconstructions").rglob("*.h5") if "controls" not in path.parts),
            "stimuli": [self.root / "prepared/drawings/stimuli.h5"],
            "prepared": [self.root / f"prepared/drawings/{subject}.h5" for subject in SUBJECTS],
            "controls": [self.root / "reconstructions/controls/drawings/stimuli.h5"],
            "metrics": self.metrics,
        }

    @property
    def overview(self) -> Path:
        return self.root / "prepared/overview.csv"

    @property
    def inspected(self) -> list[Path]:
        return [self.root / f"inspected/drawings/{subject}.json" for subject in SUBJECTS]

    @property
    def metrics(self) -> list[Path]:
        return sorted((self.root / "metrics/drawings").iterdir())


def build(root: Path, images: int = 130, test: int = 30, side: int = 64, samples: int = 3) -> Fake:
    """Write everything; every test picture, sample and control can be told from every other by its pixels."""
    rng = np.random.default_rng(0)
    truths = np.stack([_picture(rng, side) for _ in range(images)])
    shown = np.sort(rng.permutation(images)[:test])
    embedding = rng.normal(size=(images, 16))
    prepared = root / "prepared/drawings"
    prepared.mkdir(parents=True)
    with h5py.File(prepared / "stimuli.h5", "w") as file:
        file["images"] = truths
        file["test"] = np.isin(np.arange(images), shown)
    for number, subject in enumerate(SUBJECTS):
        voxels = 90 + 10 * number
        stimulus = np.repeat(np.arange(images), 2)
        responses = embedding[stimulus] @ rng.normal(size=(16, voxels)) + 6 * rng.normal(size=(len(stimulus), voxels))
        split = np.where(np.isin(stimulus, shown), 2, 0)
        write_prepared(
            prepared / f"{subject}.h5", responses, stimulus=stimulus, session=np.zeros(len(stimulus)), split=split, stimuli=images,
            dataset="drawings", subject=subject,
        )  # fmt: skip
    columns = ["dataset", "subject", "role", "sessions", "voxels", *(f"{kind}_{split}" for kind in ("trials", "pictures") for split in SPLITS), "noise_ceiling"]
    counts = {name: (40, 90 + 10 * number, 200, 0, 60, images - test, 0, test, 0.25) for number, name in enumerate(SUBJECTS)}
    rows = [("drawings", name, role, *counts[name]) for name, role in SUBJECTS.items()]
    rows.append(("unpaired", "100206", "unpaired", None, 4183, 120, *[None] * 6))
    pd.DataFrame(rows, columns=columns).to_csv(root / "prepared/overview.csv", index=False)
    for number, subject in enumerate(SUBJECTS):
        rois = [
            {"roi": "V1", "voxels": 60 + number, "dropped": 3, "reliability": 0.31, "noise_ceiling": 0.22},
            {"roi": "V2", "voxels": 30, "dropped": 0, "reliability": None, "noise_ceiling": None},
        ]
        sessions = [
            {"session": k, "trials": 130 + k, "pictures": 128, "repeated": 2, "train": 100, "validation": k, "test": 30, "runs": None, "z": 7.5 + number}
            for k in (1, 2)
        ]
        content = {"dataset": "drawings", "subject": subject, "rois": rois, "sessions": sessions}
        write_json(root / f"inspected/drawings/{subject}.json", content)
    controls = root / "reconstructions/controls/drawings"
    controls.mkdir(parents=True)
    with h5py.File(controls / "stimuli.h5", "w") as file:
        order = shown[::-1]
        file["stimulus"] = order.astype("int32")
        for name, strength in (("unconditional", 0.0), ("embedding_ceiling", 0.8), ("autoencoder_ceiling", 0.95)):
            file[name] = _noisy(truths[order], rng, strength)
        drawn = shapes(side)
        file["shapes/name"], file["shapes/image"] = list(drawn), np.stack(list(drawn.values()))
        for name in ("embedding_ceiling", "autoencoder_ceiling"):
            file[f"shapes/{name}"] = _noisy(np.stack(list(drawn.values())), rng, 0.5)
    for method, skill in METHODS.items():
        for subject, role in SUBJECTS.items():
            skill_here = skill - 0.03 * (role == "new") + rng.normal(0, 0.004)
            _reconstruct(root, method, subject, truths, shown, embedding, skill_here, samples, rng)
            _score(root, method, subject, skill_here, test, rng)
        _train(root, method, rng)
    _tabulate(root)
    return Fake(root, fake_study(), shown)


def _picture(rng: np.random.Generator, side: int) -> np.ndarray:
    y, x = np.mgrid[:side, :side] / side
    colours = rng.integers(30, 226, (2, 3))
    centre, radius = rng.uniform(0.3, 0.7, 2), rng.uniform(0.15, 0.3)
    distance = np.maximum(abs(y - centre[0]), abs(x - centre[1])) if rng.random() < 0.5 else np.hypot(y - centre[0], x - centre[1])
    return np.where((distance < radius)[..., None], colours[0], colours[1]).astype("uint8")


def _noisy(pictures: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    small = rng.integers(0, 256, (*pictures.shape[:-3], 8, 8, 3))
    noise = small.repeat(pictures.shape[-3] // 8, -3).repeat(pictures.shape[-2] // 8, -2)
    return (strength * pictures + (1 - strength) * noise).astype("uint8")


def _reconstruct(root: Path, method: str, subject: str, truths, shown, embedding, skill, samples, rng) -> None:
    path = root / f"reconstructions/{method}/drawings/{subject}.h5"
    path.parent.mkdir(parents=True, exist_ok=True)
    count = len(shown)
    many = np.repeat(truths[shown][:, None], samples, 1)
    with h5py.File(path, "w") as file:
        file["stimulus"] = shown.astype("int32")
        file["samples"] = _noisy(many, rng, skill - 0.25)
        file["shown"] = rng.integers(0, samples, count)
        file["shuffled"] = _noisy(truths[rng.permutation(shown)], rng, 0.6)
        file["predicted"] = (embedding[shown] + 0.5 * rng.normal(size=(count, 16))).astype("float32")
        file["predicted_shuffled"] = rng.normal(size=(count, 16)).astype("float32")
        file["predicted_train_nearest"] = rng.integers(0, len(truths), count)
        file.attrs.update(method=method, dataset="drawings", subject=subject)


def _entry(metric: str, level: float, rng: np.random.Generator, n: int, per_image: bool) -> dict:
    special = {
        "mse": 0.11 - 0.1 * level, "pixcorr": level - 0.2, "ssim": 0.5 * level, "perceptual_distance": 0.9 - 0.6 * level,
        "embedding_error": 1.5 - level, "classifier": level - 0.05,
    }  # fmt: skip
    value = special.get(metric, level)
    half = 0.012 + 0.004 * rng.random()
    scores = (value + 0.1 * rng.normal(size=n)).tolist() if per_image else None
    return {"value": value, "ci_low": value - half, "ci_high": value + half, "n": n, "per_image": scores}


def _score(root: Path, method: str, subject: str, skill: float, n: int, rng: np.random.Generator) -> None:
    levels = {
        "reconstruction": skill, "shuffled": 0.5 + rng.normal(0, 0.01), "chance": 0.5, "nearest-training-image": 0.88,
        "samples-mean": skill - 0.02, "mean-training-image": 0.5,
        "unconditional": 0.5, "embedding-ceiling": 0.992, "autoencoder-ceiling": 0.999,
    }  # fmt: skip
    rows = {row: {metric: _entry(metric, level, rng, n, row == "reconstruction") for metric in PANEL} for row, level in levels.items()}
    if method != "ridge":  # has no body
        rows["body-removed"] = {metric: _entry(metric, skill - 0.2, rng, n, False) for metric in OF_THE_EMBEDDING}
    rows["mean-training-image"]["ssim"] |= {"value": 0.61, "ci_low": 0.59, "ci_high": 0.63}
    rows["reconstruction"]["similarity"] = _entry("similarity", skill, rng, n, True) | {"network": "study CLIP, 64-d"}
    networks = {
        name: {"network": network, "sha256": digest * 32, "side": 64}
        for name, network, digest in (("study_clip", "study CLIP, 64-d", "ab"), ("classifier", "study classifier", "cd"))
    }
    protocol = {
        "id": "1a2b3c4d", "dataset": "drawings", "split": "test: pictures never trained on", "sessions": 4, "image_size": 64,
        "pictures": {"side": 256, "resize": "bilinear, antialiased"}, "networks": networks, "samples_per_stimulus": 3,
        "choice_of_sample": "agrees best with the encoder's own embedding",
    }  # fmt: skip
    absent = {"lpips": "weights alexnet-owt.pth not found in $UNIMIND_WEIGHTS", "inception_score": "weights inception_v3.pth not found in $UNIMIND_WEIGHTS"}
    path = root / f"metrics/drawings/{subject}/{method}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"method": method, "dataset": "drawings", "subject": subject, "protocol": protocol, "rows": rows, "absent": absent}))


def _train(root: Path, method: str, rng: np.random.Generator) -> None:
    shared = {
        "pretrain": ["masked"],
        "align/drawings": ["siamese", "embedding"],
        "condition/drawings": ["noise"],
        "adapt/drawings-subj04": ["siamese", "embedding"],
    }
    own = {"pretrain": ["masked"]} | {f"condition/drawings-{subject}": ["noise"] for subject in SUBJECTS}
    places = {"ridge": {f"enter/drawings-{subject}": [] for subject in SUBJECTS}, "mindvis": own}.get(method, shared)
    for place, terms in places.items():
        folder = root / "models" / method / place
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        if not terms:
            continue
        steps = np.arange(10, 410, 10)
        rows = []
        for number, term in enumerate([*terms, "total"]):
            curve = (0.3 + number) * (0.2 + np.exp(-steps / 90))
            rows += [(step, "train", term, value) for step, value in zip(steps, curve * (1 + 0.06 * rng.normal(size=len(steps))), strict=True)]
            rows += [(step, "validation", term, value) for step, value in zip(steps[9::10], 1.15 * curve[9::10], strict=True)]
        pd.DataFrame(rows, columns=["step", "split", "term", "value"]).to_csv(folder / "losses.csv", index=False)


def _tabulate(root: Path) -> None:
    tables = root / "tables"
    tables.mkdir()
    rows = []
    for method in METHODS:
        for subject, role in SUBJECTS.items():
            content = json.loads((root / f"metrics/drawings/{subject}/{method}.json").read_text())
            for row, scores in content["rows"].items():
                for metric, entry in ((metric, scores[metric]) for metric in PANEL if metric in scores):
                    name = method if row == "reconstruction" else f"{row}:{method}" if row in OF_A_METHOD else row
                    kind = role if row == "reconstruction" else "control"
                    better = "lower" if metric in LOWER else "higher"
                    rows.append(
                        (
                            "fake",
                            "drawings",
                            subject,
                            kind,
                            name,
                            900,
                            metric,
                            entry["value"],
                            entry["ci_low"],
                            entry["ci_high"],
                            entry["n"],
                            better,
                            "1a2b3c4d",
                        )
                    )
    columns = "study dataset subject role method trials metric value ci_low ci_high n_test better protocol".split()
    table = pd.DataFrame(rows, columns=columns).drop_duplicates(["subject", "role", "method", "metric"])
    means = table[table.subject != "subj04"].groupby(["method", "metric"], sort=False)
    average = (
        means.first()
        .assign(subject="average:train", **{key: means[key].mean() for key in ("value", "ci_low", "ci_high")}, n_test=means.n_test.sum())
        .reset_index()
    )
    pd.concat([table, average[columns]]).to_csv(tables / "reconstruction.csv", index=False)
    first, others = "unimind-convmixer", {"unimind-vit": 0.01, "mindvis": 0.001, "ridge": 0.03}
    common = ("fake", "drawings", "average:train", "pixcorr", first)
    comparisons = [(*common, other, METHODS[first] - METHODS[other], 0.0, 0.0, p, p, 300, "1a2b3c4d") for other, p in others.items()]
    names = "study dataset subject metric method_a method_b difference ci_low ci_high p p_holm n protocol".split()
    pd.DataFrame(comparisons, columns=names).to_csv(tables / "comparisons.csv", index=False)
    budgets = []
    for method, trials, metric in itertools.product(METHODS, (25, 50, 100, 900), ("study_clip", "pixcorr")):
        value = METHODS[method] - 8 / trials
        budgets.append(("fake", "drawings", "subj04", "new", method, trials, metric, value, value - 0.02, value + 0.02, 30, "higher", "1a2b3c4d"))
    pd.DataFrame(budgets, columns=columns).to_csv(tables / "adaptation.csv", index=False)
    sizes = {"unimind-convmixer": 1.9e6, "unimind-vit": 7.4e6, "mindvis": 7.4e6, "ridge": 4.2e5}
    units = {name: quantity.unit for name, quantity in QUANTITIES.items() if name != "model_parameters"}
    rows = []
    for method, size in sizes.items():
        for stage in (
            ("enter/drawings-subj01",)
            if method == "ridge"
            else ("pretrain", "condition/drawings-subj01")
            if method == "mindvis"
            else ("pretrain", "align/drawings", "condition/drawings", "adapt/drawings-subj04")
        ):
            values = (size, size * (0.04 if stage.startswith("adapt") else 1), size * 30, size * 300, 4e9 / size, size / 1e5)
            rows += [("fake", method, stage, quantity, value, unit) for (quantity, unit), value in zip(units.items(), values, strict=True)]
    pd.DataFrame(rows, columns="study method stage quantity value unit".split()).to_csv(tables / "efficiency.csv", index=False)


@pytest.fixture(scope="session")
def fake(tmp_path_factory) -> Fake:
    return build(tmp_path_factory.mktemp("report") / "results/fake")


@pytest.fixture(scope="session")
def drawn(fake):
    """The figures of the fake study."""
    from unimind.report.figures import figures

    out = fake.root / "figures"
    figures(fake.study, **fake.inputs(), out=out)
    return out


@pytest.fixture(scope="session")
def page(fake, drawn):
    """The page of the fake study."""
    from unimind.report.page import report

    out = fake.root / "report.html"
    report(fake.study, fake.overview, fake.root / "tables", drawn, fake.metrics, fake.models, out, fake.inspected)
    return out

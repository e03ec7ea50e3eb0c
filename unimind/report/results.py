"""What figures and page share: reading the tables, and the names, units and colours under which results are shown."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from unimind.errors import InputError
from unimind.study import Study

#: Okabe and Ito's colours, told apart by colour-blind readers too; methods take them in the study's order.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5195", "#8C6D31")
CONTROL_COLOUR = "#8A9099"
#: `subject` of a row that is an average over subjects.
AVERAGES = ("average", "mean", "all")
COLUMNS = ("study", "dataset", "subject", "role", "method", "trials", "metric", "value", "ci_low", "ci_high", "n_test", "better", "protocol")


@dataclass(frozen=True)
class Metric:
    """How a metric is shown: its name, direction, whether as per cent, its chance level, and what it says in one line."""

    label: str
    better: str
    percent: bool = False
    chance: float | None = None
    low_level: bool = False
    meaning: str = ""


_TWO_WAY = "how often the reconstruction is closer to the seen picture than to another test picture, in the features of {}"
METRICS: dict[str, Metric] = {
    "clip": Metric("CLIP", "higher", True, 0.5, meaning=_TWO_WAY.format("CLIP ViT-L/14")),
    "identification": Metric("Embedding two-way", "higher", True, 0.5, meaning=_TWO_WAY.format("the study's own embedding network")),
    "squeezenet": Metric("SqueezeNet", "higher", True, 0.5, meaning=_TWO_WAY.format("SqueezeNet 1.1")),
    "alexnet2": Metric("AlexNet(2)", "higher", True, 0.5, meaning=_TWO_WAY.format("AlexNet, second convolution")),
    "alexnet5": Metric("AlexNet(5)", "higher", True, 0.5, meaning=_TWO_WAY.format("AlexNet, fifth convolution")),
    "inception": Metric("Inception", "higher", True, 0.5, meaning=_TWO_WAY.format("Inception-v3")),
    "classifier": Metric("Object class", "higher", True, meaning="how often the study's classifier sees the right object in the reconstruction"),
    "nway_top1": Metric("n-way top-1", "higher", True, meaning="how often the seen picture's class wins among n - 1 random others"),
    "retrieval_forward": Metric("Image retrieval", "higher", True, meaning="how often the seen picture is the nearest one to the embedding predicted from fMRI"),
    "retrieval_backward": Metric("Brain retrieval", "higher", True, meaning="how often the right fMRI response is the nearest one to the picture's embedding"),
    "effnet": Metric("EffNet-B1", "lower", meaning="correlation distance of EfficientNet-B1 features"),
    "swav": Metric("SwAV", "lower", meaning="correlation distance of SwAV ResNet-50 features"),
    "lpips": Metric("LPIPS", "lower", meaning="learned perceptual distance"),
    "perceptual_distance": Metric("Perceptual distance", "lower", meaning="distance of the features of a network named in the protocol"),
    "fid": Metric("FID", "lower", meaning="distance of the two sets' Inception feature distributions"),
    "inception_score": Metric("Inception Score", "higher", meaning="sharpness and variety of the pictures by Inception-v3; knows nothing of what was seen"),
    "classifier_score": Metric("Classifier score", "higher", meaning="sharpness and variety of the pictures by the study's classifier; knows nothing of what was seen"),
    "pixcorr": Metric("PixCorr", "higher", low_level=True, meaning="correlation of pixel values"),
    "ssim": Metric("SSIM", "higher", low_level=True, meaning="structural similarity of the grey pictures"),
    "mse": Metric("MSE", "lower", low_level=True, meaning="mean squared difference of pixel values in [0, 1]"),
}  # fmt: skip
#: Metrics that say whether the right picture was read, best known first: the page's headline and the order of pictures.
HEADLINES = ("clip", "identification", "squeezenet", "alexnet5", "inception", "classifier", "nway_top1", "retrieval_forward")

#: Control -> (name shown, what it is and what it tells, in one sentence).
CONTROLS: dict[str, tuple[str, str]] = {
    "shuffled": ("Shuffled fMRI", "The same model given the fMRI of another test picture: whatever it still scores does not come from the brain."),
    "chance": ("Chance", "The model's reconstruction of another test picture is compared with this one: the level of a decoder that knows only what pictures look like."),
    "nearest-training-image": ("Nearest training image", "No picture is made: the training picture whose embedding is nearest to the one predicted from fMRI is shown."),
    "mean-training-image": ("Mean training image", "One grey blur for every trial, the pixel average of the training pictures; what beats a method here rewards blur."),
    "unconditional": ("Unconditional samples", "The diffusion model draws without any condition: pictures that look right and have nothing to do with what was seen."),
    "embedding-ceiling": ("Ceiling: true embedding", "The decoder is given the seen picture's true embedding instead of a prediction: perfect brain reading by this decoder would score this."),
    "autoencoder-ceiling": ("Ceiling: autoencoder", "The seen picture goes through the autoencoder and back: nothing that decodes through it can look closer than this."),
}  # fmt: skip


def metric(name: str) -> Metric:
    """How a metric is shown; a metric unknown here keeps its own name."""
    return METRICS.get(name, Metric(name, "higher"))


def ordered(metrics: Iterable[str]) -> list[str]:
    """Metrics in the order shown: identification first, distances next, low-level last, unknown ones at the end."""
    known = list(METRICS)
    return sorted(set(metrics), key=lambda name: (known.index(name) if name in known else len(known), name))


def text(name: str, value: float) -> str:
    """A value as the page and the figures print it, without its unit: per cent with one decimal, else about three digits."""
    if metric(name).percent:
        return f"{100 * value:.1f}"
    return f"{value:.1f}" if abs(value) >= 100 else f"{value:.3f}" if abs(value) >= 0.1 else f"{value:.4f}"


def labels(study: Study) -> dict[str, str]:
    """Method -> name shown."""
    return {key: method.label or key for key, method in study.methods.items()}


def colours(study: Study) -> dict[str, str]:
    """Method -> colour, the same in every figure."""
    return {key: PALETTE[index % len(PALETTE)] for index, key in enumerate(study.methods)}


def read_table(tables: Path, name: str) -> pd.DataFrame | None:
    """`tables/<name>.csv`, or None where there is none or no row in it.

    Raises
    ------
    InputError
        The file is not a table.
    """
    path = Path(tables) / f"{name}.csv"
    if not path.exists() or not path.stat().st_size:
        return None
    try:
        table = pd.read_csv(path, dtype={"subject": str, "trials": str, "protocol": str}, keep_default_na=False, na_values=["", "nan", "NaN"])
    except (pd.errors.ParserError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a table ({error}); delete it and run tabulate again") from None
    return None if table.empty else table


def read_scores(study: Study, tables: Path, name: str = "reconstruction") -> pd.DataFrame | None:
    """A table of scores with two more columns: `control` (None for a method's own row) and `of` (the method a row belongs to, or None).

    Raises
    ------
    InputError
        A column is missing.
    """
    table = read_table(tables, name)
    if table is None:
        return None
    missing = [column for column in COLUMNS if column not in table]
    if missing:
        raise InputError(f"{tables}/{name}.csv: no column {', '.join(missing)}; delete it and run tabulate again")
    keys = {**{label: key for key, label in labels(study).items()}, **{key: key for key in study.methods}}
    found = {row: _control(row, keys) for row in set(zip(table.role, table.method, strict=True))}
    pairs = [found[row] for row in zip(table.role, table.method, strict=True)]
    table["control"] = pd.Series([control for control, _ in pairs], index=table.index, dtype=object)
    table["of"] = pd.Series([method for _, method in pairs], index=table.index, dtype=object)
    return table


def _control(row: tuple[str, str], keys: dict[str, str]) -> tuple[str | None, str | None]:
    """(control, method) that a row's role and method column name; a control's own name may stand beside the method's."""
    role, name = row
    if role != "control":
        return None, keys.get(name, name)
    plain = name.lower().replace(" ", "-").replace("_", "-")
    control = next((known for known in sorted(CONTROLS, key=len, reverse=True) if known in plain), None)
    method = next((keys[known] for known in sorted(keys, key=len, reverse=True) if known in name), None)
    return control or name, method


def average(scores: pd.DataFrame, role: str) -> pd.DataFrame:
    """One row per (dataset, method, metric): the table's own average over the subjects of a role, their only subject, or else their plain mean.

    A plain mean has no interval (NaN): one over images cannot be had from the subjects' intervals.
    """
    rows = []
    subjects = scores.loc[(scores.role == role) & ~scores.subject.isin(AVERAGES), ["dataset", "subject"]].drop_duplicates()
    wanted = scores[(scores.role == role) | (scores.control.notna())]
    for (dataset, *_), group in wanted.groupby(["dataset", "method", "metric"], sort=False):
        own = group[group.subject.isin(AVERAGES)]
        if len(own):
            rows.append(own.iloc[0].to_dict())
            continue
        single = group[group.subject.isin(subjects.subject[subjects.dataset == dataset])]
        if len(single):
            row = single.iloc[0].to_dict()
            if len(single) > 1:
                row |= {"value": single.value.mean(), "ci_low": float("nan"), "ci_high": float("nan"), "subject": "mean"}
            rows.append(row)
    return pd.DataFrame(rows, columns=scores.columns)


def headline(scores: pd.DataFrame) -> str | None:
    """The metric the page opens with: the best known identification metric that the table has."""
    present = set(scores.metric)
    return next((name for name in HEADLINES if name in present), None)

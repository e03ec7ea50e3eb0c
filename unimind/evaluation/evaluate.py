"""Stage `evaluate`: the measures and a picture grid for anybody's reconstructions, without a study."""

import csv
from pathlib import Path
from typing import Any

import numpy as np

from unimind.data.pixels import bounds, to_bytes, white_of
from unimind.data.sources.arrayfile import datasets, read_array
from unimind.data.sources.base import AGAIN, as_rgb, reading
from unimind.data.sources.pictures import PICTURE_ENDINGS, pictures_in
from unimind.errors import InputError
from unimind.evaluation import layout
from unimind.evaluation.measures import MEASURES, PANEL
from unimind.evaluation.panel import Panel, measure, picture_protocol, warnings
from unimind.evaluation.pictures import SIDE, PictureSet, resize
from unimind.evaluation.score import summarise
from unimind.progress import say
from unimind.storage import content_hash, whole_file
from unimind.study import Evaluation

ARRAYS = (".npy", ".npz", ".h5", ".hdf5")
#: Measures that need more than two sets of pictures.
NEED_A_STUDY = dict.fromkeys(
    ("retrieval_forward", "retrieval_backward"), "compares the image embeddings an encoder predicts with the true ones; pictures alone have no prediction"
)
GRID_PAIRS = 24


def evaluate(truth: Path, reconstruction: Path, out: Path, weights: Path | None = None, bootstrap: str | None = None, batch_size: str | None = None) -> None:
    """Write `out/metrics.csv` (metric, value, ci_low, ci_high, n), `out/metrics.md` and `out/grid.png`, and touch nothing else in `out`.

    Parameters
    ----------
    truth, reconstruction : path
        Folders of picture files, matched by name without ending; or arrays (n, H, W[, 1 | 3 | 4]) or (n, 1 | 3 | 4, H, W), in
        [0, 255] or [0, 1], or uint16 in [0, 65535], as .npy, .npz or .h5 (its only array, or the one called `images`), matched by order. A folder
        against an array is matched by order too, with the numbers in file names compared as numbers.
    weights : path, optional
        Folder with the panel's weights; by default `$UNIMIND_WEIGHTS`.

    Raises
    ------
    InputError
        When the two sets do not match, or hold something that is not a picture; when `out` is, holds, or lies in one of them.
    """
    _refuse_in_the_way(out, truth, reconstruction)
    defaults = Evaluation()
    resamples, size = _number(bootstrap, defaults.bootstrap, "--bootstrap"), _number(batch_size, defaults.batch_size, "--batch-size")
    truths, pictures, names = read_pairs(truth, reconstruction)
    n = len(names)
    wanted = [*(name for name in PANEL if name not in NEED_A_STUDY), "squeezenet", "lpips_squeeze"]
    panel = Panel.of(wanted, weights or defaults.weights, defaults.squeezenet)
    say(f"{n} pairs of pictures; measures: {', '.join(name for name in wanted if name not in panel.absent)}")
    measured = measure(panel, truths, pictures, {"reconstruction": np.arange(n)}, size)
    for pictures_of, path in ((truths, truth), (pictures, reconstruction)):
        pictures_of.forms.say(str(path))
    values = summarise(measured, wanted, resamples, seed=0)["reconstruction"]
    protocol = {"pictures": picture_protocol(), "networks": panel.protocol(), "n": n}
    notes = layout.absences("Absent", [(MEASURES[name].title, reason, "") for name, reason in (panel.absent | NEED_A_STUDY).items()], [""])
    notes += [f"{note}." for note in warnings(measured["reconstruction"], n)]
    with whole_file(out / "metrics.csv") as file, open(file, "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["metric", "value", "ci_low", "ci_high", "n"])
        for name, entry in values.items():
            ends = ("" if entry[key] is None else entry[key] for key in ("ci_low", "ci_high"))
            writer.writerow([name, entry["value"], *ends, n if entry["n"] is None else entry["n"]])
    with whole_file(out / "metrics.md") as file:
        file.write_text(_markdown(values, notes, protocol, truth, reconstruction, n))
    order = _ranked(measured["reconstruction"], n)
    with whole_file(out / "grid.png") as file:
        _grid(truths, pictures, order).save(file)
    by = f"similarity in the features of {MEASURES[panel.similarity].title}" if panel.similarity else MEASURES["ssim"].title
    say(f"{out / 'metrics.csv'}, metrics.md, grid.png ({min(n, GRID_PAIRS)} pairs from best to worst by {by})")


def _refuse_in_the_way(out: Path, *inputs: Path) -> None:
    """InputError where writing into `out` could touch what is measured."""
    own = out.resolve()
    for given in inputs:
        other = given.resolve()
        if own == other or (given.is_dir() and (own in other.parents or other in own.parents)):
            raise InputError(f"--out {out}: is, holds or lies in {given}, which is to be measured; give a folder apart from the pictures")
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: a file; give a folder")


def _number(text: str | None, default: int, option: str) -> int:
    if text is None:
        return default
    if not text.isdigit() or int(text) < 1:
        raise InputError(f"{option}: {text!r} given; expected a whole number above 0")
    return int(text)


def read_pairs(truth: Path, reconstruction: Path) -> tuple[PictureSet, PictureSet, list[str]]:
    """Both picture sets, brought into the same order, and the pictures' names."""
    first, second = _read(truth), _read(reconstruction)
    if isinstance(first, dict) and isinstance(second, dict):
        missing, surplus = sorted(set(first) - set(second)), sorted(set(second) - set(first))
        if missing:
            raise InputError(f"{reconstruction}: no picture for {_some(missing)} of {truth}; files are matched by name without ending")
        if surplus:
            raise InputError(f"{truth}: no picture for {_some(surplus)} of {reconstruction}; files are matched by name without ending")
        names = list(first)
        return PictureSet([first[name] for name in names]), PictureSet([second[name] for name in names]), names
    a, b = (list(x.values()) if isinstance(x, dict) else x for x in (first, second))
    if len(a) != len(b):
        raise InputError(f"{reconstruction}: {len(b)} pictures, but {truth} has {len(a)}; give as many reconstructions as truths, in the same order")
    return PictureSet(a), PictureSet(b), [str(i) for i in range(len(a))]


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _read(path: Path) -> dict[str, Path] | np.ndarray:
    """Files of a folder by name, in number order, or an array (n, H, W, 3)."""
    if path.is_dir():
        files = [file for file in pictures_in(path) if file.parent == path]
        if not files:
            raise InputError(f"{path}: no {', '.join(sorted(PICTURE_ENDINGS))} files in this folder")
        named: dict[str, Path] = {}
        for file in files:
            if file.stem in named:
                raise InputError(f"{path}: {named[file.stem].name} and {file.name} have the same name; keep one of them")
            named[file.stem] = file
        return named
    if not path.exists():
        raise InputError(f"{path}: no such folder or file")
    if path.suffix.lower() not in ARRAYS:
        raise InputError(f"{path}: neither a folder of pictures nor one of {', '.join(ARRAYS)}")
    return _as_pictures(_array(path), path)


def _array(path: Path) -> np.ndarray:
    import h5py

    names = None
    with reading(path, "a readable array", AGAIN):
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as held:
                names = list(held)
        elif path.suffix != ".npy":
            with h5py.File(path, "r") as file:
                held, linked = datasets(file)
                names = [*held, *linked]
    array = read_array(path, None if names is None else _only(names, path))
    with reading(path, "a readable array", AGAIN):
        return np.asarray(array)


def _only(keys: list[str], path: Path) -> str:
    if "images" in keys:
        return "images"
    if len(keys) != 1:
        raise InputError(f"{path}: holds {', '.join(keys) or 'no array'}; expected one array, or one called images")
    return keys[0]


def _as_pictures(values: np.ndarray, path: Path) -> np.ndarray:
    if values.ndim == 4 and values.shape[-1] not in (1, 3, 4) and values.shape[1] in (1, 3, 4):
        values = values.transpose(0, 2, 3, 1)
    if values.ndim not in (3, 4) or values.ndim == 4 and values.shape[-1] not in (1, 3, 4) or not len(values):
        raise InputError(f"{path}: shape {values.shape}; expected (n, H, W, 3) or (n, 3, H, W)")
    if values.dtype == np.uint8:
        return np.stack([as_rgb(picture) for picture in values])
    white = white_of(values.dtype, *bounds(values, path), path)
    if values.dtype.kind == "f" and values.ndim == 4 and values.shape[-1] == 3:
        return (values / white).astype(np.float32)  # as exact as they are given
    return np.stack([as_rgb(to_bytes(picture, white)) for picture in values])


def _markdown(values: dict[str, dict[str, Any]], notes: list[str], protocol: dict[str, Any], truth: Path, reconstruction: Path, n: int) -> str:
    lines = [
        f"# {n} reconstructions",
        "",
        f"Truths: `{truth}`; reconstructions: `{reconstruction}`.",
        "",
        "| measure | value | 95 % interval | chance | better |",
        "|---|---|---|---|---|",
    ]
    for name, entry in values.items():
        kind = MEASURES[name]
        interval = "-" if entry["ci_low"] is None else f"[{kind.shown(entry['ci_low'])}, {kind.shown(entry['ci_high'])}]"
        chance = "-" if kind.chance is None else kind.shown(kind.chance)
        lines.append(f"| {kind.title}{' %' if kind.percent else ''} | {kind.shown(entry['value'])} | {interval} | {chance} | {kind.better} |")
    lines += [
        "",
        *(f"- {note}" for note in notes),
        "",
        f"Protocol {content_hash(protocol)[:8]}: pictures brought to {SIDE} x {SIDE} (bilinear, antialiased) and clamped;",
    ]
    lines += [f"SSIM ({protocol['pictures']['ssim']}) and PixCorr at {protocol['pictures']['detail_side']}."]
    lines += [f"- {MEASURES[name].title}: {network['network']}, SHA-256 `{network['sha256'][:16]}`" for name, network in protocol["networks"].items()]
    return "\n".join(lines) + "\n"


def _ranked(measured: dict[str, Any], n: int) -> np.ndarray:
    """Pairs from best to worst by the best measure of alikeness there is, thinned evenly to the grid's size."""
    order = np.argsort(-measured["similarity" if "similarity" in measured else "ssim"], kind="stable")
    return order[np.unique(np.linspace(0, n - 1, min(n, GRID_PAIRS)).round().astype(int))]


def _grid(truths: PictureSet, pictures: PictureSet, order: np.ndarray, side: int = 128, across: int = 8) -> Any:
    """Truths above their reconstructions, in reading order."""
    from PIL import Image

    gap = 6
    down = -(-len(order) // across)
    canvas = np.full((down * (2 * side + 2 * gap), min(across, len(order)) * (side + gap), 3), 255, np.uint8)
    for k, i in enumerate(order.tolist()):
        top, left = k // across * (2 * side + 2 * gap), k % across * (side + gap)
        for row, source in enumerate((truths, pictures)):
            picture = (resize(source.batch([i]), side)[0].permute(1, 2, 0) * 255).round().byte().numpy()
            canvas[top + row * side : top + (row + 1) * side, left : left + side] = picture
    return Image.fromarray(canvas)

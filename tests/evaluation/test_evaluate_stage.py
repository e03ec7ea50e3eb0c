"""`unimind evaluate` on folders and arrays, and the self-checks of the measures."""

import csv
import io
import json
import os
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import torchvision.models
from evaluation_fakes import scenes, write_foundations
from independent_table import moved, noisy, random_weights
from PIL import Image, ImageFilter
from safetensors.torch import save_file

from unimind.blocks import Blocks
from unimind.cli import main
from unimind.data.drawn import combinations, render
from unimind.errors import InputError
from unimind.evaluation.evaluate import evaluate, read_pairs
from unimind.evaluation.measures import MEASURES
from unimind.evaluation.metrics import retrieval
from unimind.evaluation.networks import WEIGHTS_OF
from unimind.evaluation.panel import Panel, Whole, measure, measured_in
from unimind.evaluation.pictures import Joined, PictureSet, resize
from unimind.evaluation.score import summarise
from unimind.evaluation.statistics import bootstrap
from unimind.evaluation.tabulate import tabulate
from unimind.reconstruction.tested import derangement


@pytest.fixture(autouse=True)
def no_weights(monkeypatch):
    monkeypatch.delenv("UNIMIND_WEIGHTS", raising=False)
    monkeypatch.delenv("UNIMIND_REAL_DATA", raising=False)


def write(folder, images, suffix=".png"):
    folder.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"picture{i}{suffix}")
    return folder


def test_two_folders_give_a_table_and_a_grid(tmp_path):
    truth = write(tmp_path / "truth", scenes(3, 30))
    guess = write(tmp_path / "guess", scenes(3, 44, 1), ".jpg")
    assert main(["evaluate", "--truth", str(truth), "--reconstruction", str(guess), "--out", str(tmp_path / "out"), "--bootstrap", "50"]) == 0
    with open(tmp_path / "out" / "metrics.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == ["metric", "value", "ci_low", "ci_high", "n"]
    assert [row["metric"] for row in rows] == ["pixcorr", "ssim", "mse"]
    for row in rows:
        assert float(row["ci_low"]) <= float(row["value"]) <= float(row["ci_high"]) and row["n"] == "3"
    text = (tmp_path / "out" / "metrics.md").read_text()
    assert "Absent: CLIP" in text and "Protocol" in text
    assert Image.open(tmp_path / "out" / "grid.png").width > 100


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".h5"])
def test_arrays_are_read_and_give_what_folders_give(tmp_path, suffix):
    images = scenes(3, 20)
    path = tmp_path / f"images{suffix}"
    if suffix == ".npy":
        np.save(path, images.transpose(0, 3, 1, 2) / 255.0)
    elif suffix == ".npz":
        np.savez(path, images=images, other=np.zeros(2))
    else:
        with h5py.File(path, "w") as file:
            file["pictures"] = images
    first, second, _ = read_pairs(write(tmp_path / "folder", images), path)
    from unimind.evaluation.metrics import mse

    assert mse(first.batch([2, 0, 1]), second.batch([2, 0, 1])).max() < 1e-6


def test_what_does_not_match_is_refused_by_name(tmp_path):
    images = scenes(4, 16)
    four, three = write(tmp_path / "four", images), write(tmp_path / "three", images[:3])
    with pytest.raises(InputError, match="three: no picture for picture3"):
        read_pairs(four, three)
    with pytest.raises(InputError, match="three: no picture for picture3"):
        read_pairs(three, four)
    np.save(tmp_path / "a.npy", images)
    with pytest.raises(InputError, match="4 pictures, but .* has 3"):
        read_pairs(three, tmp_path / "a.npy")
    np.save(tmp_path / "b.npy", images[0, ..., 0])
    with pytest.raises(InputError, match="expected"):
        read_pairs(four, tmp_path / "b.npy")
    np.save(tmp_path / "c.npy", images.astype(float) - 9)
    with pytest.raises(InputError, match="expected 0 to 255, or 0 to 1"):
        read_pairs(four, tmp_path / "c.npy")
    for name, values in (("floats to 255", images.astype(float)), ("floats to 1", images / 255), ("16 bits", images.astype(np.uint16) * 257)):
        np.save(tmp_path / "d.npy", values.transpose(0, 3, 1, 2) if name == "16 bits" else values)
        np.testing.assert_allclose(read_pairs(four, tmp_path / "d.npy")[1].batch(range(4)), images.transpose(0, 3, 1, 2) / 255, atol=1e-6, err_msg=name)
    with h5py.File(tmp_path / "e.h5", "w") as file:
        file["images"] = h5py.ExternalLink("elsewhere.h5", "images")
    with pytest.raises(InputError, match="images is a link to another file, elsewhere.h5"):
        read_pairs(four, tmp_path / "e.h5")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty: no .*.png"):
        read_pairs(tmp_path / "empty", four)
    (three / "picture3.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match="picture3.png: not a readable picture"):
        evaluate(four, three, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert main(["evaluate", "--truth", str(tmp_path / "none"), "--reconstruction", str(four), "--out", str(tmp_path / "out")]) == 2


@pytest.mark.parametrize("place", ["truth", "truth/scores", ".", "guess"])
def test_what_is_measured_is_never_written_into(tmp_path, monkeypatch, place):
    truth, guess = write(tmp_path / "truth", scenes(2, 16)), write(tmp_path / "guess", scenes(2, 16, 1))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.png")}
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"--out .*: is, holds or lies in"):
        evaluate(truth, guess, Path(place))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_files_of_others_in_the_folder_survive(tmp_path):
    truth = write(tmp_path / "truth", scenes(2, 16))
    out = write(tmp_path / "out", scenes(1, 16))
    (out / "notes").mkdir()
    (out / "notes" / "mine.txt").write_text("mine")
    (out / "metrics.csv").write_text("old")
    for _ in range(2):
        evaluate(truth, truth, out, bootstrap="20")
    assert {path.name for path in out.iterdir()} == {"picture0.png", "notes", "metrics.csv", "metrics.md", "grid.png"}
    assert (out / "notes" / "mine.txt").read_text() == "mine" and (out / "metrics.csv").read_text() != "old"
    np.save(tmp_path / "array.npy", scenes(2, 16))
    with pytest.raises(InputError, match="--out"):
        evaluate(truth, tmp_path / "array.npy", tmp_path / "array.npy")


def test_a_folder_against_an_array_is_paired_in_number_order(tmp_path):
    images = scenes(12, 16)
    folder = write(tmp_path / "folder", images)  # picture0 ... picture11: as text, picture10 comes before picture2
    np.save(tmp_path / "array.npy", images)
    for pair in ((folder, tmp_path / "array.npy"), (tmp_path / "array.npy", folder), (folder, write(tmp_path / "copy", images))):
        first, second, _ = read_pairs(*pair)
        for pictures in (first, second):
            np.testing.assert_allclose(resize(torch.from_numpy(images).permute(0, 3, 1, 2) / 255, 256), resize(pictures.batch(range(12)), 256), atol=1e-6)


def test_it_says_why_retrieval_is_absent(tmp_path):
    truth = write(tmp_path / "truth", scenes(2, 16))
    evaluate(truth, truth, tmp_path / "out", bootstrap="20")
    line = next(line for line in (tmp_path / "out" / "metrics.md").read_text().splitlines() if line.startswith("- Absent: Retrieval"))
    assert "(image to brain), Retrieval (brain to image): compares the image embeddings an encoder predicts with the true ones" in line


# --- self-checks ------------------------------------------------------------------------------------------------

BEST = dict.fromkeys(("mse", "lpips", "lpips_squeeze", "fid_torchvision", "effnet", "swav", "perceptual_distance"), 0) | dict.fromkeys(
    ("pixcorr", "ssim", "alexnet2", "alexnet5", "inception", "clip", "study_clip", "squeezenet", "classifier"), 1
)


@pytest.fixture(scope="module")
def squeezenet(tmp_path_factory):
    """SqueezeNet 1.1 with random weights: its features see texture and colour, wherever they are."""
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "squeezenet.safetensors"
    save_file({key: value.contiguous() for key, value in torchvision.models.squeezenet1_1(weights=None).state_dict().items()}, file)
    return str(file)


FAST = [
    "mse", "pixcorr", "ssim", "lpips", "alexnet2", "alexnet5", "study_clip", "nway_top1", "squeezenet", "lpips_squeeze", "classifier", "perceptual_distance",
]  # fmt: skip


LARGEST = pytest.param(["inception", "fid_torchvision", "effnet", "swav"], marks=pytest.mark.slow)


@pytest.mark.parametrize("wanted", [FAST, LARGEST], ids=["most", "largest networks"])
def test_truth_is_best_and_permuted_truth_is_at_chance(wanted, squeezenet, fakes, tmp_path):
    """Drawn pictures and the panel's own architectures, their weights random (the two largest in small)."""
    folder = write_foundations(tmp_path)
    n = 16
    truths = render(combinations("foundations", 2, n), 48).images
    pictures, index = truths, {"truth": np.arange(n), "permuted": derangement(n)}
    with random_weights([name for name in wanted if name in WEIGHTS_OF]) as (weights, _):
        panel = Panel.of(wanted, weights, squeezenet, folder / "embedding", folder / "classifier")
        assert not panel.absent
        found = measure(panel, PictureSet(truths), PictureSet(pictures), index, 16)
    for name in wanted:
        value = found["truth"][name]
        if name == "nway_top1":
            np.testing.assert_array_equal(value, 1)
        else:
            np.testing.assert_allclose(value.value if isinstance(value, Whole) else value, BEST[name], atol=1e-4, err_msg=name)
    for name in {"alexnet2", "alexnet5", "inception", "study_clip", "squeezenet"} & set(wanted):
        low, high = bootstrap(found["permuted"][name])
        assert low < MEASURES[name].chance < high, name
        assert high < 0.75, f"{name}: too uncertain to say anything"
    for name in set(wanted) - {"nway_top1", "fid_torchvision", "inception"}:
        lower = MEASURES[name].better == "lower"
        assert (np.mean(found["permuted"][name]) > np.mean(found["truth"][name])) == lower, name


def test_what_is_measured_in_blocks_is_what_is_measured_at_once_and_no_block_is_made_twice(squeezenet, fakes, tmp_path, monkeypatch):
    """Every kind of measure; rows that share a picture, that give every picture two truths, and of several samples."""
    folder = write_foundations(tmp_path)
    truths, n = render(combinations("foundations", 2, 11), 48).images, 11
    pictures = np.concatenate([truths, noisy(truths, 40), noisy(truths, 90)])
    rows = {"one": n + np.arange(n), "chance": n + derangement(n), "mean": np.zeros(n, int), "samples": np.stack([n + np.arange(n), 2 * n + np.arange(n)], 1)}
    wanted = ["mse", "ssim", "alexnet2", "squeezenet", "lpips_squeeze", "classifier", "classifier_score", "perceptual_distance"]
    with random_weights(["alexnet2"]) as (weights, _):
        panel = Panel.of(wanted, weights, squeezenet, folder / "embedding", folder / "classifier")
        whole = measure(panel, PictureSet(truths), PictureSet(pictures), rows, 4)
        monkeypatch.setattr("unimind.evaluation.pairs.TRUTHS_A_BLOCK", 3)
        monkeypatch.setattr("unimind.evaluation.pairs.PICTURES_A_BLOCK", 5)
        monkeypatch.setattr("unimind.evaluation.panel.PICTURES_A_BLOCK", 5)

        def kept():
            return measured_in(Blocks(tmp_path / "kept", "a"), panel, PictureSet(truths), PictureSet(pictures), rows, 4, lambda network: None)()

        first = kept()
        with monkeypatch.context() as context:
            context.setattr(PictureSet, "batch", None)
            again = kept()
    for row, measures in whole.items():
        assert measures.keys() == first[row].keys() == again[row].keys()
        for name, values in measures.items():
            numbers = [one.value if isinstance(one, Whole) else one for one in (values, first[row][name], again[row][name])]
            np.testing.assert_allclose(numbers[1], numbers[0], rtol=1e-5, atol=1e-6, err_msg=f"{row} {name}")
            np.testing.assert_array_equal(numbers[2], numbers[1])


def test_retrieval_of_permuted_predictions_is_at_chance_and_of_the_truth_perfect():
    random = np.random.default_rng(0)
    truth = random.normal(size=(80, 6))
    for hits in retrieval(truth, truth):
        np.testing.assert_array_equal(hits, 1)
    predicted = truth + random.normal(size=truth.shape)
    permutations = np.array([retrieval(truth, predicted[random.permutation(80)]) for _ in range(100)])
    for own, permuted in zip(retrieval(truth, predicted), permutations.mean(0), strict=True):
        low, high = bootstrap(permuted)
        assert low < 1 / 80 < high < bootstrap(own)[0]
        assert high - low < 1 / 80, "too uncertain to say anything"


@pytest.fixture(scope="module")
def drawn_rows(squeezenet):
    """Drawn truths blurred, the same objects elsewhere, the mean of other pictures, and noisy truths: summaries of every row."""
    n = 24
    numbers = combinations("foundations", 3, n)
    truths = render(numbers, 64).images
    rows = {
        "blurred": np.stack([np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(12))) for image in truths]),
        "moved": render(moved(numbers), 64).images,
        "moved and noisy": noisy(render(moved(numbers), 64).images, 60),
        "mean": np.broadcast_to(render(combinations("foundations", 4, 200), 64).images.mean(0).astype(np.uint8), truths.shape),
        "noisy": noisy(truths, 15),
    }
    pictures = Joined()
    index = {row: pictures.add(values) for row, values in rows.items()}
    wanted = ["pixcorr", "ssim", "squeezenet"]
    found = measure(Panel.of(wanted, None, squeezenet), PictureSet(truths), PictureSet(pictures), index, 24)
    return summarise(found, wanted, 300, 0)


def test_a_blurred_drawing_wins_low_level_but_not_the_semantic_measure(drawn_rows):
    """Of a network with random weights: no downloaded file is needed to see it."""
    blurred, moved_ = drawn_rows["blurred"], drawn_rows["moved"]
    assert blurred["pixcorr"]["ci_low"] > moved_["pixcorr"]["ci_high"]
    assert blurred["ssim"]["value"] > moved_["ssim"]["value"]
    assert blurred["squeezenet"]["ci_high"] < moved_["squeezenet"]["ci_low"]


def test_the_tables_say_where_blur_wins(drawn_rows, scored, tmp_path):
    """A method whose pictures show the right object elsewhere, beside the mean training image; then a method that is simply better."""
    tiny, files = scored
    for reconstruction, control, said in (("moved and noisy", "mean", True), ("moved", "blurred", True), ("noisy", "mean", False)):
        rows = {"reconstruction": drawn_rows[reconstruction], "mean-training-image": drawn_rows[control]}
        for path in files.values():
            path.write_text(json.dumps(json.loads(path.read_text()) | {"rows": rows, "stimulus": list(range(24))}))
        folder = tmp_path / f"{reconstruction}-{control}"
        tabulate(tiny.study, list(files.values()), [], folder)
        text = (folder / "reconstruction.md").read_text()
        words = [line for line in text.splitlines() if "which shows nothing, beats every method in" in line]
        assert len(words) == (len({subject for _, subject in files}) + 1 if said else 0), "a sentence per subject and for the average"
        for line in words:
            numbers = [
                f"{MEASURES[name].title} ({drawn_rows[control][name]['value']:.3f} against {drawn_rows[reconstruction][name]['value']:.3f})"
                for name in ("pixcorr", "ssim")
            ]
            numbers += [
                f"SqueezeNet ({100 * drawn_rows[control]['squeezenet']['value']:.1f} against {100 * drawn_rows[reconstruction]['squeezenet']['value']:.1f})"
            ]
            assert all(part in line for part in numbers) and "reward blur" in line


REAL = os.environ.get("UNIMIND_REAL_DATA", "")


@pytest.mark.skipif(not Path(REAL, "weights", "squeezenet1_1.safetensors").is_file(), reason="UNIMIND_REAL_DATA has no SqueezeNet weights and pictures")
def test_a_blurred_truth_wins_low_level_but_not_semantics():
    """Real pictures: blurred truths against their mirror images, which show the same things in other places."""
    n = 12
    with zipfile.ZipFile(next(Path(REAL, "data", "macaque_v4").glob("*/images.zip"))) as archive:
        names = [name for name in sorted(archive.namelist()) if name.endswith(".jpg")][:n]
        images = [Image.open(io.BytesIO(archive.read(name))).convert("RGB") for name in names]
    truths = np.stack([np.asarray(image) for image in images])
    blurred = np.stack([np.asarray(image.filter(ImageFilter.GaussianBlur(12))) for image in images])
    rows = {"blurred": blurred, "mirrored": truths[:, :, ::-1]}
    pictures = Joined()
    index = {row: pictures.add(values) for row, values in rows.items()}
    panel = Panel.of(["pixcorr", "ssim", "squeezenet", "lpips_squeeze"], None, str(Path(REAL, "weights", "squeezenet1_1.safetensors")))
    assert panel.protocol()["lpips_squeeze"]["network"].startswith("LPIPS-squeeze")
    found = measure(panel, PictureSet(truths), PictureSet(pictures), index, 8)
    value = {row: {name: values.mean() for name, values in found[row].items()} for row in rows}
    for name in ("pixcorr", "ssim"):
        assert value["blurred"][name] > value["mirrored"][name]
    assert value["blurred"]["squeezenet"] < value["mirrored"]["squeezenet"]
    assert value["mirrored"]["squeezenet"] > 0.9


def test_a_picture_that_is_a_link_to_nothing_and_hidden_files(tmp_path):
    for name in ("truth", "made"):
        (tmp_path / name).mkdir()
        for k in range(3):
            Image.fromarray(np.random.default_rng(k).integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(tmp_path / name / f"{k}.png")
    (tmp_path / "truth/._0.png").write_bytes(b"Mac OS X")
    assert read_pairs(tmp_path / "truth", tmp_path / "made")[2] == ["0", "1", "2"]
    (tmp_path / "made/1.png").unlink()
    (tmp_path / "made/1.png").symlink_to("../.git/annex/objects/1.png")
    with pytest.raises(InputError, match="made/1.png: a link to a file that is not here"):
        evaluate(tmp_path / "truth", tmp_path / "made", tmp_path / "out", bootstrap="5")

"""`unimind evaluate` on folders and arrays, and the self-checks of the measures."""

import csv
import io
import os
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from evaluation_fakes import scenes
from PIL import Image, ImageFilter

from unimind.cli import main
from unimind.errors import InputError
from unimind.evaluation.controls import derangement, distinct
from unimind.evaluation.evaluate import evaluate, read_pairs
from unimind.evaluation.panel import Panel, measure
from unimind.evaluation.pictures import Pictures
from unimind.evaluation.statistics import bootstrap


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
    assert [row["metric"] for row in rows] == ["mse", "pixcorr", "ssim"]
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
    np.save(tmp_path / "b.npy", images[..., 0])
    with pytest.raises(InputError, match="expected"):
        read_pairs(four, tmp_path / "b.npy")
    np.save(tmp_path / "c.npy", images.astype(float))
    with pytest.raises(InputError, match=r"floats in \[0, 1\]"):
        read_pairs(four, tmp_path / "c.npy")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no .png"):
        read_pairs(tmp_path / "empty", four)
    (three / "picture3.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match="picture3.png: not a readable picture"):
        evaluate(four, three, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert main(["evaluate", "--truth", str(tmp_path / "none"), "--reconstruction", str(four), "--out", str(tmp_path / "out")]) == 2


def test_truth_is_best_and_permuted_truth_is_at_chance(fakes, tmp_path):
    from evaluation_fakes import write_foundations

    folder = write_foundations(tmp_path)
    n = 20
    truths = scenes(n, 32)
    pictures, index = distinct({"truth": truths, "permuted": truths[derangement(n)]})
    assert len(pictures) == n
    wanted = ["mse", "pixcorr", "ssim", "clip", "classifier", "perceptual_distance"]
    found = measure(Panel.of(wanted, None, None, folder / "embedding", folder / "classifier"), Pictures(truths), Pictures(pictures), index, 16)
    for name, best in (("mse", 0), ("pixcorr", 1), ("ssim", 1), ("clip", 1), ("classifier", 1), ("perceptual_distance", 0)):
        np.testing.assert_allclose(found["truth"][name], best, atol=1e-4)
    low, high = bootstrap(found["permuted"]["clip"])
    assert low < 0.5 < high
    low, high = bootstrap(found["permuted"]["pixcorr"])
    assert low < 0 < high


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
    pictures, index = distinct(rows)
    panel = Panel.of(["pixcorr", "ssim", "squeezenet", "lpips"], None, str(Path(REAL, "weights", "squeezenet1_1.safetensors")))
    assert panel.protocol()["lpips"]["network"].startswith("LPIPS-squeeze")
    found = measure(panel, Pictures(truths), Pictures(pictures), index, 8)
    value = {row: {name: values.mean() for name, values in found[row].items()} for row in rows}
    for name in ("pixcorr", "ssim"):
        assert value["blurred"][name] > value["mirrored"][name]
    assert value["blurred"]["squeezenet"] < value["mirrored"]["squeezenet"]
    assert value["mirrored"]["squeezenet"] > 0.9

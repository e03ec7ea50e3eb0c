"""The figures stage on a fake study: what the files show, read back from their pixels."""

import json
import shutil

import h5py
import numpy as np
import pytest
from PIL import Image
from report_fakes import METHODS, SUBJECTS
from scipy.stats import spearmanr

from unimind.errors import InputError
from unimind.report import charts
from unimind.report import similarity as module
from unimind.report.figures import figures
from unimind.report.pictures import EACH_RANK, IN_ORDER
from unimind.report.similarity import matrix_correlations, similarity


def packed(picture):
    """(H, W, 3) uint8 as one integer a pixel."""
    return picture.astype("uint32") @ np.array([65536, 256, 1], "uint32")


def places(picture, tile):
    """(top, left) of every exact occurrence of `tile` in a packed picture."""
    tile = packed(tile)
    side = len(tile)
    corners = (picture[: 1 - side, : 1 - side] == tile[0, 0]) & (picture[side - 1 :, side - 1 :] == tile[-1, -1])
    return [(top, left) for top, left in np.argwhere(corners) if np.array_equal(picture[top : top + side, left : left + side], tile)]


def large(picture):
    return picture.repeat(2, 0).repeat(2, 1)


def test_every_caption_has_its_picture_and_every_picture_its_caption(drawn):
    captions = json.loads((drawn / "captions.json").read_text())
    assert {entry["file"] for entry in captions} == {path.name for path in drawn.glob("*.png")}
    sections = {entry["section"] for entry in captions}
    assert sections == {"overview", "pictures", "results", "new", "alignment", "efficiency", "training"}
    for entry in captions:
        with Image.open(drawn / entry["file"]) as picture:
            assert picture.width >= 600 and np.ptp(np.asarray(picture.convert("L"))) > 100
        assert entry["alt"] and entry["caption"].endswith(".")
    assert {entry["subject"] for entry in captions if entry["section"] == "pictures"} == set(SUBJECTS)
    assert all("in the features of study CLIP, 64-d" in entry["caption"] for entry in captions if entry["section"] == "pictures")


@pytest.mark.parametrize("subject", ["subj01", "subj04"])
def test_grid_shows_the_chosen_stimuli_method_by_method(fake, drawn, subject):
    grid = packed(np.asarray(Image.open(drawn / f"pictures_drawings_{subject}.png").convert("RGB")))
    leading = next(iter(METHODS))
    rows = json.loads((fake.root / f"metrics/drawings/{subject}/{leading}.json").read_text())["rows"]["reconstruction"]
    order = np.argsort(-np.array(rows["similarity"]["per_image"]), kind="stable")
    middle = (len(order) - EACH_RANK) // 2
    chosen = [*order[:EACH_RANK], *order[middle : middle + EACH_RANK], *order[-EACH_RANK:], *range(IN_ORDER)]
    tops = []
    with h5py.File(fake.root / "prepared/drawings/stimuli.h5") as truths, h5py.File(fake.root / "reconstructions/controls/drawings/stimuli.h5") as controls:
        for place in chosen:
            stimulus = fake.test[place]
            tiles = [large(truths["images"][stimulus])]
            for method in METHODS:
                with h5py.File(fake.root / f"reconstructions/{method}/drawings/{subject}.h5") as file:
                    shown = int(file["shown"][place])
                    tiles.append(large(file["samples"][place, shown]))
                    others = [file["samples"][place, number] for number in range(3) if number != shown]
                    if method == leading:
                        shuffled = large(file["shuffled"][place])
                tiles += others
            ceiling = controls["embedding_ceiling"][list(controls["stimulus"]).index(stimulus)]
            tiles += [shuffled, large(ceiling)]
            found = [places(grid, tile) for tile in tiles]
            assert all(found), f"a picture of stimulus {stimulus} is not in the grid"
            top = next(top for top, _ in found[0] if all(any(top <= other < top + 128 for other, _ in one) for one in found) and top not in tops)
            lefts = [next(left for other, left in one if top <= other < top + 128) for one in found]
            assert lefts == sorted(lefts), "seen, methods in the study's order with their samples, shuffled, ceiling"
            tops.append(top)
    assert tops == sorted(tops), "best, median, worst, then stimulus order from top to bottom"


def test_overview_puts_every_subject_under_what_was_seen(fake, drawn):
    grid = packed(np.asarray(Image.open(drawn / "overview_drawings.png").convert("RGB")))
    with h5py.File(fake.root / "prepared/drawings/stimuli.h5") as file:
        (top, left), *_ = places(grid, large(file["images"][fake.test[2]]))
    for subject in SUBJECTS:
        with h5py.File(fake.root / f"reconstructions/unimind-convmixer/drawings/{subject}.h5") as file:
            ((below, same),) = places(grid, large(file["samples"][2, int(file["shown"][2])]))
        assert below > top and same == left
        top = below


def test_similarity_is_spearman_between_similarity_matrices():
    rng = np.random.default_rng(0)
    one, two, three = rng.normal(size=(12, 30)), rng.normal(size=(12, 50)), rng.normal(size=(12, 8))
    upper = np.triu_indices(12, 1)
    assert np.allclose(similarity(one), np.corrcoef(one)[upper])
    found = matrix_correlations([one, two, three])
    assert found.shape == (3, 3) and np.allclose(np.diag(found), 1)
    assert np.isclose(found[0, 1], spearmanr(np.corrcoef(one)[upper], np.corrcoef(two)[upper]).statistic)


def test_responses_are_means_over_test_repeats(fake):
    path = fake.root / "prepared/drawings/subj02.h5"
    wanted = fake.test[[3, 1]].tolist()
    with h5py.File(path) as file:
        expected = [file["responses"][()][file["stimulus"][()] == stimulus].mean(0) for stimulus in wanted]
    assert np.allclose(module._responses(path, wanted), expected)


@pytest.mark.parametrize(("value", "shown"), [(420_000, "420 k"), (1.9e6, "1.9 M"), (0.126, "0.126"), (2.5e9, "2.5 G"), (541, "541")])
def test_large_numbers_are_short(value, shown):
    assert charts._short(value) == shown


def test_what_is_not_there_is_left_out(fake, tmp_path):
    empty = tmp_path / "tables"
    empty.mkdir()
    nothing = dict.fromkeys(("models", "controls", "prepared", "metrics"), [])
    inputs = fake.inputs() | nothing | {"tables": empty, "reconstructions": fake.inputs()["reconstructions"][:1]}
    figures(fake.study, **inputs, out=tmp_path / "figures")
    captions = json.loads((tmp_path / "figures/captions.json").read_text())
    assert {entry["section"] for entry in captions} == {"overview", "pictures"}
    assert "The first" in captions[1]["caption"], "without metrics nothing can be ranked, and the caption says so"


def test_a_broken_file_is_named_in_one_line_and_nothing_is_written(fake, tmp_path):
    model = tmp_path / "models/unimind-vit/pretrain"
    model.mkdir(parents=True)
    (model / "losses.csv").write_text("step,value\n1,2\n")
    with pytest.raises(InputError, match="losses.csv: no column split, term"):
        figures(fake.study, **(fake.inputs() | {"tables": tmp_path, "models": [model], "reconstructions": []}), out=tmp_path / "figures")
    broken = tmp_path / "reconstructions/ridge/drawings/subj01.h5"
    broken.parent.mkdir(parents=True)
    shutil.copy(fake.root / "tables/reconstruction.csv", broken)
    with pytest.raises(InputError, match="subj01.h5: cannot be read"):
        figures(fake.study, **(fake.inputs() | {"tables": tmp_path, "reconstructions": [broken]}), out=tmp_path / "figures")
    assert not (tmp_path / "figures").exists()

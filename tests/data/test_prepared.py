import h5py
import numpy as np
import pandas as pd
import pytest

from unimind.data.prepared import PreparedSubject, Stimuli, count_repeats, read_unpaired, write_prepared, write_stimuli, write_unpaired
from unimind.data.sources.base import Stimulus
from unimind.errors import InputError

STIMULUS = np.array([4, 2, 4, 0, 1, 2, 4, 3, 0])
SPLIT = np.array([0, 2, 0, 1, 0, 2, 0, 0, 1])


@pytest.fixture
def responses():
    return np.random.default_rng(0).normal(size=(9, 6)).astype(np.float32)


@pytest.fixture
def path(tmp_path, responses):
    write_prepared(
        tmp_path / "s.h5", responses, stimulus=STIMULUS, session=np.arange(9) // 3, split=SPLIT, stimuli=5, dataset="d", subject="s",
        roi=[0, 0, 1, 1, 1, -1], roi_names=["V1", "V2"], xyz=np.ones((6, 3)), stored=[5, 4, 3, 2, 1, 0], protocol={"sessions": 3},
    )  # fmt: skip
    return tmp_path / "s.h5"


def test_what_is_written_is_read(path, responses):
    with PreparedSubject(path) as prepared:
        assert (prepared.n_trials, prepared.n_voxels, prepared.n_stimuli, prepared.dataset, prepared.subject) == (9, 6, 5, "d", "s")
        assert np.array_equal(prepared.responses[:], responses) and prepared.responses.dtype == np.float32
        assert np.array_equal(prepared.stimulus, STIMULUS) and np.array_equal(prepared.split, SPLIT)
        assert prepared.repeat.tolist() == [0, 0, 1, 0, 0, 1, 2, 0, 1]
        assert prepared.roi.tolist() == [0, 0, 1, 1, 1, -1] and prepared.roi_names == ["V1", "V2"]
        assert prepared.noise_ceiling is None and prepared.stored.tolist() == [5, 4, 3, 2, 1, 0]
        assert prepared.protocol == {"sessions": 3}
        assert prepared.trials("train").tolist() == [0, 2, 4, 6, 7] and prepared.images("validation").tolist() == [0]


def test_rows_in_any_order(path, responses):
    with PreparedSubject(path) as prepared:
        for rows in ([3], [8, 0, 0, 5, 4], [], np.arange(9), slice(2, 5)):
            asked = rows if isinstance(rows, slice) else np.asarray(rows, int)
            assert np.array_equal(prepared.read(rows), responses[asked])


def test_voxels_in_the_order_of_the_distributed_files(tmp_path):
    """Written as prepare writes them: column i of the file is the source's column stored[i]; some are left out."""
    source, stored = np.random.default_rng(0).normal(size=(9, 8)).astype(np.float32), np.array([6, 2, 7, 0, 3])
    write_prepared(
        tmp_path / "s.h5", source[:, stored], stimulus=STIMULUS, session=np.zeros(9), split=SPLIT, stimuli=5, dataset="d", subject="s", stored=stored,
    )  # fmt: skip
    with PreparedSubject(tmp_path / "s.h5") as prepared:
        for rows in ([3, 0, 3], slice(2, 5)):
            assert np.array_equal(prepared.read(rows, "stored"), source[rows][:, [0, 2, 3, 6, 7]])
            assert np.array_equal(prepared.read(rows, "anatomical"), source[rows][:, stored])


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("block", [4 * 6, 32 * 1024 * 1024], ids=["trial by trial", "at once"])
def test_means_over_repeats_are_pandas(path, responses, monkeypatch, channels, block):
    """The repeats of a picture are dealt out in turn; those of a picture with fewer than there are channels stand several times."""
    monkeypatch.setattr("unimind.data.prepared._BLOCK", block)
    rows = np.array([7, 0, 4, 2, 6, 3])  # as they come
    table = pd.DataFrame(responses[np.sort(rows)]).assign(picture=STIMULUS[np.sort(rows)])
    table["turn"] = table.groupby("picture").cumcount() % channels
    means = table.groupby(["picture", "turn"]).mean()
    counts = table.groupby("picture").size()
    with PreparedSubject(path) as prepared:
        stimulus, found, repeats = prepared.by_picture(rows, channels=channels)
        parts = list(prepared.by_pictures(rows, 2, channels=channels))
        assert np.array_equal(prepared.by_picture(rows, "stored", channels)[1], found[..., ::-1])
    assert stimulus.tolist() == counts.index.tolist() and repeats.tolist() == counts.tolist()
    expected = [[means.loc[picture, channel % min(channels, counts[picture])] for channel in range(channels)] for picture in counts.index]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
    assert [len(part[0]) for part in parts] == [2, 2]
    for number, whole in enumerate((stimulus, found, repeats)):
        assert np.array_equal(np.concatenate([part[number] for part in parts]), whole)


def test_repeats_are_counted_as_pandas_counts_them():
    values = np.random.default_rng(1).integers(7, size=200)
    assert np.array_equal(count_repeats(values), pd.Series(values).groupby(values).cumcount())


@pytest.mark.parametrize(
    ("name", "row", "value", "said"),
    [
        ("responses", (4, 2), np.nan, "responses[4] holds 1 values that are not finite"),
        ("stimulus", 0, 5, "there are 5 pictures"),
        ("stimulus", 0, -1, "reach from -1"),
        ("split", 0, 3, "values other than 0, 1 and 2"),
        ("split", 1, 0, "picture 2 stands in more than one split"),
    ],
)
def test_broken_files_are_refused_in_one_line(path, name, row, value, said):
    with h5py.File(path, "a") as file:
        file[name][row] = value
    with PreparedSubject(path) as prepared, pytest.raises(InputError) as error:
        prepared.check()
    assert said in str(error.value) and str(path) in str(error.value) and "\n" not in str(error.value)


def test_other_files_are_refused(tmp_path, path):
    with pytest.raises(InputError, match="no such file"):
        PreparedSubject(tmp_path / "absent.h5")
    (tmp_path / "text.h5").write_text("no")
    with pytest.raises(InputError, match="not a readable HDF5"):
        PreparedSubject(tmp_path / "text.h5")
    with h5py.File(path, "a") as file:
        del file["voxel/roi"]
        file["voxel/roi"] = np.zeros(5)
    with pytest.raises(InputError, match="voxel/roi has 5 rows for 6 voxels"):
        PreparedSubject(path)


def test_nothing_half_written(tmp_path, responses):
    def blocks():
        yield responses[:4]
        raise InputError("no more")

    with pytest.raises(InputError):
        write_prepared(tmp_path / "s.h5", blocks(), n_voxels=6, stimulus=STIMULUS, session=STIMULUS, split=SPLIT, stimuli=5, dataset="d", subject="s")
    responses[0, 0] = np.inf
    with pytest.raises(InputError, match="not finite"):
        write_prepared(tmp_path / "s.h5", responses, stimulus=STIMULUS, session=STIMULUS, split=SPLIT, stimuli=5, dataset="d", subject="s")
    assert not list(tmp_path.iterdir())


def test_unpaired(tmp_path, responses):
    write_unpaired(tmp_path / "u.h5", [responses[:5], responses[5:]], n_samples=9, n_voxels=6, subject="100307", roi=np.zeros(6), roi_names=["V1"])
    with read_unpaired(tmp_path / "u.h5") as unpaired:
        assert unpaired.n_samples == 9 and unpaired.roi_names == ["V1"]
        assert np.array_equal(unpaired.read([8, 2]), responses[[8, 2]])


def _stimuli(count, size=8):
    random = np.random.default_rng(2)
    return [Stimulus.from_pixels(f"p{k}", random.integers(256, size=(12, 10, 3), dtype=np.uint8), k == 1, size) for k in range(count)]


def test_stimuli(tmp_path):
    given = _stimuli(4)
    write_stimuli(tmp_path / "stimuli.h5", iter(given), 4, 8)
    with Stimuli(tmp_path / "stimuli.h5") as stimuli:
        assert len(stimuli) == 4 and stimuli.id.tolist() == ["p0", "p1", "p2", "p3"] and stimuli.test.tolist() == [False, True, False, False]
        assert stimuli.sha256.tolist() == [picture.sha256 for picture in given]
        assert np.array_equal(stimuli.read([3, 0, 3]), np.stack([given[k].image for k in (3, 0, 3)]))


@pytest.mark.parametrize(("announced", "said"), [(5, "only 4 pictures for 5 ids"), (3, "more pictures than the 3 announced"), (0, "no pictures")])
def test_wrong_number_of_stimuli(tmp_path, announced, said):
    with pytest.raises(InputError, match=said):
        write_stimuli(tmp_path / "stimuli.h5", iter(_stimuli(4)), announced, 8)
    assert not list(tmp_path.iterdir())


def test_ids_are_unique(tmp_path):
    with pytest.raises(InputError, match="'p0' occurs twice"):
        write_stimuli(tmp_path / "stimuli.h5", _stimuli(1) * 2, 2, 8)


def test_pictures_become_square_and_keep_their_identity():
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[:, 5:25] = 200
    stimulus = Stimulus.from_pixels("a", pixels, False, 8)
    assert stimulus.image.shape == (8, 8, 3) and (stimulus.image == 200).all()  # the centre square only
    grey = Stimulus.from_pixels("b", pixels[..., 0], False, 16)
    assert grey.sha256 == stimulus.sha256  # the same pixels, whatever the file says and the size becomes
    assert Stimulus.from_pixels("c", pixels.transpose(1, 0, 2), False, 8).sha256 != stimulus.sha256

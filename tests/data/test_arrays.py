import io
import pickle
import re
import tarfile
import zipfile
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
import yaml
from PIL import Image
from scipy.io import savemat

from unimind.data.sources import open_source
from unimind.data.sources.base import TEST, below
from unimind.errors import InputError
from unimind.study import parse_study

N, UNITS = 24, 7
RNG = np.random.default_rng(3)
RESPONSES = RNG.normal(size=(N, UNITS)).astype(np.float32)
PICTURES = RNG.integers(0, 256, (N, 9, 9, 3), dtype=np.uint8)
ORDER = RNG.permutation(N)  # in which order archives are written


def source_of(root: Path, **section):
    given = {"source": "arrays", "root": str(root), "training_subjects": ["s1"], "responses": "r.npy", "images": "pictures", **section}
    method = {"enter": {"kind": "ridge"}, "scope": "subject"}
    study = parse_study({"name": "s", "datasets": {"own": given}, "methods": {"m": method}, "foundations": {"diffusion": {"kind": "study"}}})
    return open_source(study, "own")


def png(pixels) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def write_folder(folder: Path, pictures=PICTURES) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for k, pixels in enumerate(pictures):
        (folder / f"image{k + 1}.png").write_bytes(png(pixels))


@pytest.fixture
def root(tmp_path):
    np.save(tmp_path / "r.npy", RESPONSES)
    write_folder(tmp_path / "pictures")
    return tmp_path


def read(source, subject="s1"):
    """Responses and the pixels shown, trial by trial, and which trials are test trials."""
    raw = source.subject(subject)
    stimuli = {stimulus.id: stimulus for stimulus in source.stimuli(subject, 9)}
    names = list(raw.trials.stimulus)
    test = [stimuli[name].test for name in names] if raw.trials.split is None else list(raw.trials.split == TEST)
    return raw, np.concatenate(list(raw.trials.responses())), np.stack([stimuli[name].image for name in names]), np.array(test)


def check(source, shown=None, responses=RESPONSES):
    _, found, pictures, test = read(source)
    np.testing.assert_array_equal(found, responses)
    np.testing.assert_array_equal(pictures, PICTURES if shown is None else PICTURES[shown])
    return test


# --- responses ---------------------------------------------------------------------------------------------------


def test_npy_and_its_orientation(root):
    test = check(source_of(root))
    np.testing.assert_array_equal(np.flatnonzero(test), np.arange(0, N, 5))
    np.save(root / "r.npy", RESPONSES.T)
    check(source_of(root, orientation="voxels_by_trials"))


def test_npz(root):
    np.savez(root / "r.npz", betas=RESPONSES, other=np.zeros(3))
    check(source_of(root, responses="r.npz", key="betas"))
    with pytest.raises(InputError, match="no array 'beta'; there is betas, other"):
        source_of(root, responses="r.npz", key="beta").subject("s1")
    with pytest.raises(InputError, match="several arrays"):
        source_of(root, responses="r.npz").subject("s1")


def test_hdf5(root):
    with h5py.File(root / "r.h5", "w") as file:
        file["glm/betas"] = RESPONSES
    check(source_of(root, responses="r.h5", key="glm/betas"))
    check(source_of(root, responses="r.h5"))


def test_matlab_5_variable_and_field(root):
    savemat(root / "r.mat", {"betas": RESPONSES.astype(float), "D": {"data": RESPONSES.T.astype(float)}})
    check(source_of(root, responses="r.mat", key="betas"))
    check(source_of(root, responses="r.mat", key="D/data", orientation="voxels_by_trials"))


def test_matlab_73_is_read_with_axes_as_stored(root):
    with h5py.File(root / "r.mat", "w", userblock_size=512) as file:
        file["D/data"] = RESPONSES.T.astype(float)
    check(source_of(root, responses="r.mat", key="D/data", orientation="voxels_by_trials"))


def test_a_turned_array_is_recognised(root):
    np.save(root / "r.npy", RESPONSES.T)
    with pytest.raises(InputError, match="orientation: voxels_by_trials"):
        source_of(root).subject("s1")


def test_damaged_and_missing_files(root):
    for name in ("r.npy", "r.npz", "r.h5", "r.mat"):
        (root / name).write_bytes(b"rubbish" * 50)
        with pytest.raises(InputError, match=f"{name}: not a readable"):
            source_of(root, responses=name, key="x").subject("s1")
        (root / name).unlink()
        with pytest.raises(InputError, match=f"{name}: no such file"):
            source_of(root, responses=name, key="x").subject("s1")


def test_bad_units_are_dropped_and_counted_or_refused(root, capsys):
    responses = RESPONSES.copy()
    responses[:, 1] = 4
    responses[3, 2] = np.nan
    responses[:, 5] = 1
    responses[0, 5] = 2  # varies in a test trial alone
    np.save(root / "r.npy", responses)
    raw, found, _, _ = read(source_of(root))
    np.testing.assert_array_equal(found, responses[:, [0, 3, 4, 6]])
    assert raw.n_voxels == 4 and raw.protocol["dropped_units"] == 3
    assert "dropped 3 of 7 units (2 without variance, 1 with missing values)" in capsys.readouterr().err
    with pytest.raises(InputError, match="3 of 7 units"):
        source_of(root, drop_bad_voxels=False).subject("s1")
    np.save(root / "r.npy", np.full_like(responses, np.nan))
    with pytest.raises(InputError, match="no unit can be used"):
        source_of(root).subject("s1")


# --- NIfTI -------------------------------------------------------------------------------------------------------

SHAPE, AFFINE = (4, 5, 3), np.array([[2.0, 0, 0, -10], [0, 2, 0, 5], [0, 0, 3, 1], [0, 0, 0, 1]])
VOLUMES = RNG.integers(-900, 900, (*SHAPE, N)).astype(np.int16)
MASK = (RNG.random(SHAPE) < 0.4) * RNG.integers(1, 4, SHAPE)


def save_nifti(path: Path, volumes, affine=AFFINE, slope=None) -> None:
    image = nibabel.Nifti1Image(volumes, affine)
    if slope:
        image.header.set_slope_inter(slope, 1.0)
    nibabel.save(image, path)


@pytest.mark.parametrize("ending", ["nii", "nii.gz"])
def test_nifti_betas_and_mask(root, ending):
    save_nifti(root / f"b.{ending}", VOLUMES)
    save_nifti(root / "mask.nii.gz", MASK.astype(np.uint8))
    source = source_of(root, responses=f"b.{ending}", mask="mask.nii.gz")
    raw, found, pictures, _ = read(source)
    where = np.argwhere(MASK > 0)
    np.testing.assert_array_equal(found, VOLUMES[MASK > 0].T)
    np.testing.assert_array_equal(pictures, PICTURES)
    np.testing.assert_allclose(raw.xyz, nibabel.affines.apply_affine(AFFINE, where))
    assert [raw.roi_names[label] for label in raw.roi] == [f"label {MASK[tuple(at)]}" for at in where]
    raw, found, _, _ = read(source_of(root, responses=f"b.{ending}", mask="mask.nii.gz", mask_labels=[2], roi_labels=False))
    np.testing.assert_array_equal(found, VOLUMES[MASK == 2].T)
    assert raw.roi is None


def test_nifti_scaling_is_applied(root):
    save_nifti(root / "b.nii.gz", VOLUMES, slope=0.25)
    save_nifti(root / "mask.nii.gz", MASK.astype(np.uint8))
    _, found, _, _ = read(source_of(root, responses="b.nii.gz", mask="mask.nii.gz"))
    np.testing.assert_allclose(found, np.asarray(nibabel.load(root / "b.nii.gz").dataobj)[MASK > 0].T, rtol=1e-6)


def test_one_nifti_file_a_session(root):
    bounds = [0, 10, 18, N]
    for session, (begin, end) in enumerate(zip(bounds[:-1], bounds[1:], strict=True), 1):
        save_nifti(root / f"betas_s1_ses-{session}.nii.gz", VOLUMES[..., begin:end])
    save_nifti(root / "mask.nii.gz", MASK.astype(np.uint8))
    source = source_of(root, responses="betas_{subject}_ses-{session}.nii.gz", mask="mask.nii.gz")
    raw, found, _, _ = read(source)
    np.testing.assert_array_equal(found, VOLUMES[MASK > 0].T)
    np.testing.assert_array_equal(raw.trials.session, [1] * 10 + [2] * 8 + [3] * 6)
    assert [len(block) for block in raw.trials.responses()] == [10, 8, 6]
    (root / "t.csv").write_text("picture,session\n" + "".join(f"{k + 1},{1 + (k >= 11)}\n" for k in range(N)))
    with pytest.raises(InputError, match=r"ses-3.nii.gz: no row of the trial table is of session 3"):
        source_of(root, responses="betas_{subject}_ses-{session}.nii.gz", mask="mask.nii.gz", trials="t.csv").subject("s1")
    (root / "betas_s1_ses-2.nii.gz").write_bytes((root / "betas_s1_ses-2.nii.gz").read_bytes()[:400])
    with pytest.raises(InputError, match="ses-2.nii.gz"):
        read(source)


def test_a_mask_of_another_grid_is_refused(root):
    save_nifti(root / "b.nii.gz", VOLUMES)
    moved = AFFINE.copy()
    moved[0, 3] += 2
    for mask, affine, words in ((MASK[:-1], AFFINE, r"shape \(3, 5, 3\) against \(4, 5, 3\)"), (MASK, moved, "another affine")):
        save_nifti(root / "mask.nii.gz", mask.astype(np.uint8), affine)
        with pytest.raises(InputError, match=words):
            source_of(root, responses="b.nii.gz", mask="mask.nii.gz").subject("s1")
    save_nifti(root / "mask.nii.gz", MASK.astype(np.uint8))
    with pytest.raises(InputError, match=r"no voxel is labelled \[9\]"):
        source_of(root, responses="b.nii.gz", mask="mask.nii.gz", mask_labels=[9]).subject("s1")


# --- pictures ----------------------------------------------------------------------------------------------------


def test_zip_with_a_folder_and_unsorted_members(root):
    with zipfile.ZipFile(root / "p.zip", "w") as archive:
        archive.writestr("__MACOSX/stim/._image1.png", b"no picture")
        archive.writestr("stim/notes.txt", b"no picture")
        for k in ORDER:
            archive.writestr(f"stim/image{k + 1}.png", png(PICTURES[k]))
    source = source_of(root, images="p.zip")
    check(source)
    assert [stimulus.id for stimulus in source.stimuli(None, 9)] == [f"image{k + 1}.png" for k in range(N)]


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz", "w:bz2"])
def test_tar(root, mode):
    with tarfile.open(root / "p.tar", mode) as archive:
        for k in ORDER:
            entry = tarfile.TarInfo(f"a/b/{k + 1:03d}.png")
            content = png(PICTURES[k])
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    check(source_of(root, images="p.tar"))


@pytest.mark.parametrize("name", ["../x.png", "/etc/x.png", "a/../../x.png", "..\\x.png", "C:\\x.png"])
def test_members_outside_the_archive_are_refused(root, name):
    with zipfile.ZipFile(root / "p.zip", "w") as archive:
        archive.writestr(name, png(PICTURES[0]))
    with tarfile.open(root / "p.tar", "w") as archive:
        content = png(PICTURES[0])
        entry = tarfile.TarInfo(name)
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    for archive in ("p.zip", "p.tar"):
        with pytest.raises(InputError, match="points outside the archive"):
            source_of(root, images=archive).stimuli(None, 9)
    assert sorted(path.name for path in root.iterdir()) == ["p.tar", "p.zip", "pictures", "r.npy"]


def test_damaged_archives_and_pictures(root):
    with zipfile.ZipFile(root / "p.zip", "w") as archive:
        for k in range(N):
            archive.writestr(f"{k}.png", png(PICTURES[k]))
    whole = (root / "p.zip").read_bytes()
    (root / "p.zip").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="neither a folder, nor a zip or tar archive"):
        source_of(root, images="p.zip").stimuli(None, 9)
    flipped = bytearray(whole)
    flipped[60] ^= 0xFF
    (root / "p.zip").write_bytes(flipped)
    with pytest.raises(InputError, match="damaged|not a readable picture"):
        source_of(root, images="p.zip").stimuli(None, 9)
    (root / "pictures" / "image7.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match="image7.png: not a readable picture"):
        source_of(root).stimuli(None, 9)
    with pytest.raises(InputError, match="no such pictures"):
        source_of(root, images="elsewhere").stimuli(None, 9)
    (root / "empty").mkdir()
    with pytest.raises(InputError, match="holds no pictures"):
        source_of(root, images="empty").stimuli(None, 9)


def read_all(root, images):
    """Pixels of every picture by name."""
    return {stimulus.id: stimulus.image for stimulus in source_of(root, images=images).stimuli(None, 9)}


def write_tar(path, count=N, mode="w"):
    with tarfile.open(path, mode) as archive:
        for k in range(count):
            content = png(PICTURES[k])
            entry = tarfile.TarInfo(f"{k:03d}.png")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def test_a_tar_archive_that_breaks_off_anywhere_is_refused(root):
    write_tar(root / "p.tar")
    whole = (root / "p.tar").read_bytes()
    end = len(whole.rstrip(b"\0")) + (-len(whole.rstrip(b"\0"))) % 512
    for length in (1, 600, *range(1024, end + 512, 512), end - 100, end + 511):
        (root / "p.tar").write_bytes(whole[:length])
        with pytest.raises(InputError, match="p.tar: (not a whole tar archive|neither a folder)") as caught:
            read_all(root, "p.tar")
        assert "\n" not in str(caught.value)
    (root / "p.tar").write_bytes(whole[: end + 512])  # one block of zeros ends it
    assert len(read_all(root, "p.tar")) == N


@pytest.mark.parametrize("mode", ["w:gz", "w:xz", "w:bz2"])
def test_a_packed_tar_archive_that_is_damaged_is_refused(root, mode):
    write_tar(root / "p.tar", 4, mode)
    whole = (root / "p.tar").read_bytes()
    for damaged in (whole[:-3], whole[: len(whole) // 2], *(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :] for at in range(60, len(whole) - 40, 200))):
        (root / "p.tar").write_bytes(damaged)
        with pytest.raises(InputError, match="p.tar: (not a whole|neither a folder)"):
            read_all(root, "p.tar")


@pytest.mark.parametrize("kind", ["stored", "deflated", "tar"])
def test_every_flipped_bit_of_an_archive_is_refused_or_changes_no_picture(root, kind):
    if kind == "tar":
        write_tar(root / "p", 3)
    else:
        with zipfile.ZipFile(root / "p", "w", zipfile.ZIP_STORED if kind == "stored" else zipfile.ZIP_DEFLATED) as archive:
            for k in range(3):
                archive.writestr(f"{k:03d}.png", png(PICTURES[k]))
    whole = (root / "p").read_bytes()
    pixels, refused = read_all(root, "p"), 0
    directory = whole.find(b"PK\x01\x02") if kind != "tar" else len(whole)
    for at in [*range(0, min(directory, 2600), 7), *range(directory, len(whole))]:
        (root / "p").write_bytes(whole[:at] + bytes([whole[at] ^ (1 << at % 8)]) + whole[at + 1 :])
        try:
            found = read_all(root, "p")
        except InputError as error:
            refused += 1
            assert "\n" not in str(error) and str(root / "p") in str(error)
        else:
            assert found.keys() == pixels.keys() and all(np.array_equal(found[name], pixels[name]) for name in found)
    assert refused > 50


def test_flipped_bits_of_arrays_are_refused_in_one_line(root):
    np.savez_compressed(root / "r.npz", betas=RESPONSES)
    middle = {"r.npz": (root / "r.npz").stat().st_size // 2}
    for name, values in (("r.h5", RESPONSES), ("p.h5", PICTURES)):
        with h5py.File(root / name, "w") as file:
            held = file.create_dataset("x", data=values, compression="gzip", chunks=True)
            chunk = held.id.get_chunk_info(0)
            middle[name] = chunk.byte_offset + chunk.size // 2
    for name, section in (("r.npz", {"responses": "r.npz"}), ("r.h5", {"responses": "r.h5"}), ("p.h5", {"images": "p.h5"})):
        whole, at = (root / name).read_bytes(), middle[name]
        (root / name).write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        with pytest.raises(InputError, match=f"{name}: not .*; if it was downloaded, delete it and get it again") as caught:
            read(source_of(root, **section))
        assert "\n" not in str(caught.value)


def test_arrays_of_pictures(root):
    np.save(root / "p.npy", PICTURES)
    check(source_of(root, images="p.npy"))
    with h5py.File(root / "p.h5", "w") as file:
        file["imgBrick"] = PICTURES
    check(source_of(root, images="p.h5", images_key="imgBrick"))
    np.savez(root / "p.npz", images=PICTURES / 255.0)
    check(source_of(root, images="p.npz"))
    np.save(root / "bad.npy", PICTURES.astype(float) - 1)
    with pytest.raises(InputError, match="values from -1 to"):
        source_of(root, images="bad.npy").stimuli(None, 9)
    np.save(root / "bad.npy", PICTURES.transpose(1, 2, 3, 0))
    with pytest.raises(InputError, match=r"pictures of shape \(9, 9, 3, 24\)"):
        source_of(root, images="bad.npy").stimuli(None, 9)


@pytest.mark.parametrize("by_column", [False, True])
@pytest.mark.parametrize("columns", [False, True])
def test_flat_pictures(root, by_column, columns):
    grey = RNG.integers(0, 2, (N, 4, 6))
    grey[0, :2] = [[0, 1, 1, 0, 1, 0], [1, 1, 0, 0, 0, 1]]
    flat = (grey.transpose(0, 2, 1) if by_column else grey).reshape(N, 24)
    flat = np.concatenate([flat, 1 - flat[:1]])  # 25 pictures of 24 pixels
    np.save(root / "p.npy", flat.T if columns else flat)
    (root / "t.csv").write_text("picture\n" + "".join(f"{k}\n" for k in range(N)))
    source = source_of(root, images="p.npy", images_shape=[4, 6], images_transposed=by_column, trials="t.csv")
    raw = source.subject("s1")
    pictures = source._pictures(None)
    for k, name in enumerate(raw.trials.stimulus):
        np.testing.assert_array_equal(pictures.load(name)[..., 0], grey[k] * 255)


def test_equal_pixels_are_one_stimulus_whatever_the_file(root):
    Image.fromarray(PICTURES[0]).save(root / "pictures" / "image4.png", compress_level=0)  # = picture 0, other bytes
    Image.fromarray(PICTURES[6]).save(root / "pictures" / "image10.png")
    shown = np.arange(N)
    shown[3], shown[9] = 0, 6
    source = source_of(root)
    test = check(source, shown)
    assert source.stimuli(None, 9).count == N - 2 == len(list(source.stimuli(None, 9)))
    np.testing.assert_array_equal(np.flatnonzero(test), [0, 3, 5, 10, 15, 20])


# --- trial tables ------------------------------------------------------------------------------------------------


def write_table(root, rows, name="t.csv"):
    comma = "\t" if name.endswith("tsv") else ","
    (root / name).write_text("\n".join(comma.join(map(str, row)) for row in rows) + "\n")


@pytest.mark.parametrize("form", ["image{}.png", "image{}", "{}", "{}.0"])
@pytest.mark.parametrize("name", ["t.csv", "t.tsv"])
def test_trials_name_their_picture(root, form, name):
    shown = RNG.integers(0, N, N)
    write_table(root, [["picture"], *[[form.format(k + 1)] for k in shown]], name)
    check(source_of(root, trials=name), shown)


def test_interleaved_sessions_are_brought_together(root):
    session = RNG.integers(1, 4, N)
    shown = RNG.integers(0, N, N)
    write_table(root, [["session", "picture"], *zip(session, shown + 1, strict=True)])
    order = np.argsort(session, kind="stable")
    source = source_of(root, trials="t.csv")
    check(source, shown[order], RESPONSES[order])
    np.testing.assert_array_equal(source.subject("s1").trials.session, session[order])


def test_trials_without_a_picture_are_left_out(root, capsys):
    write_table(root, [["picture", "note"], *[["" if k % 6 == 1 else k + 1, "x"] for k in range(N)]])
    kept = np.array([k for k in range(N) if k % 6 != 1])
    check(source_of(root, trials="t.csv"), kept, RESPONSES[kept])
    assert "4 of 24 trials show no picture" in capsys.readouterr().err


def test_pictures_in_folders_and_their_names(tmp_path):
    np.save(tmp_path / "r.npy", RESPONSES[:4])
    for folder, first in (("cats", 0), ("dogs", 2)):
        write_folder(tmp_path / "pictures" / folder, PICTURES[first : first + 2])
    write_table(tmp_path, [["picture"], ["dogs/image2.png"], ["cats/image1.png"], ["cats/image2"], ["dogs/image1"]])
    raw, _, pictures, _ = read(source_of(tmp_path, trials="t.csv", split={"every": 3}))
    np.testing.assert_array_equal(pictures, PICTURES[[3, 0, 1, 2]])
    write_table(tmp_path, [["picture"], ["image2.png"], ["cats/image1.png"], ["cats/image2"], ["dogs/image1"]])
    with pytest.raises(InputError, match="t.csv line 2: several pictures in .* are called 'image2.png'"):
        source_of(tmp_path, trials="t.csv").subject("s1")


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([["picture"], *[["imagine1.png"]] * N], "t.csv line 2: no picture 'imagine1.png'"),
        ([["picture"], *[[k + 1] for k in range(N - 1)]], "24 trials, but 23 rows"),
        ([["session", "picture"]], "t.csv: a header, and no trial below it"),
        ([["image"], *[[k + 1] for k in range(N)]], "no column picture, stim_file, stimulus, label or condition; it has image"),
        ([["picture", "session"], *[[k + 1, "one"] for k in range(N)]], "expected whole numbers"),
    ],
)
def test_tables_that_cannot_be_used(root, rows, words):
    write_table(root, rows)
    with pytest.raises(InputError, match=words):
        source_of(root, trials="t.csv").subject("s1")
    with pytest.raises(InputError, match="u.csv: no such file"):
        source_of(root, trials="u.csv").subject("s1")


# --- splits ------------------------------------------------------------------------------------------------------


def test_split_by_column_holds_for_every_trial_of_the_picture(root):
    shown = np.r_[np.arange(12), np.arange(12)]
    write_table(root, [["picture", "part"], *[[k + 1, "test" if row in (2, 15) else "train"] for row, k in enumerate(shown)]])
    source = source_of(root, trials="t.csv", split={"column": "part"})
    test = check(source, shown)
    np.testing.assert_array_equal(np.flatnonzero(test), [2, 3, 14, 15])
    assert {stimulus.id for stimulus in source.stimuli(None, 9) if stimulus.test} == {"image3.png", "image4.png"}
    write_table(root, [["picture", "part"], *[[k + 1, "testing"] for k in shown]])
    with pytest.raises(InputError, match="line 2: part is 'testing'; expected train or test"):
        source_of(root, trials="t.csv", split={"column": "part"}).subject("s1")


def test_split_by_sessions_and_by_list(root):
    write_table(root, [["picture", "session"], *[[k + 1, 1 + k // 8] for k in range(N)]])
    test = check(source_of(root, trials="t.csv", split={"sessions": [2]}))
    np.testing.assert_array_equal(np.flatnonzero(test), np.arange(8, 16))
    (root / "list.txt").write_text("image3.png\n\nimage20\n")
    source = source_of(root, split={"images": "list.txt"})
    np.testing.assert_array_equal(np.flatnonzero(check(source)), [2, 19])
    assert "list.txt" in [file.path for file in source.files(None)]


def test_a_new_subject_does_not_change_the_test_pictures_of_a_shared_set(root):
    for subject, test in (("s1", 3), ("s2", 4)):
        np.save(root / f"{subject}.npy", RESPONSES)
        write_table(root, [["picture", "part"], *[[k + 1, "test" if k == test else "train"] for k in range(N)]], f"{subject}.csv")
    source = source_of(root, responses="{subject}.npy", trials="{subject}.csv", split={"column": "part"}, new_subjects=["s2"])
    assert [stimulus.id for stimulus in source.stimuli(None, 9) if stimulus.test] == ["image4.png"]
    np.testing.assert_array_equal(np.flatnonzero(source.subject("s2").trials.split == TEST), [3, 4])
    assert "s2.csv" not in [file.path for file in source.files(None)]


@pytest.mark.parametrize(
    ("split", "words"),
    [({"sessions": [9]}, "test split is empty"), ({"every": 1}, "none is left to train on"), ({"images": "none.txt"}, "test split is empty")],
)
def test_empty_splits_are_refused(root, split, words):
    (root / "none.txt").write_text("\n")
    with pytest.raises(InputError, match=words):
        source_of(root, split=split).subject("s1")


def test_lists_and_tables_that_are_not_utf_8_are_refused(root):
    for name in ("list.txt", "t.csv"):
        (root / name).write_bytes("picture\nchâteau.png\n".encode("latin-1"))
    for given in ({"split": {"images": "list.txt"}}, {"trials": "t.csv"}):
        with pytest.raises(InputError, match=r"(list.txt|t.csv): not a text file in UTF-8 .*; save it as UTF-8"):
            source_of(root, **given).subject("s1")


def test_every_subject_with_pictures_of_its_own(root):
    for subject, first in (("s1", 0), ("s2", 12)):
        np.save(root / f"{subject}.npy", RESPONSES[first : first + 12])
        write_folder(root / subject, PICTURES[first : first + 12])
    source = source_of(root, responses="{subject}.npy", images="{subject}", training_subjects=["s1", "s2"])
    for subject, first in (("s1", 0), ("s2", 12)):
        _, found, pictures, _ = read(source, subject)
        np.testing.assert_array_equal(found, RESPONSES[first : first + 12])
        np.testing.assert_array_equal(pictures, PICTURES[first : first + 12])
    assert source.files(None) == []
    assert {file.path for file in source.files("s2")} == {"s2.npy", *(f"s2/image{k}.png" for k in range(1, 13))}


# --- blocks ------------------------------------------------------------------------------------------------------


def test_blocks_by_hand(root):
    """Two runs; label 1 rest, 7 and 8 two pictures, delay of one volume."""
    labels = np.array([1, 7, 7, 1, 8, 8, 1, 1, 8, 8, 1, 7, 7, 1])
    volumes = RNG.normal(size=(14, 3)).astype(np.float32) + 100
    np.savez(root / "v.npz", data=volumes.T, labels=labels)
    blocks = {"labels": "labels", "delay": 1, "runs": 2, "ignore": [1], "pictures": {7: 4, 8: 2}}
    source = source_of(root, responses="v.npz", key="data", orientation="voxels_by_trials", blocks=blocks, split={"images": "list.txt"})
    (root / "list.txt").write_text("image5.png\n")
    raw, found, pictures, test = read(source)
    at = [[2, 3], [5, 6], [9, 10], [12, 13]]
    expected = []
    for block, run, other in ((0, 0, 0), (1, 0, 0), (2, 1, 3), (3, 1, 3)):
        fit = [k for k in range(7 * run, 7 * run + 7) if k not in at[other]]  # without the test block of the run
        mean, deviation = volumes[fit].mean(0), volumes[fit].std(0)
        expected.append(((volumes[at[block]] - mean) / deviation).mean(0))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(pictures, PICTURES[[4, 2, 2, 4]])
    np.testing.assert_array_equal(raw.trials.session, [1, 1, 2, 2])
    np.testing.assert_array_equal(test, [True, False, False, True])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"runs": 4}, "14 volumes do not make 4 equally long runs"),
        ({"ignore": []}, "label 1 is neither in datasets.own.blocks.pictures nor in blocks.ignore"),
        ({"pictures": {7: 4, 8: 99}}, "picture 99 of 24"),
        ({"labels": "label"}, "no array 'label'"),
    ],
)
def test_blocks_that_cannot_be_used(root, change, words):
    labels = np.array([1, 7, 7, 1, 8, 8, 1, 1, 8, 8, 1, 7, 7, 1])
    np.savez(root / "v.npz", data=RNG.normal(size=(14, 3)), labels=labels)
    blocks = {"labels": "labels", "delay": 1, "runs": 2, "ignore": [1], "pictures": {7: 4, 8: 2}, **change}
    with pytest.raises(InputError, match=words):
        source_of(root, responses="v.npz", key="data", blocks=blocks).subject("s1")


# --- the study ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"responses": "b.nii.gz"}, "mask: missing"),
        ({"mask_labels": [1]}, "mask_labels: there is no mask"),
        ({"mask": "m.nii", "mask_labels": [1], "mask_threshold": 0.5}, "mask_threshold: mask_labels says"),
        ({"mask": "m.nii", "orientation": "voxels_by_trials"}, "orientation: the axes of volumes are found"),
        ({"responses": "b.nii", "mask": "m.nii", "key": "x"}, "key: NIfTI files hold one array"),
        ({"count_from": 1}, "count_from: there is no trial table"),
        ({"responses": "r_{run}.npz", "blocks": {"labels": "x"}}, "blocks: only for one array"),
        ({"responses": "r.txt"}, "expected a name ending in"),
        ({"training_subjects": ["a", "b"]}, "write {subject} where the subject stands"),
        ({"split": {"column": "part"}}, "needs a trial table"),
        ({"split": {"every": 2, "sessions": [1]}}, "exactly one of every, column, images, sessions"),
    ],
)
def test_impossible_sections_are_refused_before_anything_runs(tmp_path, section, words):
    with pytest.raises(InputError, match=words):
        source_of(tmp_path, **section)


# --- forms of responses ------------------------------------------------------------------------------------------


def betas(shape=SHAPE, trials=N):
    return RNG.normal(size=(*shape, trials)).astype(np.float32)


@pytest.mark.parametrize("nested", [False, True])
def test_glmsingle_s_pickled_dictionary_is_mapped_and_never_run(root, nested):
    volumes = betas()
    held = {
        "betasmd": np.asfortranarray(volumes) if nested else volumes,
        "R2": volumes[..., 0],
        "HRFindex": np.arange(3),
        "pcnum": 5,
        "meta": {"name": ["x", None, 1.5]},
    }
    np.save(root / "r.npy", {"results": held} if nested else held, allow_pickle=True)
    save_nifti(root / "mask.nii.gz", MASK.astype(np.uint8))
    key = "results/betasmd" if nested else "betasmd"
    _, found, _, _ = read(source_of(root, key=key, mask="mask.nii.gz"))
    np.testing.assert_array_equal(found, volumes[MASK > 0].T)
    with pytest.raises(InputError, match="no array 'betas'; there is betasmd, R2, HRFindex" if not nested else "there is results/betasmd"):
        source_of(root, key="betas", mask="mask.nii.gz").subject("s1")
    flat = {"betasmd": RESPONSES.T.reshape(UNITS, 1, 1, N)}
    np.save(root / "r.npy", flat, allow_pickle=True)
    check(source_of(root, key="betasmd", orientation="voxels_by_trials"))


GLMSINGLE = (Path(__file__).parents[2] / "docs/data.md").read_text().partition("<!-- GLMsingle -->")[2]


@pytest.mark.parametrize("ending", [".npy", ".hdf5"])
def test_the_documented_block_reads_glmsingle_s_results(root, ending):
    section = yaml.safe_load(re.search(r"```yaml\n(.*?)```", GLMSINGLE, re.DOTALL)[1].replace(".npy", ending))["datasets"]["lab"]
    volumes, shown = betas(), RNG.integers(0, N, N)
    (root / "s1").mkdir()
    save_nifti(root / "s1/visual.nii.gz", MASK.astype(np.uint8))
    for session, part in ((2, slice(0, 9)), (11, slice(9, N))):
        held = {"HRFindex": MASK, "betasmd": volumes[..., part], "R2": MASK / 3, "FRACvalue": MASK.astype(float), "noisepool": MASK > 1}
        path = root / f"s1/ses-{session:02d}/TYPED_FITHRF_GLMDENOISE_RR{ending}"
        path.parent.mkdir()
        if ending == ".npy":
            np.save(path, held)
        else:
            with h5py.File(path, "w") as file:
                for name, values in held.items():
                    file[name] = values
    write_table(root, [["session", "picture"], *[[2 if k < 9 else 11, f"image{p + 1}.png"] for k, p in enumerate(shown)]], "s1/trials.tsv")
    del section["root"]
    check(source_of(root, **section), shown, volumes[MASK > 0].T)


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("was_run"),))


@pytest.mark.parametrize("content", [{"betasmd": RESPONSES, "x": Evil()}, {"x": Path("y")}])
def test_a_pickle_that_does_more_is_refused_with_the_lines_that_convert_it(root, content, monkeypatch):
    monkeypatch.chdir(root)
    np.save(root / "r.npy", np.array(content, dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match=r"a pickle, .* not loaded .* allow_pickle=True\).item\(\); numpy.savez\('r.npz'") as caught:
        source_of(root, key="betasmd").subject("s1")
    assert "\n" not in str(caught.value) and not Path("was_run").exists()


@pytest.mark.parametrize("form", ["last.npy", "first.npy", "last.h5", "matlab 7.3.mat", "matlab 5.mat"])
def test_the_mask_s_shape_says_which_axis_is_the_trials(root, form, monkeypatch):
    monkeypatch.setattr("unimind.data.sources.arrayfile._SLAB", 8 * 2 * SHAPE[2] * N)  # two rows of voxels at a time
    volumes = betas()
    name = f"r{form[-4:]}" if form[-3:] != ".h5" else "r.h5"
    if form.endswith(".npy"):
        np.save(root / name, volumes if form == "last.npy" else np.moveaxis(volumes, -1, 0))
    elif form == "matlab 5.mat":
        savemat(root / name, {"x": volumes})
    else:
        with h5py.File(root / name, "w") as file:
            file["x"] = volumes if form == "last.h5" else volumes.T
            if form.startswith("matlab"):
                file["x"].attrs["MATLAB_class"] = np.bytes_("single")
    save_nifti(root / "mask.nii.gz", MASK.astype(np.uint8))
    raw, found, _, _ = read(source_of(root, responses=name, mask="mask.nii.gz"))
    np.testing.assert_array_equal(found, volumes[MASK > 0].T)
    np.testing.assert_allclose(raw.xyz, nibabel.affines.apply_affine(AFFINE, np.argwhere(MASK > 0)))


def test_axes_that_the_mask_leaves_open_are_refused(root):
    np.save(root / "r.npy", np.zeros((4, 4, 4, 4)))
    np.save(root / "m.npy", np.ones((4, 4, 4)))
    with pytest.raises(InputError, match=r"fit the mask's \(4, 4, 4\) as xyzt and as txyz"):
        source_of(root, mask="m.npy").subject("s1")
    np.save(root / "m.npy", np.ones((4, 4, 3)))
    with pytest.raises(InputError, match="no three of its axes"):
        source_of(root, mask="m.npy").subject("s1")
    np.save(root / "r.npy", RESPONSES)
    with pytest.raises(InputError, match="already those of a mask"):
        source_of(root, mask="m.npy").subject("s1")


@pytest.mark.parametrize(("threshold", "kept"), [(0, [0.2, 0.5, 0.9]), (0.5, [0.9])])
def test_a_mask_of_probabilities_and_a_single_slice(root, threshold, kept, capsys):
    mask = np.array([[[0.0], [0.2]], [[0.5], [0.9]]], np.float32)
    volumes = betas((2, 2, 1))
    save_nifti(root / "b.nii.gz", volumes)
    save_nifti(root / "mask.nii.gz", mask)
    raw, found, _, _ = read(source_of(root, responses="b.nii.gz", mask="mask.nii.gz", mask_threshold=threshold))
    np.testing.assert_array_equal(found, volumes[np.isin(mask, np.float32(kept))].T)
    assert raw.roi is None and f"the {len(kept)} voxels above mask_threshold {threshold:g}" in capsys.readouterr().err
    with pytest.raises(InputError, match="values such as 0.5 are no labels"):
        source_of(root, responses="b.nii.gz", mask="mask.nii.gz", mask_labels=[1]).subject("s1")


NOT_REAL = {
    "complex": (RESPONSES * 1j, "complex numbers"),
    "structured": (np.zeros((N, 2), [("beta", "f4")]), "structured array with the fields beta"),
    "text": (np.full((N, 2), "x"), "holds text"),
    "objects": (RESPONSES.astype(object), "holds objects"),
    "empty": (np.zeros((N, 0)), r"is empty: its shape is \(24, 0\)"),
    "dates": (np.zeros((N, 2), "M8[s]"), "holds dates"),
}


@pytest.mark.parametrize("case", NOT_REAL)
def test_numpy_arrays_of_something_else_are_refused_by_their_cause(root, case):
    values, words = NOT_REAL[case]
    np.save(root / "r.npy", values)
    np.savez(root / "r.npz", x=values)
    for name in ("r.npy", "r.npz"):
        with pytest.raises(InputError, match=words):
            source_of(root, responses=name).subject("s1")


def of_npz(path):
    np.savez(path.with_suffix(".npz"), betas=RESPONSES)
    path.with_suffix(".npz").rename(path)


def unpacked(path):
    save_nifti(path.with_name("x.nii"), betas())
    path.with_name("x.nii").rename(path)


WHOLE_BUT_ELSE = {
    "npz": ("r.npy", of_npz, "it is a zip archive, as numpy's .npz is one; call it .npz"),
    "pickle": ("r.npy", lambda path: path.write_bytes(pickle.dumps({"betasmd": RESPONSES})), "it is a Python pickle; no pickle is loaded"),
    "npy": ("r.h5", lambda path: path.write_bytes((path.parent / "r.npy").read_bytes()), "it is numpy's .npy; call it .npy"),
    "not packed": ("r.nii.gz", unpacked, "it is NIfTI that is not packed; call it .nii"),
    "Git LFS": ("r.mat", lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), r"get the file itself \(git lfs pull\)"),
    "web page": ("r.npy", lambda path: path.write_text("\n<!DOCTYPE html><html>log in</html>"), "it is a web page; get the file again"),
}


@pytest.mark.parametrize("case", WHOLE_BUT_ELSE)
def test_a_whole_file_of_another_kind_is_not_called_damaged(root, case):
    name, write, words = WHOLE_BUT_ELSE[case]
    write(root / name)
    save_nifti(root / "mask.nii.gz", MASK.astype(np.uint8))
    with pytest.raises(InputError, match=words) as caught:
        source_of(root, responses=name, **({"mask": "mask.nii.gz"} if ".nii" in name else {})).subject("s1")
    assert "\n" not in str(caught.value) and "delete" not in str(caught.value)


def test_links_that_end_in_another_file_and_arrays_of_structures(root):
    with h5py.File(root / "other.h5", "w") as file:
        file["x"] = RESPONSES
    with h5py.File(root / "r.h5", "w") as file:
        file["there"], file["betas"], file["z"] = h5py.ExternalLink("other.h5", "x"), h5py.SoftLink("/there"), 1
    with pytest.raises(InputError, match="betas leads to another file, .*other.h5; name that file"):
        source_of(root, responses="r.h5", key="betas").subject("s1")
    savemat(root / "r.mat", {"s": [{"betas": RESPONSES}, {"betas": RESPONSES}]})
    with pytest.raises(InputError, match="s holds objects"):
        source_of(root, responses="r.mat", key="s/betas").subject("s1")


def test_hdf5_and_matlab_arrays_of_something_else_are_refused_by_their_cause(root):
    from scipy.sparse import csc_matrix

    with h5py.File(root / "other.h5", "w") as file:
        file["x"] = RESPONSES
    with h5py.File(root / "r.h5", "w") as file:
        file["complex"] = RESPONSES * 1j
        file["fields"] = np.zeros(N, [("a", "f4"), ("b", "f4")])
        file["link"] = h5py.ExternalLink("other.h5", "x")
        file["soft"] = h5py.SoftLink("/plain")
        file["nowhere"] = h5py.SoftLink("/gone")
        file["words"] = "text"
        file["deep/far"] = h5py.ExternalLink("gone.h5", "/")
        file["plain"] = RESPONSES
        layout = h5py.VirtualLayout(RESPONSES.shape, "f4")
        layout[:] = h5py.VirtualSource("gone.h5", "x", RESPONSES.shape)
        file.create_virtual_dataset("virtual", layout)
        file.create_dataset("cells", (1, N), h5py.ref_dtype)
        file["sparse/data"] = RESPONSES
        file["sparse"].attrs["MATLAB_sparse"] = 5
    check(source_of(root, responses="r.h5", key="soft"))
    for key, words in {
        "complex": "complex numbers", "fields": "fields a, b", "link": "link is a link to another file, other.h5", "virtual": "lie in another file, gone.h5",
        "nowhere": "no array 'nowhere'",
        "words": "words holds text", "deep/far/x": "deep/far is a link to another file, gone.h5",
        "cells": "a cell array", "sparse": "sparse matrix",
    }.items():  # fmt: skip
        with pytest.raises(InputError, match=words):
            source_of(root, responses="r.h5", key=key).subject("s1")
    cells = np.empty(3, object)
    cells[:] = [RESPONSES[0], RESPONSES[1, :3], "x"]
    savemat(root / "r.mat", {"cells": cells, "sparse": csc_matrix(RESPONSES.astype(float)), "D": {"data": RESPONSES}, "z": RESPONSES * 1j})
    for key, words in {"cells": "a cell array", "sparse": "sparse matrix", "D": "a structure with the fields data; .* `key: D/data`", "z": "complex"}.items():
        with pytest.raises(InputError, match=words):
            source_of(root, responses="r.mat", key=key).subject("s1")
    save_nifti(root / "mask.nii.gz", MASK.astype(np.uint8))
    save_nifti(root / "b.nii.gz", VOLUMES.astype(np.complex64))
    with pytest.raises(InputError, match="complex"):
        source_of(root, responses="b.nii.gz", mask="mask.nii.gz").subject("s1")


# --- one file a session or run -----------------------------------------------------------------------------------


def write_parts(root, pattern, table_of):
    """Two sessions of two runs of 6 trials in files named by `pattern`; 12 session folders would sort wrongly as text."""
    rows = []
    for at, (session, run) in enumerate(((2, 1), (2, 2), (10, 1), (10, 2))):
        path = root / pattern.format(session=session, run=run)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, RESPONSES[6 * at : 6 * at + 6])
        rows += [(session, run, k, 6 * at + k + 1) for k in range(6)]
    table_of(rows)


@pytest.mark.parametrize("pattern", ["ses-{session}/run-{run}/r.npy", "{session}_{run}.npy", "ses-{session:02d}/ses-{session:02d}_run-{run:03d}.npy"])
@pytest.mark.parametrize("kind", ["sorted", "shuffled", "from 1", "rows only"])
def test_files_and_rows_meet_by_session_and_run(root, pattern, kind, capsys):
    order = RNG.permutation(24) if kind in ("shuffled", "from 1") else np.arange(24)

    def table_of(rows):
        columns = ["session", "run", "beta_index", "stim_file"] if kind != "rows only" else ["session", "run", "stim_file"]
        cells = [[f"ses-{s:02d}", f"{r}.0", k + (kind == "from 1"), f"image{p}.png"] for s, r, k, p in (rows[at] for at in order)]
        write_table(root, [columns, *([c if len(columns) == 4 else [c[0], c[1], c[3]] for c in cells])], "t.tsv")

    write_parts(root, pattern, table_of)
    study = pattern.replace(":02d", "").replace(":03d", "")
    source = source_of(root, responses=study, trials="t.tsv")
    by_session = np.concatenate([order[order < 12], order[order >= 12]])
    check(source, by_session, RESPONSES[by_session])
    assert source.subject("s1").trials.session.tolist() == [2] * 12 + [10] * 12
    if kind in ("shuffled", "from 1"):
        assert f"beta_index counts from {int(kind == 'from 1')}" in capsys.readouterr().err


def test_one_table_a_session_and_names_with_folders(root, capsys):
    def table_of(rows):
        for part in ((2, 1), (2, 2), (10, 1), (10, 2)):
            cells = [[k, f"C:\\lab\\pictures\\image{p}.png" if k else "n/a"] for s, r, k, p in rows if (s, r) == part]
            write_table(root, [["onset", "stimulus"], *cells], f"t_ses-{part[0]}_{part[1]}.tsv")

    write_parts(root, "{session}_{run}.npy", table_of)
    kept = np.array([k for k in range(24) if k % 6])
    check(source_of(root, responses="{session}_{run}.npy", trials="t_ses-{session}_{run}.tsv"), kept, RESPONSES[kept])
    assert "4 of 24 trials show no picture" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([["session", "picture"], *[[1 + k // 12, k + 1] for k in range(24)]], "line 2: session 1, of which there is no file of responses"),
        ([["session", "picture"], *[[2, k + 1] for k in range(24)]], "10_1.npy: no row of the trial table is of session 10"),
        ([["session", "picture"], *[[2 if k < 13 else 10, k + 1] for k in range(24)]], r"12 trials, but session 2 has 13 rows \(.*line 2 to 14\)"),
        ([["session", "picture"], *[["" if k == 7 else 2, k + 1] for k in range(24)]], "line 9: session is empty"),
        ([["session", "picture"], *[["one", k + 1] for k in range(24)]], "line 2: session is 'one'; expected whole numbers"),
        ([["session", "picture"], *[[20240105123000, k + 1] for k in range(24)]], "expected whole numbers up to 2147483647"),
        ([["session", "beta_index", "picture"], *[[2 + 8 * (k // 12), k % 6, k + 1] for k in range(24)]], "line 8: beta_index 0 stands in .* line 2 too"),
        ([["session", "beta_index", "picture"], *[[2 + 8 * (k // 12), k % 13, k + 1] for k in range(24)]], "beta_index 12 is outside 0 to 11, counted from 0"),
        ([["session", "beta_index", "picture"], [2, 3, 1], [10, 4, 2]], "neither the first nor the last occurs .*; write datasets.own.count_from"),
    ],
)  # fmt: skip
def test_rows_and_files_that_do_not_belong_together(root, rows, words):
    write_parts(root, "{session}_{run}.npy", lambda _: write_table(root, rows))
    with pytest.raises(InputError, match=words):
        source_of(root, responses="{session}_{run}.npy", trials="t.csv").subject("s1")


def test_files_whose_name_holds_no_number_or_one_twice(root):
    np.save(root / "r_pre.npy", RESPONSES)
    with pytest.raises(InputError, match=r"r_pre.npy: {session} of datasets.own.responses stands for 'pre' here; expected a number"):
        source_of(root, responses="r_{session}.npy").subject("s1")
    (root / "r_pre.npy").rename(root / "r_1.npy")
    np.save(root / "r_01.npy", RESPONSES)
    with pytest.raises(InputError, match="both are session 1; keep one"):
        source_of(root, responses="r_{session}.npy").subject("s1")


def test_a_table_out_of_the_order_of_its_runs_and_where_runs_differ(root):
    rows = [["run", "picture"], *[[1 + k // 6, k + 1] for k in range(N)]]
    write_table(root, rows)
    check(source_of(root, trials="t.csv"))
    write_table(root, [rows[0], *rows[8:], *rows[1:8]])
    with pytest.raises(InputError, match="line 19: run 1 after run 4: the rows are not in the order of the trials"):
        source_of(root, trials="t.csv").subject("s1")
    write_table(root, rows[:9] + rows[10:])
    with pytest.raises(InputError, match="24 trials, but 23 rows in .*; run 2 has 5 rows, from 8 on, where most have 6"):
        source_of(root, trials="t.csv").subject("s1")


# --- names of pictures -------------------------------------------------------------------------------------------


def test_files_that_programs_keep_for_themselves_are_no_pictures(root):
    folder = root / "pictures"
    for name in (".ipynb_checkpoints", "@eaDir", "__MACOSX"):
        (folder / name).mkdir()
        (folder / name / "image1.png").write_bytes(png(PICTURES[5]))
    (folder / "._image1.png").write_bytes(b"Mac OS X")
    check(source_of(root))
    with zipfile.ZipFile(root / "p.zip", "w") as archive:
        for path in sorted(folder.rglob("*.png")):
            archive.write(path, path.relative_to(root))
    check(source_of(root, images="p.zip"))


def test_accents_case_and_long_numbers(tmp_path):
    np.save(tmp_path / "r.npy", RESPONSES[:4])
    names = ["caf\u0065\u0301.png", "9007199254740993.png", "9007199254740992.png", "Dog.PNG"]
    (tmp_path / "pictures").mkdir()
    for name, pixels in zip(names, PICTURES, strict=False):
        (tmp_path / "pictures" / name).write_bytes(png(pixels))
    write_table(tmp_path, [["picture"], ["caf\u00e9"], ["9007199254740993"], ["9007199254740992.0"], ["dog.png"]])
    _, _, pictures, _ = read(source_of(tmp_path, trials="t.csv", split={"every": 3}))
    np.testing.assert_array_equal(pictures, PICTURES[:4])


@pytest.mark.parametrize("prefix", ["stim/", "elsewhere/set/"])
def test_folders_that_the_table_alone_has(root, prefix):
    write_table(root, [["picture"], *[[f"{prefix}image{k + 1}.png"] for k in range(N)]])
    check(source_of(root, trials="t.csv"))
    (root / "pictures/cats").mkdir()
    for path in (root / "pictures").glob("*.png"):
        path.rename(root / "pictures/cats" / path.name)
    with pytest.raises(InputError, match=f"line 2: no picture '{prefix}image1.png'"):  # not taken for the one in cats/
        source_of(root, trials="t.csv").subject("s1")


@pytest.mark.parametrize(("numbers", "base"), [(np.arange(N), 0), (np.arange(N) + 1, 1), (np.arange(N) % 9 + 3, None)])
def test_numbers_of_pictures_in_an_array_count_from_0_or_1(root, numbers, base):
    np.save(root / "p.npy", PICTURES)
    np.save(root / "conditions.npy", numbers.astype(float))
    source = source_of(root, images="p.npy", trials="conditions.npy")
    if base is not None:
        check(source, numbers - base)
        return
    with pytest.raises(InputError, match="trial 1: picture number of .* neither the first nor the last occurs .0, 24.; write datasets.own.count_from: 0 or 1"):
        source.subject("s1")
    for start in (0, 1):
        check(source_of(root, images="p.npy", trials="conditions.npy", count_from=start), numbers - start)


def test_numbers_that_floats_have_rounded_are_refused(root):
    np.save(root / "c.npy", np.full(N, 2**24, np.float32))
    with pytest.raises(InputError, match="picture numbers up to 16777216 as float32, which is exact up to 16777216 alone"):
        source_of(root, trials="c.npy").subject("s1")


@pytest.mark.parametrize("axes", ["nhwc", "nchw"])
def test_axes_of_arrays_of_pictures(root, axes):
    pictures = RNG.integers(0, 256, (N, 5, 8, 3), dtype=np.uint8)
    np.save(root / "p.npy", np.transpose(pictures, ["nhwc".index(axis) for axis in axes]))
    savemat(root / "p5.mat", {"x": pictures.transpose(1, 2, 3, 0)})
    with h5py.File(root / "p73.mat", "w", userblock_size=512) as file:
        file["x"] = pictures.transpose(1, 2, 3, 0).T
        file["x"].attrs["MATLAB_class"] = np.bytes_("uint8")
        file["grey"] = pictures[..., 0].transpose(1, 2, 0).T
        file["grey"].attrs["MATLAB_class"] = np.bytes_("uint8")
    for name, section in (("p.npy", {}), ("p5.mat", {}), ("p73.mat", {"images_key": "x"})):
        loaded = source_of(root, images=name, **section)._pictures(None)
        np.testing.assert_array_equal([loaded.load(str(k)) for k in range(N)], pictures)
    with pytest.raises(InputError, match="give `images_shape: "):
        source_of(root, images="p73.mat", images_key="grey").stimuli(None, 9)
    loaded = source_of(root, images="p73.mat", images_key="grey", images_shape=[5, 8])._pictures(None)
    np.testing.assert_array_equal([loaded.load(str(k))[..., 0] for k in range(N)], pictures[..., 0])


def test_a_table_enters_a_shared_set_of_pictures_by_its_test_pictures(root):
    rows = [["picture", "part"], *[[k + 1, "test" if k == 3 else "train"] for k in range(N)]]
    write_table(root, rows)
    source = source_of(root, trials="t.csv", split={"column": "part"})
    (file,) = [file for file in source.files(None) if file.path == "t.csv"]
    before = file.part(root / "t.csv")
    rows[1][0], rows[2][0] = rows[2][0], rows[1][0]
    write_table(root, rows)
    assert file.part(root / "t.csv") == before
    rows[1][1] = "test"
    write_table(root, rows)
    assert file.part(root / "t.csv") != before


def test_files_elsewhere_are_read_and_listed(root, tmp_path_factory, monkeypatch):
    other = tmp_path_factory.mktemp("other")
    (root / "r.npy").rename(other / "r.npy")
    (root / "pictures").rename(other / "pictures")
    monkeypatch.setenv("LAB", str(other))
    source = source_of(root, responses="$LAB/r.npy", images=str(other / "pictures"))
    check(source)
    assert {str(below(root, file.path)) for file in source.files("s1")} == {str(path) for path in (other / "r.npy", *(other / "pictures").iterdir())}


def test_a_folder_without_pictures_and_a_link_to_nothing_are_named(tmp_path, root):
    from unimind.data.fetch import fetch

    study = {"source": "arrays", "root": str(root), "training_subjects": ["s1"], "responses": "r.npy", "images": "empty"}
    method = {"enter": {"kind": "ridge"}, "scope": "subject"}
    study = parse_study({"name": "s", "datasets": {"own": study}, "methods": {"m": method}, "foundations": {"diffusion": {"kind": "study"}}})
    (root / "empty").mkdir()
    (root / "empty/a.jp2").write_bytes(b"x")
    with pytest.raises(InputError, match=r"empty: a folder, and no file in it ends like a picture \(.bmp, .gif"):
        fetch(study, "own", stimuli=True, out=tmp_path / "f.json")
    (root / "empty/a.png").symlink_to("../.git/annex/objects/a.png")
    with pytest.raises(InputError, match=r"a.png: a link to a file that is not here, .*datalad get"):
        fetch(study, "own", stimuli=True, out=tmp_path / "f.json")

import io
import tarfile
import zipfile
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from unimind.data.sources import open_source
from unimind.data.sources.base import TEST
from unimind.errors import InputError
from unimind.study import parse_study

N, UNITS = 24, 7
RNG = np.random.default_rng(3)
RESPONSES = RNG.normal(size=(N, UNITS)).astype(np.float32)
PICTURES = RNG.integers(0, 256, (N, 9, 9, 3), dtype=np.uint8)
ORDER = RNG.permutation(N)  # in which order archives are written


def source_of(root: Path, **section):
    given = {"source": "arrays", "root": str(root), "training_subjects": ["s1"], "responses": "r.npy", "images": "pictures", **section}
    method = {"encoder": {"kind": "ridge"}, "scope": "subject"}
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

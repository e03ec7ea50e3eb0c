import numpy as np
import pytest
from layouts import BOLD_ROIS, RUN, RUNS, lossless, make_bold5000, save_bold5000

from unimind.data.sources import open_source
from unimind.errors import InputError
from unimind.study import parse_study

RNG = np.random.default_rng(8)


def source_of(root, **section):
    given = {"source": "bold5000", "root": str(root), "training_subjects": ["CSI1"], **section}
    method = {"enter": {"kind": "ridge"}, "scope": "subject"}
    study = parse_study({"name": "s", "datasets": {"b": given}, "methods": {"m": method}, "foundations": {"diffusion": {"kind": "study"}}})
    return open_source(study, "b")


def odd(hemisphere, roi):
    """As some subjects' files are called."""
    return {"LHLOC": "LHLO", "RHLOC": "RHLO", "RHRSC": "RHRRSC"}.get(hemisphere + roi, hemisphere + roi)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("spelling", [odd, lambda hemisphere, roi: f"{hemisphere}{roi}"])
def test_every_trial_has_its_own_response_and_picture(tmp_path, packed, spelling):
    files, betas, arrays, shown, session, pixels, again = make_bold5000(spelling)
    save_bold5000(tmp_path, "BOLD5000_Stimuli", files, packed)
    save_bold5000(tmp_path, "BOLD5000_GLMsingle_ROI_betas", betas, packed)
    source = source_of(tmp_path)
    raw = source.subject("CSI1")
    stimuli = {stimulus.id: stimulus for stimulus in source.stimuli(None, 12)}
    expected = np.concatenate([arrays[hemisphere + roi] for roi in BOLD_ROIS for hemisphere in ("LH", "RH")], axis=1)
    np.testing.assert_array_equal(np.concatenate(list(raw.trials.responses())), expected.astype(np.float32))
    np.testing.assert_array_equal(raw.trials.session, session)
    assert [len(block) for block in raw.trials.responses()] == [RUN * runs for runs in RUNS]
    assert list(raw.trials.stimulus) == shown
    assert set(stimuli) == set(pixels)
    for name, stimulus in stimuli.items():
        np.testing.assert_array_equal(stimulus.image, pixels[name][:, 2:14])
        assert stimulus.test == (name in again)
    assert [raw.roi_names[label] for label in raw.roi] == [roi for roi, size in BOLD_ROIS.items() for _ in range(2 * size)]
    raw = source_of(tmp_path, rois=["PPA", "EarlyVis"]).subject("CSI1")
    expected = np.concatenate([arrays[name] for name in ("LHPPA", "RHPPA", "LHEarlyVis", "RHEarlyVis")], axis=1)
    np.testing.assert_array_equal(np.concatenate(list(raw.trials.responses())), expected.astype(np.float32))


def test_files_are_the_archives_or_what_is_unpacked(tmp_path):
    assert [file.path for file in source_of(tmp_path).files("CSI1")] == ["BOLD5000_GLMsingle_ROI_betas.zip", "BOLD5000_Stimuli.zip"]
    assert [file.path for file in source_of(tmp_path).files(None)] == ["BOLD5000_Stimuli.zip"]
    files, betas, *_ = make_bold5000()
    save_bold5000(tmp_path, "BOLD5000_Stimuli", files, False)
    save_bold5000(tmp_path, "BOLD5000_GLMsingle_ROI_betas", betas, False)
    found = {file.path for file in source_of(tmp_path).files("CSI1")}
    lists = {f"BOLD5000_Stimuli/{path}" for path in files if path.endswith(".txt") and "Presentation" in path}
    assert found == {f"BOLD5000_GLMsingle_ROI_betas/{path}" for path in betas} | lists
    assert all((tmp_path / file.path).exists() and file.address is None for file in source_of(tmp_path).files(None))


def test_what_cannot_be_used_is_one_line(tmp_path):
    files, betas, _, _, _, pixels, _ = make_bold5000()
    run = next(path for path in files if "sess01_run01.txt" in path)
    save_bold5000(tmp_path, "BOLD5000_GLMsingle_ROI_betas", betas, True)

    def refused(changed, words, stage=lambda source: source.subject("CSI1")):
        save_bold5000(tmp_path, "BOLD5000_Stimuli", changed, True)
        with pytest.raises(InputError, match=words):
            stage(source_of(tmp_path))

    refused({path: content for path, content in files.items() if path != run}, r"betas of shape \(96, 5\), but 90 trials")
    refused(files | {run: files[run].replace(b"\n", b"x\n", 1)}, "is not among the presented pictures")
    refused({path: content for path, content in files.items() if "sess" not in path}, "no presentation lists of CSI1")
    without_list = {path: content for path, content in files.items() if "repeated" not in path}
    refused(without_list, "no repeated_stimuli_113_list", lambda source: source.stimuli(None, 12))
    save_bold5000(tmp_path, "BOLD5000_Stimuli", files, True)
    save_bold5000(tmp_path, "BOLD5000_GLMsingle_ROI_betas", {path: content for path, content in betas.items() if "RHOPA" not in path}, True)
    with pytest.raises(InputError, match="has no betas of CSI1, RHOPA"):
        source_of(tmp_path).subject("CSI1")
    whole = (tmp_path / "BOLD5000_Stimuli.zip").read_bytes()
    (tmp_path / "BOLD5000_Stimuli.zip").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="not a readable zip archive"):
        source_of(tmp_path).stimuli(None, 12)
    middle = whole.index(lossless(next(iter(pixels.values())))) + 60
    (tmp_path / "BOLD5000_Stimuli.zip").write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    with pytest.raises(InputError, match="not whole: member BOLD5000_Stimuli/Scene.* is damaged .*; if it was downloaded, delete it and get it again"):
        list(source_of(tmp_path).stimuli(None, 12))
    with pytest.raises(InputError, match="is no subject of BOLD5000"):
        source_of(tmp_path, new_subjects=["CSI9"]).files("CSI9")

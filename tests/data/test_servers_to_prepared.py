"""From a stand-in server over fetch, stimuli and prepare to validated files: GOD and BOLD5000 in their true layouts."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from layouts import BOLD_ROIS, GOD_IDS, GOD_NAMES, GOD_PIXELS, GOD_ROIS, make_bold5000, write_god
from servers import http_site

from unimind.data import transport
from unimind.data.fetch import fetch
from unimind.data.prepare import prepare
from unimind.data.prepared import PreparedSubject, Stimuli
from unimind.data.stimuli import stimuli
from unimind.study import parse_study

METHODS = {"methods": {"m": {"encoder": {"kind": "ridge"}, "scope": "subject"}}, "foundations": {"diffusion": {"kind": "study"}}}


def chain(folder: Path, name: str, section: dict, subject: str, size: int) -> tuple[Stimuli, PreparedSubject]:
    study = parse_study({"name": "s", "picture_size": size, "datasets": {name: section}, **METHODS})
    fetch(study, dataset=name, stimuli=True, out=folder / "stimuli.json")
    fetch(study, dataset=name, subject=subject, out=folder / "subject.json")
    stimuli(study, name, None, folder / "stimuli.json", folder / "stimuli.h5")
    prepare(study, name, subject, folder / "subject.json", folder / "stimuli.h5", [folder / "stimuli.h5"], folder / "subject.h5")
    return Stimuli(folder / "stimuli.h5"), PreparedSubject(folder / "subject.h5")


def scaled(raw: np.ndarray, session: np.ndarray, training: np.ndarray) -> np.ndarray:
    out = np.empty_like(raw)
    for number in np.unique(session):
        at = session == number
        out[at] = (raw[at] - raw[at & training].mean(0)) / raw[at & training].std(0)
    return out


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(transport, "BACKOFF", 0.0)
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)


def test_god(tmp_path, monkeypatch):
    pytest.importorskip("bdpy", reason="bdpy writes GOD's files here; it needs Python < 3.12")
    (tmp_path / "server").mkdir()
    kinds, values, voxels, _ = write_god(tmp_path / "server")
    content = (tmp_path / "server" / "Subject1.h5").read_bytes()
    section = {
        "source": "god",
        "training_subjects": ["Subject1"],
        "root": str(tmp_path / "god"),
        "images": str(tmp_path / "server" / "images"),
        "imagery": True,
    }
    with http_site(files={"/Subject1.h5": content}, cut_after=[len(content) // 3, len(content) // 4], statuses=[503]) as site:
        monkeypatch.setenv("UNIMIND_MIRROR_GOD", site.address)
        pictures, prepared = chain(tmp_path, "god", section, "Subject1", 12)
    rows = np.flatnonzero(kinds < 3)
    shown = [int(np.flatnonzero(GOD_IDS == value)[0]) for value in values[rows]]
    with pictures, prepared:
        assert [pictures.id[row] for row in prepared.stimulus] == [f"n{GOD_NAMES[k][0]:08d}_{GOD_NAMES[k][1]}" for k in shown]
        for row, k in zip(prepared.stimulus, shown, strict=True):
            np.testing.assert_array_equal(pictures.images[int(row)], GOD_PIXELS[k])
        np.testing.assert_array_equal(prepared.split == 2, kinds[rows] == 2)
        raw = voxels[rows][:, list(GOD_ROIS["VC"])][:, prepared.stored]
        np.testing.assert_allclose(prepared.responses[:], scaled(raw, prepared.session, prepared.split == 0), atol=1e-4)
        fit = raw[prepared.split == 0]
        with PreparedSubject(tmp_path / "subject.imagery.h5") as imagery:
            raw = voxels[kinds == 3][:, list(GOD_ROIS["VC"])][:, imagery.stored]
            np.testing.assert_allclose(imagery.responses[:], (raw - fit.mean(0)) / fit.std(0), atol=1e-4)
            assert (imagery.split == 2).all()


def test_bold5000(tmp_path, monkeypatch):
    files, betas, arrays, shown, session, pixels, again = make_bold5000()
    served = {}
    for name, content in (("BOLD5000_Stimuli", files), ("BOLD5000_GLMsingle_ROI_betas", betas)):
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            for path, part in content.items():
                archive.writestr(f"{name}/{path}", part)
        served[f"/{name}.zip"] = stream.getvalue()
    section = {"source": "bold5000", "training_subjects": ["CSI1"], "root": str(tmp_path / "bold5000")}
    with http_site(files=served, ranges=False, cut_after=[5000]) as site:
        monkeypatch.setenv("UNIMIND_MIRROR_BOLD5000", site.address)
        pictures, prepared = chain(tmp_path, "bold5000", section, "CSI1", 10)
    with pictures, prepared:
        assert [pictures.id[row] for row in prepared.stimulus] == shown
        for row, name in zip(prepared.stimulus, shown, strict=True):
            np.testing.assert_array_equal(pictures.images[int(row)], pixels[name][:, 2:12])
        np.testing.assert_array_equal(prepared.split == 2, np.isin(shown, again))
        np.testing.assert_array_equal(prepared.session, session)
        raw = np.concatenate([arrays[hemisphere + roi] for roi in BOLD_ROIS for hemisphere in ("LH", "RH")], axis=1)[:, prepared.stored]
        np.testing.assert_allclose(prepared.responses[:], scaled(raw, session, prepared.split == 0), atol=1e-4)

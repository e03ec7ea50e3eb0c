"""Human V1 on binary figures (Miyawaki et al. 2008; Yamada et al. 2015), read through `arrays`."""

import os
from pathlib import Path

import numpy as np
import pytest

from unimind.data.sources import open_source
from unimind.study import parse_study

REAL = Path(os.environ.get("UNIMIND_REAL_DATA", "")) / "data" / "miyawaki"
pytestmark = pytest.mark.skipif(not (REAL / "S2_figureImage.mat").exists(), reason="UNIMIND_REAL_DATA does not lead to the Miyawaki recordings")
FIGURES = {"images": "V1_mean_figure.mat", "images_key": "I2", "images_shape": [10, 10], "images_transposed": True}
S1 = {"responses": "V1_mean_figure.mat", "key": "R2", "orientation": "voxels_by_trials", **FIGURES}
S2 = {
    "responses": "S2_figureImage.mat",
    "key": "D/data",
    "orientation": "voxels_by_trials",
    "blocks": {"labels": "D/labels", "delay": 2, "runs": 4, "ignore": [1, 2], "pictures": {2001: 0, 2002: 1, 2003: 4, 2004: 2, 2005: 3}},
    **FIGURES,
}


def read(section: dict):
    content = {"source": "arrays", "root": str(REAL), "training_subjects": ["s"], **section}
    study = parse_study(
        {
            "name": "m",
            "datasets": {"v1": content},
            "methods": {"m": {"enter": {"kind": "ridge"}, "scope": "subject"}},
            "foundations": {"diffusion": {"kind": "study"}},
        }
    )
    source = open_source(study, "v1")
    raw = source.subject("s")
    pictures = {stimulus.id: stimulus.image for stimulus in source.stimuli(None, 10)}
    return raw, np.concatenate(list(raw.trials.responses())), pictures


def identified(responses, trials, fold, pictures) -> float:
    """Share of trials whose picture, predicted by ridge without their fold, correlates best with the picture shown."""
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    names = list(pictures)
    flat = np.stack([pictures[name][..., 0].ravel() for name in names]) / 255.0
    shown = np.array([names.index(name) for name in trials])
    right = 0
    for each in np.unique(fold):
        out = fold == each
        model = make_pipeline(StandardScaler(), Ridge(alpha=100.0)).fit(responses[~out], flat[shown[~out]])
        agreement = np.corrcoef(model.predict(responses[out]), flat)[: out.sum(), out.sum() :]
        right += (agreement.argmax(1) == shown[out]).sum()
    return right / len(shown)


def test_ten_shapes_of_s1():
    from scipy.io import loadmat

    raw, responses, pictures = read(S1)
    held = loadmat(REAL / "V1_mean_figure.mat")
    assert responses.shape == (80, 797)
    np.testing.assert_allclose(responses, held["R2"].T, rtol=1e-6)
    assert len(pictures) == 10
    for trial, name in enumerate(raw.trials.stimulus):
        np.testing.assert_array_equal(pictures[name][..., 0], held["I2"][:, trial].reshape(10, 10).T * 255)
    assert identified(responses, raw.trials.stimulus, np.arange(80) // 10, pictures) == pytest.approx(0.89, abs=0.03)


def test_five_shapes_of_s2_from_volumes():
    import h5py

    raw, responses, pictures = read(S2)
    assert responses.shape == (40, 910)
    assert list(raw.trials.session) == [1] * 10 + [2] * 10 + [3] * 10 + [4] * 10
    with h5py.File(REAL / "S2_figureImage.mat") as file:
        labels = file["D/labels"][0].astype(int)
    starts = [k for k in range(len(labels)) if labels[k] > 2 and labels[k] != labels[k - 1]]
    assert [S2["blocks"]["pictures"][labels[k]] for k in starts] == [int(name) for name in raw.trials.stimulus]
    five = {name: pictures[name] for name in sorted(set(raw.trials.stimulus))}
    assert len(five) == 5
    assert identified(responses, raw.trials.stimulus, raw.trials.session, five) == pytest.approx(0.975, abs=0.026)

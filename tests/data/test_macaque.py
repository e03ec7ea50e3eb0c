"""Real recordings (macaque V4, Cowley et al. 2023), read through `arrays` as config/macaque_v4.yaml does."""

import os
import re
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unimind.data.sources import open_source
from unimind.study import parse_study

REAL = Path(os.environ.get("UNIMIND_REAL_DATA", ""))
FOLDER = REAL / "data" / "macaque_v4"
pytestmark = pytest.mark.skipif(not (FOLDER / "190923").is_dir(), reason="UNIMIND_REAL_DATA does not lead to the macaque recordings")
TRAINING = ["190923", "190925", "190927", "201016", "201017", "201018", "210322"]
NEW = ["190928", "210224", "210325"]
#: Units, pictures shown, different pictures.
COUNTS = {
    "190923": (33, 1200, 1200), "190925": (36, 1200, 900), "190927": (31, 1200, 1200), "190928": (24, 1200, 1200), "201016": (82, 600, 600),
    "201017": (88, 600, 600), "201018": (80, 600, 600), "210224": (67, 800, 800), "210322": (59, 1200, 1200), "210325": (50, 640, 640),
}  # fmt: skip


@pytest.fixture(scope="module")
def source():
    section = {
        "source": "arrays", "root": str(FOLDER), "training_subjects": TRAINING, "new_subjects": NEW, "responses": "{subject}/responses.npy",
        "orientation": "voxels_by_trials", "images": "{subject}/images.zip", "split": {"every": 5},
    }  # fmt: skip
    method = {"enter": {"kind": "ridge"}, "scope": "subject"}
    study = parse_study({"name": "m", "datasets": {"v4": section}, "methods": {"m": method}, "foundations": {"diffusion": {"kind": "study"}}})
    return open_source(study, "v4")


@pytest.fixture(scope="module")
def hashes():
    return {}


@pytest.mark.parametrize("session", [*TRAINING, *NEW])
def test_every_trial_has_its_own_response_and_picture(source, hashes, session):
    raw = source.subject(session)
    responses = np.concatenate(list(raw.trials.responses()))
    np.testing.assert_array_equal(responses, np.load(FOLDER / session / "responses.npy").T.astype(np.float32))
    stimuli = {stimulus.id: stimulus for stimulus in source.stimuli(session, 112)}
    hashes[session] = {stimulus.sha256 for stimulus in stimuli.values()}
    assert (raw.n_voxels, len(raw.trials.stimulus), len(stimuli)) == COUNTS[session]
    with zipfile.ZipFile(FOLDER / session / "images.zip") as archive:
        member = {int(found[1]): name for name in archive.namelist() if (found := re.search(r"(\d+)\.jpg$", name))}
        for column in range(len(responses)):
            with Image.open(BytesIO(archive.read(member[column + 1]))) as picture:
                shown = np.asarray(picture.convert("RGB"))
            stimulus = stimuli[raw.trials.stimulus[column]]
            np.testing.assert_array_equal(stimulus.image, shown)
            assert stimulus.test or column % 5


def test_repeated_pictures_of_190925_are_one_stimulus_and_never_in_both_splits(source):
    test = {stimulus.id: stimulus.test for stimulus in source.stimuli("190925", 112)}
    shown = np.array(source.subject("190925").trials.stimulus)
    by_column = {name for column, name in enumerate(shown) if column % 5 == 0}
    assert {name for name, flag in test.items() if flag} == by_column
    assert len(shown) - len(set(shown)) == 300


def test_210322_and_210325_share_600_pictures_and_no_others_share_any(source, hashes):
    for session in [*TRAINING, *NEW]:
        hashes.setdefault(session, {stimulus.sha256 for stimulus in source.stimuli(session, 112)})
    for one in hashes:
        for other in hashes:
            if one < other:
                assert len(hashes[one] & hashes[other]) == (600 if (one, other) == ("210322", "210325") else 0)


@pytest.mark.slow
@pytest.mark.parametrize("session", ["190923", "201017"])
def test_ridge_identifies_the_picture_as_published(source, session):
    """Two-way identification of SqueezeNet 1.1 features (pooled, of all its deeper stages) from units, 5-fold, is .94 to .99."""
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file
    from sklearn.linear_model import RidgeCV
    from sklearn.model_selection import KFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from torchvision.models import squeezenet1_1

    raw = source.subject(session)
    responses = np.concatenate(list(raw.trials.responses()))
    network = squeezenet1_1()
    network.load_state_dict(load_file(REAL / "weights" / "squeezenet1_1.safetensors"))
    network.eval()
    stimuli = list(source.stimuli(session, 112))
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    fires = []
    for layer in network.features[4:]:
        if type(layer).__name__ == "Fire":
            layer.register_forward_hook(lambda _, given, out: fires.append(out.mean((2, 3))))
    rows = []
    with torch.inference_mode():
        for part in torch.stack([torch.from_numpy(stimulus.image.copy()).permute(2, 0, 1) for stimulus in stimuli]).split(32):
            fires.clear()
            network.features((part / 255 - mean) / deviation)
            rows.append(torch.cat(fires, 1))
    features = StandardScaler().fit_transform(torch.cat(rows).numpy())
    place = {stimulus.id: row for row, stimulus in enumerate(stimuli)}
    truth = features[[place[name] for name in raw.trials.stimulus]]
    predicted = np.empty_like(truth)
    for train, test in KFold(5, shuffle=True, random_state=0).split(responses):
        model = make_pipeline(StandardScaler(), RidgeCV(np.logspace(0, 4, 5))).fit(responses[train], truth[train])
        predicted[test] = model.predict(responses[test])
    agreement = np.corrcoef(predicted, truth)[: len(truth), len(truth) :]
    two_way = (agreement < np.diag(agreement)[:, None]).sum() / (len(truth) * (len(truth) - 1))
    assert 0.935 <= two_way <= 0.995

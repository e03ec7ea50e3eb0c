import h5py
import nibabel
import numpy as np
import pandas as pd
import pytest
from data_studies import small_study
from scipy.io import loadmat
from scipy.ndimage import label
from sklearn.linear_model import RidgeCV
from sklearn.metrics import r2_score

from unimind.data.drawn import ATTRIBUTES, combinations, render
from unimind.data.sources import open_source
from unimind.data.sources import simulated as sim
from unimind.data.sources.simulated import simulate


def contents(files):
    return {file.name: file.read_bytes() for file in files}


def test_design_and_pictures_are_in_nsds_form(tmp_path):
    study = small_study(tmp_path)
    design_file, table_file, brick_file = simulate(study, "sim")
    design, table = loadmat(design_file), pd.read_csv(table_file, index_col=0)
    assert design["masterordering"].shape == (1, 180) and design["sharedix"].shape == (1, 10) and design["subjectim"].shape == (8, 60)
    assert design["stimpattern"].shape == (2, 12, 75) and design["stimpattern"].sum(axis=(1, 2)).tolist() == [90, 90]
    assert np.bincount(design["masterordering"].ravel().astype(int)).tolist() == [0, *[3] * 60]  # 1-based, three repeats
    assert (design["subjectim"][:, :10] == design["sharedix"]).all()
    everybody = np.concatenate([design["sharedix"].ravel(), design["subjectim"][:, 10:].ravel()])
    assert sorted(everybody) == list(range(1, 411))  # each picture belongs to all subjects or to one
    assert set(table["nsdId"][table["shared1000"]] + 1) == set(design["sharedix"].ravel())
    with h5py.File(brick_file) as file:
        assert file["imgBrick"].shape == (410, 32, 32, 3) and file["imgBrick"].dtype == np.uint8
    for subject in (1, 8):  # the table names the trials in which a subject saw a picture
        for _, row in table[table[f"subject{subject}"] == 1].iterrows():
            trials = [row[f"subject{subject}_rep{k}"] for k in range(3)]
            shown = design["subjectim"][subject - 1, design["masterordering"][0, np.array(trials) - 1].astype(int) - 1]
            assert (shown == row["nsdId"] + 1).all() and (row["nsdId"] in table["nsdId"][table["shared1000"]]) == row["shared1000"]


def test_a_subject_is_in_nsds_form(tmp_path):
    files = {file.name: file for file in simulate(small_study(tmp_path), "sim", "subj02")}
    betas = nibabel.load(files["betas_session01.nii.gz"])
    roi, prf, streams, brain = (np.asarray(nibabel.load(files[f"{n}.nii.gz"]).dataobj) for n in ("nsdgeneral", "prf-visualrois", "streams", "brainmask"))
    values = np.asarray(betas.dataobj)
    assert betas.get_data_dtype() == np.int16 and values.shape == (*roi.shape, 90) and len(files) == 7
    assert np.array_equal(roi == -1, brain == 0) and set(np.unique(roi)) == {-1, 0, 1}
    assert (values[brain == 0] == 0).all() and (values[brain == 1].std(axis=-1) > 0).all()
    assert 80 <= (roi == 1).sum() <= 120 and set(np.unique(prf)) == set(range(-1, 8)) and set(np.unique(streams)) == {-1, 0, 1, 5, 6}
    assert np.array_equal(prf > 0, streams == 1) and 0.4 < (prf > 0).sum() / (roi == 1).sum() < 0.5
    assert label(roi == 1)[1] == 1  # one piece of cortex
    assert abs(values).max() < 32767  # nothing clipped


def test_everything_follows_from_seeds_and_one_subject_changes_no_other(tmp_path):
    first = contents(simulate(small_study(tmp_path / "a"), "sim", "subj01"))
    alone = small_study(tmp_path / "b", training_subjects=["subj01"], new_subjects=[])
    assert contents(simulate(alone, "sim", "subj01")) == first
    assert contents(simulate(alone, "sim")) == contents(simulate(small_study(tmp_path / "c"), "sim"))
    other = contents(simulate(small_study(tmp_path / "d"), "sim", "subj02"))
    seed = contents(simulate(small_study(tmp_path / "e", seed=1), "sim", "subj01"))
    assert all(first[name] != other[name] != seed[name] for name in first)


def test_noise_ceiling_is_that_of_the_noise(tmp_path):
    """ncsnr as NSD estimates it, from the variance within and between pictures shown three times."""
    study = small_study(tmp_path, sessions=4, trials_per_session=300, shared_images=100, voxels=60)
    simulate(study, "sim")
    simulate(study, "sim", "subj01")
    subject = open_source(study, "sim").subject("subj01")
    trials = np.concatenate([(block - block.mean(0)) / block.std(0) for block in subject.trials.responses()])
    repeats = trials[np.argsort(np.asarray(subject.trials.stimulus), kind="stable")].reshape(-1, 3, subject.n_voxels)
    noise = repeats.var(axis=1, ddof=1).mean(axis=0)
    signal = np.maximum(trials.var(axis=0) - noise, 0)
    estimated = signal / (signal + noise)
    assert np.corrcoef(estimated, subject.noise_ceiling)[0, 1] > 0.85
    assert abs(np.median(estimated) - np.median(subject.noise_ceiling)) < 0.05


@pytest.fixture(scope="module")
def decoded(tmp_path_factory):
    """A ridge from voxels to each value of what is in the picture: predictions for means over three test trials, and the truth."""
    root = tmp_path_factory.mktemp("sim")
    study = small_study(root, sessions=3, trials_per_session=750, shared_images=150, voxels=500)
    simulate(study, "sim")
    simulate(study, "sim", "subj01")
    subject = open_source(study, "sim").subject("subj01")
    responses = np.concatenate([(block - block.mean(0)) / block.std(0) for block in subject.trials.responses()])
    section = study.datasets["sim"]
    order = sim._design(section).order
    attributes = render(np.concatenate([sim._pictures(section, number) for number in (0, 1)]), 32).attributes
    test = subject.trials.split == 2
    shown, position = np.unique(order[test], return_inverse=True)
    means = np.stack([responses[test][position == k].mean(0) for k in range(len(shown))])
    values = np.concatenate([np.eye(len(names))[attributes[:, k]] for k, names in enumerate(ATTRIBUTES.values())], axis=1)
    predicted = RidgeCV(np.logspace(2, 6, 9)).fit(responses[~test], values[order[~test]]).predict(means)
    parts = np.split(predicted, np.cumsum([len(names) for names in ATTRIBUTES.values()])[:-1], axis=1)
    assert len(shown) == 150
    return {name: (part.argmax(1), attributes[shown, k]) for k, (name, part) in enumerate(zip(ATTRIBUTES, parts, strict=True))}


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_what_is_in_a_picture_can_be_told_better_than_by_chance(decoded, name):
    predicted, truth = decoded[name]
    chance = 1 / len(ATTRIBUTES[name])
    assert (predicted == truth).mean() > chance + 2.3 * np.sqrt(chance * (1 - chance) / len(truth))  # 1 in 100 by chance alone
    if name in ("relation", "background"):
        assert (predicted == truth).mean() > 0.45


def test_no_sum_over_attributes_explains_later_voxels():
    """Conjunctions and rectification leave most of their variance to what is not linear in what a picture holds."""
    section = small_study("unused", voxels=120).datasets["sim"]
    drawn = render(combinations("training", 1, 1500), 32)
    brain = sim._brain(section, 1)
    signal = sim._signal(sim._random(section, 3, 1), drawn, brain)[:, ~np.isin(brain.area, list(sim._EARLY))]
    one_hot = np.concatenate([np.eye(len(values))[drawn.attribute(name)] for name, values in ATTRIBUTES.items()], axis=1)
    known = RidgeCV(np.logspace(-1, 3, 5)).fit(one_hot[:1200], signal[:1200]).predict(one_hot[1200:])
    assert 0.2 < r2_score(signal[1200:], known) < 0.5


def test_two_things_in_a_field_drive_it_less_than_their_sum():
    random = np.random.default_rng(0)
    xyz = np.argwhere(np.ones((6, 4, 6))).astype(float)
    scenes = np.full((4, 32, 32, 3), 128, np.uint8)
    for number, boxes in enumerate(([], [(8, 8)], [(12, 18)], [(8, 8), (12, 18)])):
        for row, column in boxes:
            scenes[number, row : row + 6, column : column + 6] = 255
    none, first, second, both = sim._early_signal(random, scenes, xyz, np.full(len(xyz), "V1"))
    driven = np.minimum(first, second) - none > 0.3
    assert driven.sum() > 10 and np.median(((both - none) / (first + second - 2 * none))[driven]) < 0.9


def test_early_voxels_have_receptive_fields():
    """A bright spot drives the voxels of the opposite hemisphere, and upper-field spots the lower voxels."""
    random = np.random.default_rng(0)
    xyz = np.argwhere(np.ones((8, 4, 8))).astype(float)
    area = np.full(len(xyz), "V1")
    centres = random.uniform(0.1, 0.9, (300, 2))
    axis = (np.arange(32) + 0.5) / 32
    spots = (abs(axis[None, :, None] - centres[:, 1, None, None]) < 0.06) & (abs(axis[None, None, :] - centres[:, 0, None, None]) < 0.06)
    signal = sim._early_signal(random, np.repeat(spots[..., None] * np.uint8(255), 3, axis=-1), xyz, area)
    energy = abs(signal)
    for coordinate, axis_of_picture, sign in ((0, 0, -1), (2, 1, 1)):
        centre_of_mass = (energy * centres[:, axis_of_picture, None]).sum(0) / energy.sum(0)
        assert sign * np.corrcoef(xyz[:, coordinate], centre_of_mass)[0, 1] > 0.6

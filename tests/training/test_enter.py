"""The stages teach and enter: what closed forms are fitted to, and what they are asked for."""

import shutil

import h5py
import numpy as np
import pytest
import torch
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import KFold
from tiny_training import DECODED, MLP, RIDGE, TRAINING, make_study, study_of_methods

from unimind.data.prepared import PreparedSubject
from unimind.errors import InputError
from unimind.models.encoder import load_encoder
from unimind.models.ridge import TOGETHER
from unimind.storage import load_model
from unimind.study import parse_study, resolved
from unimind.training.align import read_group
from unimind.training.data import EnteredSignals, budget_rows
from unimind.training.enter import FOLDS, contexts, enter, load_taught, read_trials, teach

ALPHA = 30.0
#: Ridge regression with one penalty, so that its solution can be written down, below a body.
WRITTEN = {"scope": "subject", "enter": {"kind": "ridge", "alphas": [ALPHA]}, "body": MLP, "align": {"training": TRAINING}}


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch):
    monkeypatch.setenv("UNIMIND_DEVICE", "cpu")


def study(ridge=True):
    return study_of_methods(decoded=DECODED | {"enter": {"kind": "decoded", "ridge": ridge}}, written=WRITTEN, ridge=RIDGE)


def taught(files, out, method="decoded", given=None, subjects=("subj01", "subj02")):
    teach(given or study(), method, "sim", [files / f"{name}.h5" for name in subjects], [files / "embeddings.h5"] * len(subjects), out)
    return out


def entered(files, out, subject, method="decoded", taught=None, trials=None, given=None):
    enter(given or study(), method, "sim", subject, files / f"{subject}.h5", files / "embeddings.h5", taught, out, trials, None if trials is None else "3")
    return out


@pytest.fixture(scope="module")
def lesson(files, tmp_path_factory):
    return taught(files, tmp_path_factory.mktemp("lesson") / "taught")


def decoder_of(folder):
    """What a subject's closed form is: its tensors."""
    return {name: tensor for name, tensor in load_model(folder)[0].items() if name.startswith("encoder.enter.")}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize("n", [12, 44, 300])
def test_contexts_are_never_asked_for_what_they_hold(n):
    """Every size that leaves something to ask; the folds ask for every training picture once; held-out pictures are in none."""
    split = np.random.default_rng(0).permutation(np.repeat([0, 1], [n, 8])).astype(np.int8)
    found = list(contexts(split, 0, "sim-subj01"))
    for fitted, asked in found:
        assert not set(fitted) & set(asked) and len(set(fitted)) == len(fitted) and (split[fitted] == 0).all()
    asked = np.concatenate([rows for _, rows in found[-FOLDS:]])
    assert sorted(asked) == list(range(n + 8))
    assert {len(fitted) for fitted, _ in found} == {*(size for size in (25, 50, 100, 200) if size <= 0.6 * n), n * 4 // 5}
    assert all(set(np.flatnonzero(split == 1)) <= set(rows) for _, rows in found[:-FOLDS])


def test_signals_to_train_on_are_those_of_a_fit_without_their_pictures(files, tmp_path):
    """Every row of `entered.h5`, by ridge regression written down."""
    folder = entered(files, tmp_path / "out", "subj01", "written")
    space = load_encoder(folder)[0].space
    trials = read_trials(files / "subj01.h5")
    with h5py.File(files / "embeddings.h5") as file:
        targets = [torch.from_numpy(file[name][:][trials.images]) for name in ("embedding", "latent")]
    coordinates, responses = space.coordinates(*targets).double().numpy(), trials.responses.astype(float)
    with h5py.File(folder / "entered.h5") as file:
        table = {name: file[name][:] for name in file}
    place = 0
    for number, (fitted, asked) in enumerate(contexts(trials.split, study().seed, "sim-subj01")):
        rows = slice(place, place := place + len(asked))
        x, z = responses[fitted], coordinates[fitted]
        weight = np.linalg.solve((x - x.mean(0)).T @ (x - x.mean(0)) + ALPHA * np.eye(x.shape[1]), (x - x.mean(0)).T @ (z - z.mean(0)))
        np.testing.assert_allclose(table["coordinates"][rows], (responses[asked] - x.mean(0)) @ weight + z.mean(0), rtol=1e-3, atol=1e-3)
        assert (table["context"][rows] == number).all() and table["pictures"][number] == len(fitted)
        np.testing.assert_allclose(table["mean"][number], z.sum(0) / (len(fitted) + 10), rtol=1e-3, atol=1e-4)
        assert np.array_equal(table["stimulus"][rows], trials.images[asked]) and np.array_equal(table["split"][rows], trials.split[asked])
    assert place == len(table["stimulus"])
    with PreparedSubject(files / "subj01.h5") as data:
        assert not set(table["stimulus"]) & set(data.images("test"))


def test_in_sample_signals_are_of_the_pictures_that_were_fitted_to(files, tmp_path):
    content = resolved(study())
    content["methods"]["written"]["align"]["in_sample"] = True
    folder = entered(files, tmp_path / "out", "subj01", "written", given=parse_study(content))
    trials, place = read_trials(files / "subj01.h5"), 0
    train = set(trials.images[trials.split == 0])
    with h5py.File(folder / "entered.h5") as file:
        stimulus = file["stimulus"][:]
        for fitted, asked in contexts(trials.split, 0, "sim-subj01"):
            own = set(stimulus[place : (place := place + len(asked))])
            assert own & train <= set(trials.images[fitted]) and own - train <= set(trials.images[trials.split == 1])
    assert place == len(stimulus)


@pytest.mark.parametrize("method", ["decoded", "ridge"])
def test_a_budget_uses_nothing_outside_it(files, tmp_path, lesson, method):
    """Other responses in all trials but the budget's, test trials among them: the same closed form; in one of the budget's, another."""
    given = None if method == "ridge" else lesson
    with PreparedSubject(files / "subj03.h5") as data:
        budget = np.concatenate(list(budget_rows(data, 30, 3).values()))
        count = len(data.stimulus)
    found = decoder_of(entered(files, tmp_path / "own", "subj03", method, given, "30"))
    for name, rows in (("outside", np.setdiff1d(np.arange(count), budget)), ("inside", budget[:1])):
        (other := tmp_path / name).mkdir()
        for file in ("subj03.h5", "embeddings.h5"):
            shutil.copy(files / file, other)
        with h5py.File(other / "subj03.h5", "r+") as file:
            responses = file["responses"][:]
            responses[rows] = 7 * np.random.default_rng(0).standard_normal(responses[rows].shape)
            file["responses"][...] = responses
        assert same(found, decoder_of(entered(other, other / "out", "subj03", method, given, "30"))) == (name == "outside")


def test_a_subject_does_not_teach_its_own_decoder(files, tmp_path, lesson):
    """Other responses of subj01: its own prior stays, those of the others change."""
    for file in ("subj01.h5", "subj02.h5", "embeddings.h5"):
        shutil.copy(files / file, tmp_path)
    with h5py.File(tmp_path / "subj01.h5", "r+") as file:
        file["responses"][...] = np.random.default_rng(0).standard_normal(file["responses"].shape)
    one, other = (load_taught(folder)[1].priors for folder in (lesson, taught(tmp_path, tmp_path / "out")))
    assert {name: np.array_equal(one[name].covariance, other[name].covariance) for name in one} == {"": False, "sim-subj01": True, "sim-subj02": False}


def test_what_is_taught_by_part_of_the_trials_is_of_those_alone(files, tmp_path):
    """`trained_on`: the trials of each subject that are not its share change nothing."""
    content = resolved(study())
    content["transfer"] = {"trials": [20], "baselines": {"part": content["methods"]["decoded"] | {"trained_on": {"subjects": 2, "trials": 60}}}}
    given = parse_study(content)
    found = load_model(taught(files, tmp_path / "taught", "part", given))[0]
    (other := tmp_path / "other").mkdir()
    for file in ("subj01.h5", "subj02.h5", "embeddings.h5"):
        shutil.copy(files / file, other)
    for subject in ("subj01", "subj02"):
        with PreparedSubject(files / f"{subject}.h5") as data:
            kept = np.concatenate(list(budget_rows(data, 30, given.seed).values()))
        with h5py.File(other / f"{subject}.h5", "r+") as file:
            responses = file["responses"][:]
            responses[np.setdiff1d(np.arange(len(responses)), kept)] = 5
            file["responses"][...] = responses
    assert same(found, load_model(taught(other, other / "taught", "part", given))[0])


def test_signals_are_drawn_among_contexts_and_stand_from_the_largest_one(files, tmp_path, lesson):
    folder = entered(files, tmp_path / "out", "subj01", taught=lesson)
    with h5py.File(folder / "entered.h5") as file:
        table = {name: file[name][:] for name in file}
    signals = EnteredSignals(folder, "sim-subj01")
    images, own = signals.all("train")
    assert np.array_equal(images, np.unique(table["stimulus"][table["split"] == 0])) and own.shape == (
        len(images),
        1,
        3 * table["coordinates"].shape[1] + table["variety"].shape[1] + 1,
    )
    sizes, largest = table["pictures"][table["context"]], table["pictures"].max()
    for image, signal in zip(images, own[:, 0], strict=True):
        rows = np.flatnonzero((table["stimulus"] == image) & (sizes == largest))
        expected = [
            np.concatenate([table["coordinates"][row], *(table[name][table["context"][row]] for name in ("mean", "spread", "variety"))]).astype(np.float32)
            for row in rows
        ]
        assert any(np.array_equal(signal[:-1], one) for one in expected)
        assert signal[-1] == pytest.approx(np.log(largest) / 7)
    chosen = torch.zeros(200, dtype=torch.long)
    drawn = torch.cat([signals.draw("train", chosen[:1], step, 0)[1] for step in range(60)])
    seen = {round(float(value), 5) for value in drawn[:, 0, -1]}
    assert len(seen) == len(set(sizes[table["stimulus"] == images[0]]))
    whole = EnteredSignals(folder, "sim-subj01", whole=True)
    assert (table["pictures"][whole.context] == largest).all() and np.array_equal(whole.images("train"), images)
    assert len(signals.drawn_validation(1000)[0]) == (table["split"] == 1).sum()


def test_a_new_subject_has_no_signals_to_train_on_and_predicts_at_once(files, tmp_path, lesson):
    """Its folder is a whole model with nothing behind it: the mean of the prior's decoder and of its own ridge regression, or the first alone."""
    new, alone = (entered(files, tmp_path / name, "subj03", taught=lesson, given=study(ridge)) for name, ridge in (("new", True), ("alone", False)))
    assert not (new / "entered.h5").exists()
    trials = read_trials(files / "subj03.h5")
    encoder, config = load_encoder(new)
    space, prior = load_taught(lesson)
    with h5py.File(files / "embeddings.h5") as file:
        coordinates = space.coordinates(*(torch.from_numpy(file[name][:][trials.images]) for name in ("embedding", "latent"))).numpy()
    prior_alone = prior.decoder("", coordinates, trials.responses)
    n, folds = len(coordinates), KFold(5, shuffle=True, random_state=study().seed)
    chosen = RidgeCV([10.0**k for k in range(-1, 7)], cv=folds, scoring="neg_mean_squared_error")
    targets = np.split(coordinates.astype(np.float64), [space.components["embedding"]], axis=1)
    assert max(target.shape[1] for target in targets) <= TOGETHER
    ridge = np.concatenate([chosen.fit(trials.responses, target).predict(trials.responses) for target in targets], 1)
    of_prior = trials.responses @ prior_alone.weight + prior_alone.bias
    for folder, share in ((new, n / (2 * (n + 100))), (alone, 0)):
        with torch.no_grad():
            parts = load_encoder(folder)[0](torch.from_numpy(trials.responses)[:, None], "sim-subj03").coordinates.values()
        np.testing.assert_allclose(torch.cat(list(parts), 1).numpy(), (1 - share) * of_prior + share * ridge, rtol=1e-4, atol=1e-3)
    assert config["kind"] == "entered" and config["subject"] == "sim-subj03"
    with PreparedSubject(files / "subj03.h5") as data:  # better than the mean picture on pictures it never saw
        images, responses, _ = data.by_picture(data.trials("test"))
    with h5py.File(files / "embeddings.h5") as file:
        truth = torch.from_numpy(file["embedding"][:][images])
    own = encoder.predict(encoder(torch.from_numpy(responses), "sim-subj03"), "embedding")
    assert (own - truth).square().mean() < 0.8 * (space.embedding_mean - truth).square().mean()


def test_what_does_not_fit_is_refused_in_words(files, tmp_path, lesson):
    with pytest.raises(InputError, match="methods.m.enter: adapter is trained"):
        enter(make_study(), "m", "sim", "subj01", files / "subj01.h5", files / "embeddings.h5", None, tmp_path / "out")
    with pytest.raises(InputError, match="is of sim subj02, expected sim subj01"):
        enter(study(), "decoded", "sim", "subj01", files / "subj02.h5", files / "embeddings.h5", lesson, tmp_path / "out")
    with pytest.raises(InputError, match="give --taught"):
        entered(files, tmp_path / "out", "subj03")
    with pytest.raises(InputError, match="not what the stage `teach` writes"):
        load_taught(entered(files, tmp_path / "e", "subj03", taught=lesson))
    with pytest.raises(InputError, match="one of each per subject"):
        taught(files, tmp_path / "out", subjects=("subj01",))
    with pytest.raises(InputError, match="run the stage `enter`"):
        EnteredSignals(tmp_path / "e", "sim-subj03")
    with pytest.raises(InputError, match="--trials: 'few' given"):
        entered(files, tmp_path / "out", "subj03", taught=lesson, trials="few")
    with pytest.raises(InputError, match="1 entered and 2 embeddings"):
        read_group(study(), "decoded", "sim", [], [files / "embeddings.h5"] * 2, [tmp_path / "e"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("pictures", [FOLDS - 1, FOLDS])
def test_signals_need_a_picture_in_every_fold(files, tmp_path, lesson, pictures):
    """A training subject with fewer is refused, and nothing is left; one with as many is asked for each of them once."""
    shutil.copy(files / "embeddings.h5", tmp_path)
    shutil.copy(files / "subj01.h5", tmp_path)
    with h5py.File(tmp_path / "subj01.h5", "r+") as file:
        kept = np.unique(file["stimulus"][:][file["split"][:] == 0])[:pictures]
        file["split"][...] = np.where(np.isin(file["stimulus"][:], kept), 0, 2)
    if pictures < FOLDS:
        with pytest.raises(InputError, match=f"{pictures} training pictures; a training subject's signals come from {FOLDS} folds"):
            entered(tmp_path, tmp_path / "out", "subj01", taught=lesson)
        assert not (tmp_path / "out").exists()
    else:
        with h5py.File(entered(tmp_path, tmp_path / "out", "subj01", taught=lesson) / "entered.h5") as file:
            assert sorted(file["stimulus"][:]) == list(kept) and np.isfinite(file["coordinates"][:]).all()

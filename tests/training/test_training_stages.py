"""The stages pretrain, align and adapt on tiny files, and the defects that must be impossible."""

import csv
import json
import shutil

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import KFold
from tiny_training import ADAPTER, CONVMIXER, DIM, IDLE, LOSSES, RIDGE, TRAINING, VIT, make_study, method_of, study_of_methods

from unimind.data.prepared import PreparedSubject, write_prepared
from unimind.errors import InputError
from unimind.evaluation.metrics import correlations, two_way
from unimind.models.encoder import load_encoder
from unimind.models.space import PictureSpace
from unimind.reconstruction.predict import predict_pictures
from unimind.storage import load_model
from unimind.study import Losses, parse_study, resolved
from unimind.training.adapt import adapt, scratch
from unimind.training.align import align, read_group
from unimind.training.alignment import ALPHAS, FOLDS, Aligned, AlignmentLosses, draw_rows, told_apart
from unimind.training.benchmark import against_reference, measure_encoder
from unimind.training.data import PictureCoordinates, SubjectTrials, budget_rows, joined, new_encoder, picture_space, read_targets, turns
from unimind.training.enter import enter
from unimind.training.pretrain import pretrain


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch):
    monkeypatch.setenv("UNIMIND_DEVICE", "cpu")


def group(files):
    return [files / "subj01.h5", files / "subj02.h5"], [files / "embeddings.h5"] * 2


@pytest.fixture(scope="session")
def models(files, tmp_path_factory):
    """Pretrained and aligned models of both encoders."""
    folder = tmp_path_factory.mktemp("models")
    for method in ("m", "vit"):
        pretrain(make_study(), method, [files / "rest1.h5", files / "rest2.h5"], folder / "checkpoints", folder / "pretrain" / method)
        longer = make_study(align={"losses": LOSSES, "training": TRAINING | {"steps": 200, "validate_every": 50}})
        align(longer, method, "sim", *group(files), None, folder / "pretrain" / method, folder / "checkpoints", folder / "align" / method)
    return folder


def rows(model):
    with open(model / "losses.csv") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize("method", ["m", "vit"])
def test_pretraining_reports_hidden_patches_beside_predicting_the_mean(models, method):
    terms = {row["term"] for row in rows(models / "pretrain" / method) if row["split"] == "validation"}
    assert terms == {"masked", "masked_of_mean", "masked_correlation", "masked_correlation_of_mean"}


def test_pretrained_trunk_is_taken_over(models, files):
    state, _ = load_model(models / "pretrain" / "m")
    space = load_encoder(models / "align" / "m")[0].space
    encoder = new_encoder(make_study(), "m", space, {"sim-a": 9}, 1, models / "pretrain" / "m")
    assert all(torch.equal(tensor, state[f"trunk.{name}"]) for name, tensor in encoder.body.trunk.state_dict().items())
    with pytest.raises(InputError, match="pretrained with other"):
        new_encoder(make_study(body=CONVMIXER | {"width": 24}), "m", space, {"sim-a": 9}, 1, models / "pretrain" / "m")


def drawn_batch(study, files, mixed):
    """The aligned module of a study and a first batch."""
    subjects, space = read_group(study, "m", "sim", *group(files), [])
    torch.manual_seed(0)
    counts = {name: trials.n_voxels for name, (trials, _) in subjects.items()}
    encoder = new_encoder(study, "m", space, counts if study.methods["m"].enter.kind == "adapter" else {}, 1, None)
    model = Aligned(encoder, list(subjects), study.methods["m"].align.losses)
    return model, joined({name: draw_rows(*own, torch.arange(8), 0, 0, mixed) for name, own in subjects.items()}), list(subjects)


@pytest.mark.parametrize("body", [CONVMIXER, VIT])
def test_every_listed_loss_reaches_the_body_and_the_adapters(files, body):
    model, batch, names = drawn_batch(make_study(body=body), files, True)
    for head in model.encoder.heads.values():
        torch.nn.init.normal_(head.weight)
    terms = AlignmentLosses(Losses(**LOSSES), 1.0, 0.1, names)(model, batch)
    assert set(terms) == set(LOSSES)
    for term, value in terms.items():
        gradients = torch.autograd.grad(value, [model.encoder.body.trunk.stem.weight, *model.encoder.enter.maps.parameters()], retain_graph=True)
        assert all(gradient.abs().sum() > 0 for gradient in gradients), term


def test_shuffled_labels_change_the_siamese_loss_only(files):
    weights = Losses(siamese=1, embedding=1)
    model, batch, names = drawn_batch(make_study(), files, False)
    model.eval()
    plain, mixed = (AlignmentLosses(weights, 1.0, 0.1, names, shuffle)(model, batch) for shuffle in (False, True))
    assert plain["siamese"] != mixed["siamese"] and plain["embedding"] == mixed["embedding"]


def test_noise_is_added_to_what_a_body_sees_of_a_closed_form_alone(files, tmp_path):
    """In units of the spread; the number of pictures behind a signal, and what the closed form predicts, have none."""
    study = study_of_methods(m=RIDGE | {"body": CONVMIXER, "align": {"noise": 0.5, "training": IDLE}})
    enter(study, "m", "sim", "subj01", files / "subj01.h5", files / "embeddings.h5", None, tmp_path / "e")
    subjects, space = read_group(study, "m", "sim-subj01", [], [files / "embeddings.h5"], [tmp_path / "e"])
    encoder, weights, seen = new_encoder(study, "m", space, {}, 1, None), Losses(siamese=0), []
    encoder.body.register_forward_pre_hook(lambda module, given: seen.append(given[0][:, 0]))
    batch = joined({name: draw_rows(*own, torch.arange(20), 0, 0, False) for name, own in subjects.items()})
    plain, noisy = (AlignmentLosses(weights, 1.0, 0.1, list(subjects), noise=noise)(Aligned(encoder, list(subjects), weights), batch) for noise in (0.0, 0.5))
    added = seen[1] - seen[0]
    torch.testing.assert_close(added[:, :-1], 0.5 * batch["noise"])
    assert added[:, -1].abs().max() == 0 and plain == noisy  # heads start at zero
    assert batch["noise"].std() == pytest.approx(1, abs=0.1) and batch["noise"].shape == (20, space.size)


def test_pairs_are_drawn_anew_each_epoch(files):
    """Epochs of 44 pictures: every picture once, with another partner of the other subject each time."""
    subjects, _ = read_group(make_study(), "m", "sim", *group(files), [])
    epochs = []
    for epoch in range(2):
        steps = [(step, turns(list(subjects), 22, step)) for step in range(4 * epoch, 4 * epoch + 4)]
        batches = [{name: draw_rows(*subjects[name], own, step, 0, False)["index"] for name, own in places.items()} for step, places in steps]
        first, second = (torch.cat([batch[name] for batch in batches]).tolist() for name in subjects)
        assert len(set(first)) == len(set(second)) == 44
        epochs.append(set(zip(first, second, strict=True)))
    assert len(epochs[0] & epochs[1]) < 10


def reordered(path, out):
    """A prepared file whose voxels lie in another order than the source's, which is `path`'s."""
    shutil.copy(path, out)
    with h5py.File(out, "r+") as file:
        stored = np.random.default_rng(5).permutation(file["responses"].shape[1])
        file["responses"][...] = file["responses"][:][:, stored]
        file["voxel/stored"] = stored.astype(np.int32)


def same_model(one, other):
    return all(torch.equal(tensor, load_model(other)[0][name]) for name, tensor in load_model(one)[0].items())


class AsGiven:
    """A decoder that gives back the responses it gets, of one order and number of channels."""

    def __init__(self, order, channels=1):
        self.order, self.channels, self.given = order, channels, []

    def predict(self, responses, cut=False, dimensions=None):
        self.given.append(responses)
        raise InterruptedError


def reconstructed(data, order, split="train"):
    """Responses as `reconstruct` gives them to a decoder."""
    decoder = AsGiven(order)
    with pytest.raises(InterruptedError):
        predict_pictures(decoder, data, split, 1000)
    return decoder.given[0]


def test_stored_order_is_the_source_s_wherever_responses_are_read(files, tmp_path):
    """From files of another order with `enter.order: stored`, the same models and responses as from files of the source's order."""
    (tmp_path / "other").mkdir()
    shutil.copy(files / "embeddings.h5", tmp_path / "other")
    for name in ("subj01", "subj02", "subj03", "rest1", "rest2"):
        reordered(files / f"{name}.h5", tmp_path / "other" / f"{name}.h5")
    aligned = {"losses": {"embedding": 1.0, "siamese": 0.0}, "training": IDLE}
    tables = {}
    for order, folder in (("anatomical", files), ("stored", tmp_path / "other")):
        method = method_of(align=aligned, adapt={"training": IDLE}, pretrain={"training": IDLE}, enter=ADAPTER | {"order": order})
        study, out = study_of_methods(m=method, ridge=RIDGE), tmp_path / order
        own = folder / "subj03.h5", folder / "embeddings.h5"
        pretrain(study, "m", [folder / "rest1.h5", folder / "rest2.h5"], tmp_path / "c", out / "pretrain")
        align(study, "m", "sim", *group(folder), None, out / "pretrain", tmp_path / "c", out / "align")
        adapt(study, "m", "sim", "subj03", *own, out / "align", tmp_path / "c", out / "adapt", "40", "3")
        enter(study, "ridge", "sim", "subj03", *own, None, out / "ridge")  # always reads the stored order
        with PreparedSubject(own[0]) as data:
            tables[order] = SubjectTrials(data, order, "draw").all("train")[1].numpy(), reconstructed(data, order)
    for stage in ("pretrain", "align", "adapt", "ridge"):
        assert same_model(tmp_path / "anatomical" / stage, tmp_path / "stored" / stage), stage
    for one, other in zip(*tables.values(), strict=True):
        assert np.array_equal(one, other)
    np.testing.assert_allclose(*tables["stored"], atol=1e-6)  # the same in training and in reconstruction


def test_no_test_trial_is_ever_read(files):
    with PreparedSubject(files / "subj01.h5") as data:
        shown = set(data.images("test"))
        trials = SubjectTrials(data, "anatomical", "draw")
    assert not shown & (set(trials.images("train")) | set(trials.images("validation")))


def test_repeats_are_averaged_stacked_or_drawn(files):
    with PreparedSubject(files / "subj01.h5") as data:
        image = data.images("train")[3]
        own = data.read(np.flatnonzero(data.stimulus == image))
        chosen = torch.tensor([3])
        got = {mode: SubjectTrials(data, "anatomical", mode).draw("train", chosen, 5, 0)[1][0].numpy() for mode in ("mean", "channels", "draw")}
        draws = {tuple(SubjectTrials(data, "anatomical", "draw").draw("train", chosen, step, 0)[1][0, 0, :2].tolist()) for step in range(20)}
    np.testing.assert_allclose(got["mean"][0], own.mean(0), rtol=1e-4, atol=1e-6)
    assert {tuple(row) for row in got["channels"]} == {tuple(row) for row in own}
    assert tuple(got["draw"][0]) in {tuple(row) for row in own} and len(draws) == 3


@pytest.mark.parametrize("repeats", ["mean", "channels"])
def test_repeats_are_brought_together_in_training_as_they_are_when_predicting(tmp_path, repeats):
    """However often a picture was shown: once, as often as there are channels, or more often."""
    stimulus = np.random.default_rng(1).permutation(np.repeat(np.arange(8), np.arange(1, 9)))
    responses = np.random.default_rng(2).standard_normal((len(stimulus), 5)).astype(np.float32)
    known = {"session": np.zeros(len(stimulus)), "split": np.zeros(len(stimulus)), "stimuli": 8, "dataset": "d", "subject": "s"}
    write_prepared(tmp_path / "s.h5", responses, stimulus=stimulus, **known)
    with PreparedSubject(tmp_path / "s.h5") as data:
        trials = SubjectTrials(data, "anatomical", repeats)
        images, expected, _ = data.by_picture(data.trials("train"), channels=trials.channels)
    found, means = trials.all("train")
    assert np.array_equal(found, images)
    np.testing.assert_allclose(means.numpy(), expected, rtol=1e-6, atol=1e-7)
    chosen = torch.tensor([6, 0, 3])
    assert torch.equal(trials.draw("train", chosen, 0, 0)[1], means[chosen])


@pytest.mark.parametrize("method", ["m", "vit"])
def test_training_tells_unseen_pictures_apart(models, files, method):
    """Test pictures, by the embedding predicted; the body removed, by chance alone."""
    encoder, config = load_encoder(models / "align" / method)
    assert config["kind"] == "aligned" and config["subjects"] == ["sim-subj01", "sim-subj02"]
    with h5py.File(files / "embeddings.h5") as file:
        embedding = torch.from_numpy(file["embedding"][:])
    scores = []
    for subject in ("subj01", "subj02"):
        with PreparedSubject(files / f"{subject}.h5") as data:
            images, means, _ = data.by_picture(data.trials("test"), channels=encoder.channels)
        truth, centre = embedding[images], embedding[:44].mean(0)
        with torch.no_grad():
            for cut in (False, True):
                found = encoder.predict(encoder(torch.from_numpy(means), f"sim-{subject}", cut), "embedding")
                scores.append(told_apart(found - centre, truth - centre))
    assert min(scores[::2]) > 0.6 and max(scores[1::2]) < 0.6


def test_pictures_told_apart_by_hand():
    truth = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]])
    assert told_apart(truth, truth) == 1
    assert told_apart(truth[[1, 0, 2]], truth) == pytest.approx(2 / 6)
    assert told_apart(-truth, truth) == 0


@pytest.mark.parametrize("signs", [True, False])
def test_pictures_told_apart_are_those_of_the_tables(signs):
    """Correlations of balanced signs are exact, and many are equal: ties are failures."""
    random = np.random.default_rng(0)
    if signs:
        predicted, truth = (np.stack([random.permutation(np.repeat([-1, 1], 8)) for _ in range(20)]) for _ in range(2))
        r = predicted @ truth.T
    else:
        truth = random.normal(size=(20, 16))
        predicted = truth + 2 * random.normal(size=(20, 16))
        r = np.corrcoef(predicted, truth)[:20, 20:]
    won = sum(r[i, i] > r[i, j] for i in range(20) for j in range(20) if i != j)
    assert signs == any(r[i, i] == r[i, j] for i in range(20) for j in range(20) if i != j)
    found = told_apart(torch.from_numpy(predicted), torch.from_numpy(truth))
    assert found == pytest.approx(won / (20 * 19), rel=1e-12)
    assert found == two_way(correlations(torch.from_numpy(truth), torch.from_numpy(predicted))).mean()


@pytest.mark.parametrize("start", ["interpolate", "ridge"])
@pytest.mark.parametrize("strategy", ["adapter", "adapter+norms", "low-rank", "everything"])
def test_adaptation_changes_what_its_strategy_says(models, files, tmp_path, monkeypatch, strategy, start):
    monkeypatch.setattr("unimind.training.adapt.held_out", lambda subjects: {})  # the last weights are kept, whatever they are
    stage = {"strategy": strategy, "training": TRAINING | {"learning_rate": 0.02}, "start": start} | ({"rank": 2} if strategy == "low-rank" else {})
    model = models / "align" / "m"
    given = files / "subj03.h5", files / "embeddings.h5", model
    adapt(make_study(adapt=stage), "m", "sim", "subj03", *given, tmp_path / "checkpoints", tmp_path / "new", trials="60")
    before, after = load_model(model)[0], load_model(tmp_path / "new")[0]
    changed = {name for name in before if not torch.equal(before[name], after[name])} - {"encoder.mean_tokens", "encoder.mean_pooled"}
    assert {name.rsplit(".", 1)[0] for name in after if name not in before} == {"encoder.enter.maps.subject-sim-subj03"}
    assert not any(name.startswith(("encoder.enter", "encoder.space")) for name in changed)
    if strategy == "adapter":
        assert not changed
    elif strategy == "adapter+norms":
        assert changed and all(".trunk." in name for name in changed)
        norms = {name for name in changed if after[name].ndim == 1}
        assert norms == changed
    else:
        assert any("trunk" in name for name in changed) and any("heads" in name for name in changed)
    encoder, config = load_encoder(tmp_path / "new")
    assert encoder(torch.randn(1, 1, 52), "sim-subj03").pooled.shape == (1, 16) and config["trials"] == "60"


def test_a_start_that_training_leaves_alone_is_ridge_regression_to_the_training_subjects_signal(files, tmp_path):
    """Of the whole budget: the adapter of a new subject, by the linear model of the training subjects' signal given the picture."""
    study = make_study(align={"losses": {"embedding": 1.0, "siamese": 0.0}, "training": IDLE}, adapt={"training": IDLE})
    align(study, "m", "sim", *group(files), None, None, tmp_path / "checkpoints", tmp_path / "shared")
    own = files / "subj03.h5", files / "embeddings.h5"
    adapt(study, "m", "sim", "subj03", *own, tmp_path / "shared", tmp_path / "checkpoints", tmp_path / "adapted", trials="40", seed="3")
    encoder, _ = load_encoder(tmp_path / "shared")

    with h5py.File(own[1]) as file:
        targets = [torch.from_numpy(file[name][:]) for name in ("embedding", "latent")]

    def coordinates(images):
        return encoder.space.coordinates(*(target[images] for target in targets)).numpy()

    pictures, signals = [], []
    for subject in ("subj01", "subj02"):
        with PreparedSubject(files / f"{subject}.h5") as data:
            images, means, _ = data.by_picture(data.trials("train"))
        with torch.no_grad():
            signals.append(encoder.enter(torch.from_numpy(means), f"sim-{subject}")[:, 0].numpy())
        pictures.append(coordinates(images))
    expect = ridge_of(np.concatenate(pictures), np.concatenate(signals), study.seed)
    with PreparedSubject(own[0]) as data:
        rows = budget_rows(data, 40, 3)
        parts = [data.by_picture(rows[split]) for split in ("train", "validation")]  # in the order of the folds
    images, responses = np.concatenate([part[0] for part in parts]), np.concatenate([part[1][:, 0] for part in parts])
    start = ridge_of(responses, expect(coordinates(images)), 3)
    adapted, _ = load_encoder(tmp_path / "adapted")
    with torch.no_grad():
        found = adapted.enter(torch.from_numpy(responses)[:, None], "sim-subj03")[:, 0].numpy()
    np.testing.assert_allclose(found, start(responses), atol=2e-3 * np.abs(found).max())


def ridge_of(inputs, targets, seed):
    """Ridge regression by scikit-learn, the penalty of every target by cross-validation."""
    cv = KFold(FOLDS, shuffle=True, random_state=seed)
    models = [RidgeCV(ALPHAS, cv=cv, scoring="neg_mean_squared_error", fit_intercept=False) for _ in targets.T]
    mean, bias = inputs.mean(0), targets.mean(0)
    for model, column in zip(models, targets.T, strict=True):
        model.fit(inputs - mean, column - column.mean())
    return lambda given: np.stack([model.predict(given - mean) for model in models], 1) + bias


def test_scratch_knows_nothing_but_its_budget(files, tmp_path):
    """Its picture space, too, is of the budget's pictures."""
    own = files / "subj03.h5", files / "embeddings.h5"
    scratch(make_study(adapt={"training": IDLE}), "m", "sim", "subj03", *own, tmp_path / "checkpoints", tmp_path / "scratch", "40", "3")
    with PreparedSubject(own[0]) as data:
        rows = budget_rows(data, 40, 3)
        images = np.unique(data.stimulus[np.concatenate(list(rows.values()))])
    space = load_encoder(tmp_path / "scratch")[0].space
    expected = PictureSpace.fit(*(read_targets(own[1], images, name) for name in ("embedding", "latent")))
    for name, tensor in expected.state_dict().items():
        assert torch.equal(tensor, space.state_dict()[name]), name
    assert load_model(tmp_path / "scratch")[1]["subjects"] == ["sim-subj03"]


def test_a_method_s_name_and_label_decide_no_weight(files, tmp_path):
    """Two methods that differ in nothing else start and drop out alike, so that ablations differ in what they leave out."""
    short = {**TRAINING, "steps": 3}
    stages = {"pretrain": {"training": short}, "align": {"losses": LOSSES, "training": short}, "adapt": {"training": short}}
    content = resolved(make_study(enter=ADAPTER | {"dropout": 0.3}, **stages))
    content["methods"]["n"] = content["methods"]["m"] | {"label": "Another"}
    study, own = parse_study(content), (files / "subj03.h5", files / "embeddings.h5")
    for name in ("m", "n"):
        folder, checkpoints = tmp_path / name, tmp_path / "checkpoints"
        pretrain(study, name, [files / "rest1.h5"], checkpoints, folder / "pretrain")
        align(study, name, "sim", *group(files), None, folder / "pretrain", checkpoints, folder / "align")
        adapt(study, name, "sim", "subj03", *own, folder / "align", checkpoints, folder / "adapt")
        scratch(study, name, "sim", "subj03", *own, checkpoints, folder / "scratch", "20", "1")
    for stage in ("pretrain", "align", "adapt", "scratch"):
        assert same_model(tmp_path / "m" / stage, tmp_path / "n" / stage), stage


def test_one_held_out_picture_identifies_nothing(models, files, tmp_path):
    """Eight trials hold one picture out; the model is written, without a value for identification."""
    adapt(
        make_study(), "m", "sim", "subj03", files / "subj03.h5", files / "embeddings.h5", models / "align" / "m", tmp_path / "c", tmp_path / "new", trials="8"
    )
    with PreparedSubject(files / "subj03.h5") as data:
        assert len(set(data.stimulus[budget_rows(data, 8, 0)["validation"]])) == 1
    assert set(load_model(tmp_path / "new")[1]["held_out"]) == {"embedding"}
    assert "identification" in load_model(models / "align" / "m")[1]["held_out"]


def test_budgets_are_nested_and_pay_for_their_own_validation(files):
    with PreparedSubject(files / "subj03.h5") as data:
        budgets = [budget_rows(data, count, 0) for count in (20, 50, 100)]
        other = budget_rows(data, 20, 1)
        for count, budget in zip((20, 50, 100), budgets, strict=True):
            assert len(budget["train"]) + len(budget["validation"]) == count and len(budget["validation"])
            assert not set(data.stimulus[budget["train"]]) & set(data.stimulus[budget["validation"]])
            assert (data.split[np.concatenate(list(budget.values()))] != 2).all()
        sets = [set(np.concatenate(list(budget.values()))) for budget in (*budgets, other)]
        assert sets[0] < sets[1] < sets[2] and sets[3] != sets[0]
        with pytest.raises(InputError, match="1000 trials asked for"):
            budget_rows(data, 1000, 0)


def test_a_model_of_fewer_subjects_learns_from_its_share_of_trials_alone(files, tmp_path):
    part = method_of(pretrain=None, adapt={"training": IDLE}, trained_on={"subjects": 1, "trials": 50})
    part["align"] = {"training": IDLE, "losses": {"siamese": 0.0, "embedding": 1.0}}
    study = parse_study(resolved(make_study()) | {"transfer": {"trials": [20], "baselines": {"of-1": part}}})
    prepared, embeddings = ([paths[0]] for paths in group(files))
    subjects, space = read_group(study, "of-1", "sim", prepared, embeddings, [])
    ((trials, _),) = subjects.values()
    assert trials.n_trials("train") + trials.n_trials("validation") == 50
    align(study, "of-1", "sim", prepared, embeddings, None, None, tmp_path / "checkpoints", tmp_path / "of-1")
    state = load_model(tmp_path / "of-1")[0]
    assert any("sim-subj01" in name for name in state) and not any("sim-subj02" in name for name in state)
    assert torch.equal(state["encoder.space.embedding_mean"], space.embedding_mean)


def test_the_picture_space_is_of_training_pictures_each_counted_once(files):
    """Of two subjects who saw the same pictures of one file; no validation or test picture is in it."""
    subjects, space = read_group(make_study(), "m", "sim", *group(files), [])
    images = np.unique(np.concatenate([trials.images("train") for trials, _ in subjects.values()]))
    assert images.max() < 44
    expected = PictureSpace.fit(*(read_targets(files / "embeddings.h5", images, name) for name in ("embedding", "latent")))
    assert all(torch.equal(tensor, space.state_dict()[name]) for name, tensor in expected.state_dict().items())
    assert torch.equal(picture_space([files / "embeddings.h5"], [images]).embedding_axes, expected.embedding_axes)


def test_wrong_files_are_refused_in_words(files, tmp_path):
    with pytest.raises(InputError, match="one of each per subject"):
        align(make_study(), "m", "sim", [files / "subj01.h5"], [files / "embeddings.h5"], None, None, tmp_path, tmp_path / "out")
    with pytest.raises(InputError, match="expected sim subj01"):
        align(make_study(), "m", "sim", [files / "subj02.h5"] * 2, [files / "embeddings.h5"] * 2, None, None, tmp_path, tmp_path / "out")
    with h5py.File(tmp_path / "few.h5", "w") as file:
        file["embedding"], file["latent"] = np.zeros((10, DIM), np.float32), np.zeros((10, 2, 2, 2), np.float32)
    space = read_group(make_study(), "m", "sim", *group(files), [])[1]
    with pytest.raises(InputError, match="holds 10 pictures"):
        PictureCoordinates(tmp_path / "few.h5", np.arange(20), space)
    assert not (tmp_path / "out").exists()


def test_efficiency_is_written(models):
    quantities = json.loads((models / "align" / "m" / "efficiency.json").read_text())
    conditions = quantities.pop("conditions")
    assert conditions.pop("device") and conditions.pop("threads") == torch.get_num_threads()
    training = make_study().methods["m"].align.training
    assert conditions == {
        "precision": training.precision, "batch_size": training.batch_size, "accumulate": 1, "processes": 1, "torch": torch.__version__,
    }  # fmt: skip
    assert set(quantities) == {"parameters", "trainable_parameters", "flops_per_sample", "peak_memory", "samples_per_second", "seconds"}
    assert all(value > 0 for value in quantities.values())


def test_benchmark_counts_are_the_hand_counts():
    from unimind.study import ConvMixer

    line = measure_encoder("x", 60, 2, torch.device("cpu"), "fp32", ConvMixer(kind="convmixer", width=8, depth=1, patch=16, kernel=3, decoder_depth=1))
    trunk = 16 * 8 + 8 + 4 * 8 + (3 * 8 + 8) + 2 * 8 + (64 + 8) + 2 * 8
    heads = sum(8 * k + k for k in (512, 128))  # coordinates of embedding and latent
    condition = 2 * 8 + (8 * 512 + 512) + (4 * 77 + 77) + 2 * 8 + (8 * 768 + 768) + (768 * 768 + 768) + 77 * 512
    assert line["parameters"] == trunk + heads + condition, "a model is counted whole, head and condition stage too"
    counted = 2 * 4 * (16 * 8 + 8 * 3 + 8 * 8)  # 4 patches: stem, depthwise, pointwise
    counted += 2 * (4 * 8 * 512 + 512 * 4 * 77 + 8 * 768 + 768 * 768)  # condition stage
    assert line["flops_per_sample"] >= counted and line["samples_per_second"] > 0


def test_a_benchmark_s_ratio_above_one_means_better():
    rows = {"encoder": ["light", "ViT (MinD-Vis)"], "batch": [2, 2], "parameters": [10, 50], "memory": [8.0, 4.0], "samples_per_second": [30.0, 10.0]}
    table = against_reference(pd.DataFrame(rows))
    assert table["times better: parameters"].tolist() == [5, 1] and table["times better: memory"].tolist() == [0.5, 1]
    assert table["times better: samples_per_second"].tolist() == [3, 1]

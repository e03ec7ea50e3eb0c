"""The stages pretrain, align, fit and adapt on tiny files, and the defects that must be impossible."""

import csv
import json
import shutil

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from tiny_training import CONVMIXER, DIM, LOSSES, TRAINING, VIT, make_study

from unimind.data.prepared import PreparedSubject
from unimind.errors import InputError
from unimind.models.encoder import FmriEncoder, load_encoder
from unimind.models.ridge import RidgeModel, solve
from unimind.reconstruction.predict import responses_by_image
from unimind.storage import load_model
from unimind.study import Losses, Voxels, parse_study, resolved
from unimind.training.adapt import adapt, scratch
from unimind.training.align import align, read_group
from unimind.training.alignment import ALPHAS, FOLDS, Aligned, AlignmentLosses, draw_rows, two_way
from unimind.training.benchmark import against_reference, measure
from unimind.training.data import SubjectTrials, Targets, budget_rows, joined, new_encoder, turns
from unimind.training.fit import fit
from unimind.training.pretrain import pretrain
from unimind.training.prior import Taught, read_trials, teach


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
        align(make_study(), method, "sim", *group(files), folder / "pretrain" / method, folder / "checkpoints", folder / "align" / method)
    return folder


def rows(model):
    with open(model / "losses.csv") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize("method", ["m", "vit"])
def test_pretraining_reports_hidden_patches_beside_predicting_the_mean(models, method):
    terms = {row["term"] for row in rows(models / "pretrain" / method) if row["split"] == "validation"}
    assert terms == {"masked", "masked_of_mean", "masked_correlation", "masked_correlation_of_mean"}


def test_pretrained_trunk_is_taken_over(models):
    state, _ = load_model(models / "pretrain" / "m")
    encoder = new_encoder(make_study(), "m", {"sim-a": 9}, 1, models / "pretrain" / "m")
    assert all(torch.equal(tensor, state[f"trunk.{name}"]) for name, tensor in encoder.trunk.state_dict().items())
    with pytest.raises(InputError, match="pretrained with other"):
        new_encoder(make_study(encoder=CONVMIXER | {"width": 24}), "m", {"sim-a": 9}, 1, models / "pretrain" / "m")


@pytest.mark.parametrize("encoder", [CONVMIXER, VIT])
def test_every_listed_loss_reaches_the_encoder(files, encoder):
    study = make_study(encoder=encoder)
    subjects = read_group(study, "m", "sim", *group(files))
    names = list(subjects)
    torch.manual_seed(0)
    network = new_encoder(study, "m", {name: trials.n_voxels for name, (trials, _) in subjects.items()}, 1, None, DIM)
    network.start_linear_path(torch.randn(30, DIM))
    torch.nn.init.ones_(network.gate)
    model = Aligned(network, names, Losses(**LOSSES))
    batch = joined({name: draw_rows(*own, torch.arange(8), 0, 0, True) for name, own in subjects.items()})
    terms = AlignmentLosses(Losses(**LOSSES), 1.0, 0.1, names)(model, batch)
    assert set(terms) == set(LOSSES)
    for term, value in terms.items():
        gradients = torch.autograd.grad(value, [network.trunk.stem.weight, *network.adapters.parameters()], retain_graph=True)
        assert all(gradient.abs().sum() > 0 for gradient in gradients), term


def test_shuffled_labels_change_the_siamese_loss_only(files):
    study = make_study()
    subjects = read_group(study, "m", "sim", *group(files))
    network = new_encoder(study, "m", {name: trials.n_voxels for name, (trials, _) in subjects.items()}, 1, None, DIM)
    weights = Losses(siamese=1, embedding=1)
    model = Aligned(network, list(subjects), weights)
    batch = joined({name: draw_rows(*own, torch.arange(8), 0, 0, False) for name, own in subjects.items()})
    plain, mixed = (AlignmentLosses(weights, 1.0, 0.1, list(subjects), shuffle)(model, batch) for shuffle in (False, True))
    assert plain["siamese"] != mixed["siamese"] and plain["embedding"] == mixed["embedding"]


def test_pairs_are_drawn_anew_each_epoch(files):
    """Epochs of 44 pictures: every picture once, with another partner of the other subject each time."""
    subjects = read_group(make_study(), "m", "sim", *group(files))
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


def test_stored_order_is_the_source_s_wherever_responses_are_read(files, tmp_path):
    """From files of another order with `voxels.order: stored`, the same models and responses as from files of the source's order."""
    (tmp_path / "other").mkdir()
    shutil.copy(files / "embeddings.h5", tmp_path / "other")
    for name in ("subj01", "subj02", "subj03", "rest1", "rest2"):
        reordered(files / f"{name}.h5", tmp_path / "other" / f"{name}.h5")
    aligned = {"losses": {"embedding": 1.0, "siamese": 0.0}, "training": IDLE}
    content = resolved(make_study(align=aligned, adapt={"training": IDLE, "start": "prior"}, pretrain={"training": IDLE}))
    content["methods"]["prior"] = content["methods"]["ridge"] | {"encoder": {"kind": "prior"}}
    tables = {}
    for order, folder in (("anatomical", files), ("stored", tmp_path / "other")):
        for method in content["methods"].values():
            method["voxels"]["order"] = order
        study, out, taught = parse_study(content), tmp_path / order, dict(zip(("training_prepared", "training_embeddings"), group(folder), strict=True))
        own = folder / "subj03.h5", folder / "embeddings.h5"
        pretrain(study, "m", [folder / "rest1.h5", folder / "rest2.h5"], tmp_path / "c", out / "pretrain")
        align(study, "m", "sim", *group(folder), out / "pretrain", tmp_path / "c", out / "align")
        adapt(study, "m", "sim", "subj03", *own, out / "align", tmp_path / "c", out / "adapt", "40", "3", **taught)
        for method in ("ridge", "prior"):
            fit(study, method, "sim-subj03", [own[0]], [own[1]], out / method, **taught)
        with PreparedSubject(own[0]) as data:
            voxels = study.methods["m"].voxels
            tables[order] = SubjectTrials(data, voxels).all("train")[1].numpy(), responses_by_image(data, "train", voxels, 1)[1]
    for stage in ("pretrain", "align", "adapt", "ridge", "prior"):
        assert same_model(tmp_path / "anatomical" / stage, tmp_path / "stored" / stage), stage
    for one, other in zip(*tables.values(), strict=True):
        assert np.array_equal(one, other)
    np.testing.assert_allclose(*tables["stored"], atol=1e-6)  # the same in training and in reconstruction


def test_no_test_trial_is_ever_read(files):
    with PreparedSubject(files / "subj01.h5") as data:
        shown = set(data.images("test"))
        trials = SubjectTrials(data, Voxels(repeats="draw"))
    assert not shown & (set(trials.images("train")) | set(trials.images("validation")))


def test_repeats_are_averaged_stacked_or_drawn(files):
    with PreparedSubject(files / "subj01.h5") as data:
        image = data.images("train")[3]
        own = data.read(np.flatnonzero(data.stimulus == image))
        chosen = torch.tensor([3])
        got = {mode: SubjectTrials(data, Voxels(repeats=mode)).draw("train", chosen, 5, 0)[1][0].numpy() for mode in ("mean", "channels", "draw")}
        draws = {tuple(SubjectTrials(data, Voxels(repeats="draw")).draw("train", chosen, step, 0)[1][0, 0, :2].tolist()) for step in range(20)}
    np.testing.assert_allclose(got["mean"][0], own.mean(0), rtol=1e-4, atol=1e-6)
    assert {tuple(row) for row in got["channels"]} == {tuple(row) for row in own}
    assert tuple(got["draw"][0]) in {tuple(row) for row in own} and len(draws) == 3


@pytest.mark.parametrize("method", ["m", "vit"])
def test_aligned_encoders_are_no_worse_than_ridge(models, files, tmp_path, method):
    """Held-out pictures of linear responses with noise, where ridge regression is the right model."""
    encoder, config = load_encoder(models / "align" / method)
    assert config["aligned"] and config["subjects"] == ["sim-subj01", "sim-subj02"]
    with h5py.File(files / "embeddings.h5") as file:
        embedding = file["embedding"][:]
    for subject in ("subj01", "subj02"):
        fit(make_study(), "ridge", f"sim-{subject}", [files / f"{subject}.h5"], [files / "embeddings.h5"], tmp_path / subject)
        ridge = RidgeModel.from_state(*load_model(tmp_path / subject))
        with PreparedSubject(files / f"{subject}.h5") as data:
            images, means, _ = data.by_picture(data.trials("test"))
        responses = means[:, 0]
        with torch.no_grad():
            given = torch.from_numpy(responses)[:, None].repeat(1, encoder.channels, 1)
            ours = encoder.embed(encoder(given, f"sim-{subject}").pooled)
        truth = torch.from_numpy(embedding[images])
        centre = torch.from_numpy(embedding[:44].mean(0))
        assert two_way(ours - centre, truth - centre) >= two_way(torch.from_numpy(ridge.predict(responses)[0]) - centre, truth - centre) - 0.08


def test_two_way_by_hand():
    truth = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]])
    assert two_way(truth, truth) == 1
    assert two_way(truth[[1, 0, 2]], truth) == pytest.approx(4 / 6 - 1 / 6, abs=0.2)
    assert two_way(-truth, truth) == 0


@pytest.mark.parametrize("start", ["plain", "ridge", "prior"])
@pytest.mark.parametrize("strategy", ["adapter", "adapter+norms", "low-rank", "everything"])
def test_adaptation_changes_what_its_strategy_says(models, files, tmp_path, strategy, start):
    study = make_study(adapt={"strategy": strategy, "rank": 2, "training": TRAINING | {"patience": None}, "start": start})
    model = models / "align" / "m"
    adapt(
        study, "m", "sim", "subj03", files / "subj03.h5", files / "embeddings.h5", model, tmp_path / "checkpoints", tmp_path / "new", trials="60",
        training_prepared=group(files)[0], training_embeddings=group(files)[1],
    )  # fmt: skip
    before, after = load_model(model)[0], load_model(tmp_path / "new")[0]
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.rsplit(".", 1)[0] for name in after if name not in before} == {"encoder.adapters.subject-sim-subj03"}
    assert not any(name.startswith("encoder.adapters") for name in changed)
    if strategy == "adapter":
        assert not changed
    elif strategy == "adapter+norms":
        assert all("norm" in name or "mlp.0" in name for name in changed) and (changed or start != "plain")
    elif start == "plain":
        assert changed
    encoder, config = load_encoder(tmp_path / "new")
    assert encoder(torch.randn(1, 1, 52), "sim-subj03").pooled.shape == (1, 16) and config["trials"] == "60"


IDLE = {"steps": 4, "batch_size": 8, "learning_rate": 1e-12, "validate_every": 2}


def linear_path(directory):
    """The encoder of a model without what its trunk adds."""
    encoder, _ = load_encoder(directory)
    with torch.no_grad():
        encoder.gate.zero_()
        encoder.head.mlp[-1].weight.zero_()
        encoder.head.mlp[-1].bias.zero_()
    return encoder


def test_a_start_that_training_leaves_alone_is_the_decoder_of_the_whole_budget(files, tmp_path):
    """From scratch: the subject's own ridge regression. Adapted: the prior's decoder."""
    study = make_study(align={"losses": {"embedding": 1.0, "siamese": 0.0}, "training": IDLE}, adapt={"training": IDLE, "start": "prior"})
    align(study, "m", "sim", *group(files), None, tmp_path / "checkpoints", tmp_path / "shared")
    own = files / "subj03.h5", files / "embeddings.h5"
    adapt(
        study, "m", "sim", "subj03", *own, tmp_path / "shared", tmp_path / "checkpoints", tmp_path / "adapted", trials="40", seed="3",
        training_prepared=group(files)[0], training_embeddings=group(files)[1],
    )  # fmt: skip
    scratch(study, "m", "sim", "subj03", *own, tmp_path / "checkpoints", tmp_path / "scratch", "40", "3")
    with PreparedSubject(own[0]) as data:
        rows = budget_rows(data, 40, 3)
        test = data.by_picture(data.trials("test"))[1][:, 0]
    trials = read_trials(*own, rows)
    prior = teach(*group(files), True, 0).embedding_decoder(trials, ALPHAS, FOLDS, 3)
    parts = [read_trials(*own, {split: rows[split]}) for split in ("train", "validation")]  # in the order of the folds
    responses, embedding = (np.concatenate([getattr(part, name) for part in parts]) for name in ("responses", "embedding"))
    mean = responses.mean(0)
    weight, bias = solve(responses - mean, embedding, ALPHAS, FOLDS, 3)
    for name, expected in (("adapted", test @ prior.weight + prior.bias), ("scratch", (test - mean) @ weight + bias)):
        encoder = linear_path(tmp_path / name)
        with torch.no_grad():
            found = encoder.embed(encoder(torch.from_numpy(test)[:, None], "sim-subj03").pooled)
        assert np.allclose(found.numpy(), expected, atol=2e-3), name


def test_a_method_s_name_and_label_decide_no_weight(files, tmp_path):
    """Two methods that differ in nothing else start and drop out alike, so that ablations differ in what they leave out."""
    short = {**TRAINING, "steps": 3}
    stages = {"pretrain": {"training": short}, "align": {"losses": LOSSES, "training": short}, "adapt": {"training": short}}
    content = resolved(make_study(voxels={"size": 32, "dropout": 0.3}, **stages))
    content["methods"]["n"] = content["methods"]["m"] | {"label": "Another"}
    study, own = parse_study(content), (files / "subj03.h5", files / "embeddings.h5")
    for name in ("m", "n"):
        folder, checkpoints = tmp_path / name, tmp_path / "checkpoints"
        pretrain(study, name, [files / "rest1.h5"], checkpoints, folder / "pretrain")
        align(study, name, "sim", *group(files), folder / "pretrain", checkpoints, folder / "align")
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
    whole = resolved(make_study())
    part = whole["methods"]["m"] | {"pretrain": None, "adapt": {"training": IDLE, "start": "prior"}, "trained_on": {"subjects": 1, "trials": 50}}
    part["align"] = {"training": IDLE, "losses": {"siamese": 0.0, "embedding": 1.0}}
    study = parse_study(whole | {"transfer": {"trials": [20], "baselines": {"of-1": part}}})
    prepared, embeddings = ([paths[0]] for paths in group(files))
    ((trials, _),) = read_group(study, "of-1", "sim", prepared, embeddings).values()
    assert trials.n_trials("train") + trials.n_trials("validation") == 50
    align(study, "of-1", "sim", prepared, embeddings, None, tmp_path / "checkpoints", tmp_path / "of-1")
    assert load_encoder(tmp_path / "of-1")[0].adapter_names("sim-subj01") and "sim-subj02" not in str(load_model(tmp_path / "of-1")[0].keys())
    with PreparedSubject(prepared[0]) as data:
        expected = teach_from(prepared, embeddings, budget_rows(data, 50, study.seed))
    own = read_trials(files / "subj03.h5", files / "embeddings.h5")
    found = teach(prepared, embeddings, True, study.seed, study.share("of-1")).decoders(own)[0].weight
    assert np.array_equal(found, expected.decoders(own)[0].weight)
    assert not np.allclose(found, teach(prepared, embeddings, True, study.seed).decoders(own)[0].weight)


def teach_from(prepared, embeddings, rows):
    return Taught([read_trials(prepared[0], embeddings[0], rows)], True, 0)


def test_wrong_files_are_refused_in_words(files, tmp_path):
    with pytest.raises(InputError, match="one of each per subject"):
        align(make_study(), "m", "sim", [files / "subj01.h5"], [files / "embeddings.h5"], None, tmp_path, tmp_path / "out")
    with pytest.raises(InputError, match="expected sim subj01"):
        align(make_study(), "m", "sim", [files / "subj02.h5"] * 2, [files / "embeddings.h5"] * 2, None, tmp_path, tmp_path / "out")
    with h5py.File(tmp_path / "few.h5", "w") as file:
        file["embedding"] = np.zeros((10, DIM), np.float32)
    with pytest.raises(InputError, match="holds 10 pictures"):
        Targets(tmp_path / "few.h5", np.arange(20))
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

    line = measure("x", 60, 2, torch.device("cpu"), "fp32", ConvMixer(kind="convmixer", width=8, depth=1, patch=16, kernel=3, decoder_depth=1))
    trunk = 16 * 8 + 8 + 4 * 8 + (3 * 8 + 8) + 2 * 8 + (64 + 8) + 2 * 8
    encoder = FmriEncoder({}, {"length": "interpolate", "size": 64}, {"kind": "convmixer", "width": 8, "depth": 1, "patch": 16, "kernel": 3}, 512)
    around = sum(parameter.numel() for name, parameter in encoder.named_parameters() if not name.startswith("trunk."))
    condition = 2 * 8 + (8 * 512 + 512) + (4 * 77 + 77) + 2 * 8 + (8 * 768 + 768) + (768 * 768 + 768) + 77 * 512
    assert line["parameters"] == trunk + around + condition, "a model is counted whole, head and condition stage too"
    counted = 2 * 4 * (16 * 8 + 8 * 3 + 8 * 8)  # 4 patches: stem, depthwise, pointwise
    counted += 2 * (4 * 8 * 512 + 512 * 4 * 77 + 8 * 768 + 768 * 768)  # condition stage
    assert line["flops_per_sample"] >= counted and line["samples_per_second"] > 0


def test_a_benchmark_s_ratio_above_one_means_better():
    rows = {"encoder": ["light", "ViT (MinD-Vis)"], "batch": [2, 2], "parameters": [10, 50], "memory": [8.0, 4.0], "samples_per_second": [30.0, 10.0]}
    table = against_reference(pd.DataFrame(rows))
    assert table["times better: parameters"].tolist() == [5, 1] and table["times better: memory"].tolist() == [0.5, 1]
    assert table["times better: samples_per_second"].tolist() == [3, 1]

"""The stages features, score and tabulate on a tiny study."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from apart import killed, started
from evaluation_fakes import Embedding, only
from safetensors.torch import save_file

from unimind.errors import InputError
from unimind.evaluation.controls import ROWS
from unimind.evaluation.metrics import mse, pixcorr
from unimind.evaluation.pictures import Joined
from unimind.evaluation.score import _opened
from unimind.evaluation.statistics import bootstrap
from unimind.evaluation.tabulate import COLUMNS, tabulate
from unimind.reconstruction.tested import choice_of_sample
from unimind.study import parse_study, read_study

CONFIGS = sorted((Path(__file__).parents[2] / "config").glob("*.yaml"))

MEASURED = (
    "mse",
    "pixcorr",
    "ssim",
    "study_clip",
    "identification",
    "embedding_error",
    "retrieval_forward",
    "retrieval_backward",
    "classifier",
    "classifier_score",
    "perceptual_distance",
)
ABSENT = {
    "lpips", "inception_score", "inception_score_torchvision", "fid", "fid_torchvision", "alexnet2", "alexnet5", "inception", "effnet", "swav", "nway_top1",
    "clip", "squeezenet", "lpips_squeeze",
}  # fmt: skip
CONTROLS = {
    "samples-mean:good", "body-removed:good", "shuffled:good", "chance:poor", "nearest-training-image:good", "mean-training-image", "unconditional",
    "embedding-ceiling", "autoencoder-ceiling",
}  # fmt: skip


def test_a_metrics_file_has_every_row_and_says_what_is_absent(scored):
    tiny, files = scored
    content = json.loads(files["good", "subj01"].read_text())
    assert list(content["rows"]) == list(ROWS)
    row = content["rows"]["reconstruction"]
    for name in MEASURED:
        assert np.isfinite(row[name]["value"]), name
    assert set(content["absent"]) == ABSENT
    assert content["trials"] == 20 and sorted(content["stimulus"]) == scored[0].test.tolist()
    assert content["protocol"]["networks"]["study_clip"]["network"] == "tiny embedding"
    assert content["absent_rows"] == {}


def test_the_protocol_says_what_was_done_with_which_pictures(tiny):
    def protocol(**changes):
        content = tiny.study.model_dump(mode="json")
        for key, value in changes.items():
            content["datasets"]["sim"] |= {key: value} if key != "study_seed" else {}
            content["seed"] = value if key == "study_seed" else content["seed"]
        tiny.study = parse_study(content)
        return tiny.content("good", "subj01", features)["protocol"]

    features = tiny.features()
    before = protocol()
    assert protocol(roi_labels=False) == before, "a form of the files is no part of what was measured"
    assert before["repeats"] == "all test trials of a picture" and before["samples_per_stimulus"] == 2 and before["choice_of_sample"] == "agrees best"
    assert {key: before["tested"][key] for key in ("pictures", "trials_per_picture", "retrieval_pool")} == {
        "pictures": 8, "trials_per_picture": "1", "retrieval_pool": 8,
    }  # fmt: skip
    assert before["networks"]["study_clip"].keys() >= {"network", "sha256", "side"} and before["image_embedding"]["sha256"]
    content = tiny.study.model_dump(mode="json")
    content["datasets"]["sim"]["roi_labels"] = True
    tiny.study = parse_study(content)
    ids = [before["id"], protocol(seed=5)["id"], protocol(study_seed=5)["id"], protocol(voxels=900)["id"]]
    with h5py.File(tiny.path("good-subj01.h5"), "a") as file:
        file.attrs["trials_per_picture"] = "3"
    ids.append(protocol()["id"])
    with h5py.File(tiny.path("stimuli.h5"), "a") as file:
        values = file["sha256"][:]
        values[tiny.test[0]] = b"f" * 64
        file["sha256"][:] = values
    ids.append(protocol()["id"])
    assert len(set(ids)) == len(ids), "another seed, number of trials or picture is another protocol"


def test_pictures_of_every_subjects_own_are_recorded_but_share_a_protocol(tiny):
    content = tiny.study.model_dump(mode="json")
    content["datasets"] = {
        "sim": {"source": "arrays", "responses": "{subject}.npy", "images": "{subject}", "training_subjects": ["subj01", "subj02"], "new_subjects": ["subj03"]}
    }
    tiny.study = parse_study(content)
    features = tiny.features()
    for method in ("good", "poor"):
        with h5py.File(tiny.path(f"{method}-subj02.h5"), "a") as file:  # one picture less
            keep = file["stimulus"][:] != tiny.test[0]
            for name in list(file):
                values = file[name][:][keep]
                del file[name]
                file[name] = values
    one, other = (tiny.content("good", subject, features) for subject in ("subj01", "subj02"))
    assert one["protocol"]["id"] == other["protocol"]["id"]
    assert (one["tested"]["pictures"], other["tested"]["pictures"]) == (8, 7) and one["tested"]["hash"] != other["tested"]["hash"]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_the_methods_of_a_study_in_config_that_predict_an_embedding_share_one_protocol(config):
    """The others cannot choose by it; `chosen_by: encoding` would serve them all."""
    predicting = [method.sampling for method in read_study(config).methods.values() if method.closed or method.align is not None]
    assert len({(sampling.samples, choice_of_sample(sampling.samples, sampling.chosen_by)) for sampling in predicting}) == 1


def test_choosing_among_samples_is_another_protocol_than_having_one():
    assert choice_of_sample(5) == choice_of_sample(2) != choice_of_sample(1) == choice_of_sample(1, "first")
    assert len({choice_of_sample(2, rule) for rule in ("prediction", "encoding", "first")}) == 3 and choice_of_sample(2, "first") == "the first of them"


def test_a_method_that_cannot_choose_says_so(tiny):
    with h5py.File(tiny.path("poor-subj01.h5"), "a") as file:
        del file["predicted"], file["predicted_shuffled"], file["predicted_without_body"]
        file.attrs["choice"], file["shown"][:] = choice_of_sample(2, "first"), 0
    found = {method: json.loads(path.read_text()) for method, path in tiny.score("subj01", tiny.features()).items()}
    assert "poor predicts no image embedding: the first of its 2 samples is shown" in found["poor"]["warnings"]
    assert found["good"]["protocol"]["choice_of_sample"] == "agrees best" and found["poor"]["protocol"]["choice_of_sample"] == "the first of them"
    assert found["good"]["protocol"]["id"] != found["poor"]["protocol"]["id"], "the first sample and the best one share no column"
    assert "embedding-ceiling" in found["good"]["rows"] and "which a method that shows the first of them" in found["poor"]["absent_rows"]["embedding-ceiling"]


def test_the_embedding_is_measured_whole_and_with_the_body_cut(tiny):
    with h5py.File(tiny.path("poor-subj01.h5"), "a") as file:
        del file["predicted_without_body"]
    good, poor = (json.loads(path.read_text()) for path in tiny.score("subj01", tiny.features()).values())
    with h5py.File(tiny.path("embeddings.h5")) as embeddings, h5py.File(tiny.path("good-subj01.h5")) as file:
        truth, train = embeddings["embedding"][:][file["stimulus"][:]], np.delete(embeddings["embedding"][:], tiny.test, 0)
        for row, key in (("reconstruction", "predicted"), ("body-removed", "predicted_without_body")):
            expected = ((file[key][:] - truth) ** 2 / train.var(0)).mean(1)[np.argsort(file["stimulus"][:])]
            np.testing.assert_allclose(good["rows"][row]["embedding_error"]["per_image"], expected, rtol=1e-4)
    assert set(good["rows"]["body-removed"]) == {"identification", "embedding_error", "retrieval_forward", "retrieval_backward"}, "of which no picture is drawn"
    assert "body-removed" not in poor["rows"] and poor["absent_rows"] == {"body-removed": "the method has no body"}


def test_pictures_are_told_apart_by_the_embedding_that_is_for_it(tiny):
    """Identification and retrieval are of `retrieval` where a file has it, the error of what pictures are drawn from; a head for it says nothing else."""
    features = tiny.features()
    plain = tiny.content("good", "subj01", features)
    with h5py.File(tiny.path("good-subj01.h5"), "a") as file, h5py.File(tiny.path("poor-subj01.h5")) as other:
        order = np.argsort(np.argsort(file["stimulus"][:]))
        file["retrieval"] = other["predicted"][:][np.argsort(other["stimulus"][:])][order]
    found, poor = (tiny.content(method, "subj01", features)["rows"]["reconstruction"] for method in ("good", "poor"))
    own = plain["rows"]["reconstruction"]
    assert found["embedding_error"] == own["embedding_error"] != poor["embedding_error"]
    for name in ("identification", "retrieval_forward"):
        assert found[name]["per_image"] == poor[name]["per_image"] != own[name]["per_image"]


def test_a_control_chosen_of_fewer_samples_is_named(tiny):
    features = tiny.features()
    words = "good: the control shuffled is chosen of 1 sample, the picture shown of 2"
    assert words in tiny.content("good", "subj01", features)["warnings"]
    with h5py.File(tiny.path("good-subj01.h5"), "a") as file:
        file.attrs["shuffled_samples"] = 2
    assert words not in tiny.content("good", "subj01", features)["warnings"]


def test_a_row_the_study_cannot_have_is_absent_with_the_reason(tiny):
    with h5py.File(tiny.path("controls.h5"), "a") as file:
        del file["embedding_ceiling"]
        file.attrs["absent"] = json.dumps({"embedding-ceiling": "the UNet takes no image embedding"})
    found = [json.loads(path.read_text()) for path in tiny.score("subj01", tiny.features()).values()]
    assert found[0]["absent_rows"] == {"embedding-ceiling": "the UNet takes no image embedding"} and found[1]["absent_rows"] == {}
    assert not any("embedding-ceiling" in content["rows"] for content in found)


def test_similarity_is_the_correlation_with_the_truth_in_the_semantic_network(scored):
    tiny, files = scored
    content = json.loads(files["good", "subj01"].read_text())
    entry = content["rows"]["reconstruction"]["similarity"]
    with h5py.File(tiny.path("good-subj01.h5")) as file:
        drawn = file["samples"][:][np.arange(8), file["shown"][:]][np.argsort(file["stimulus"][:])]
    features = [Embedding().encode(torch.from_numpy(x).permute(0, 3, 1, 2).float() / 255).numpy() for x in (tiny.images[content["stimulus"]], drawn)]
    expected = [np.corrcoef(a, b)[0, 1] for a, b in zip(*features, strict=True)]
    np.testing.assert_allclose(entry["per_image"], expected, atol=1e-4)
    assert entry["network"] == "tiny embedding" and len(set(entry["per_image"])) == 8, "no ties to be broken"


def test_values_lie_in_their_intervals_and_samples_are_averaged_within_a_stimulus(scored):
    _, files = scored
    row = json.loads(files["good", "subj01"].read_text())["rows"]["reconstruction"]
    for name, entry in row.items():
        if entry["per_image"] is not None:
            assert entry["ci_low"] <= entry["value"] <= entry["ci_high"], name
            assert len(entry["per_image"]) == 8 == entry["n"]
            assert np.mean(entry["per_image"]) == pytest.approx(entry["value"], abs=1e-6)


def test_beside_the_chosen_sample_stands_the_mean_over_all_samples(scored):
    tiny, files = scored
    content = json.loads(files["good", "subj01"].read_text())
    entry = content["rows"]["samples-mean"]["study_clip"]
    assert not {"ssim", "lpips", "perceptual_distance"} & set(content["rows"]["samples-mean"]), "maps are compared of the shown sample alone"
    with h5py.File(tiny.path("good-subj01.h5")) as file:
        samples = file["samples"][:][np.argsort(file["stimulus"][:])]
    sets = (tiny.images[tiny.test], *samples.swapaxes(0, 1))
    truth, *drawn = (Embedding().encode(torch.from_numpy(x).permute(0, 3, 1, 2).float() / 255).numpy() for x in sets)
    expected = []
    for picture in range(8):
        r = [[np.corrcoef(truth[other], sample[picture])[0, 1] for other in range(8)] for sample in drawn]
        expected.append(np.mean([np.mean([v < of[picture] for k, v in enumerate(of) if k != picture]) for of in r]))
    np.testing.assert_allclose(entry["per_image"], expected, atol=1e-6)
    as_tensors = [torch.from_numpy(x).permute(0, 3, 1, 2).float() / 255 for x in sets]
    for name, function in (("mse", mse), ("pixcorr", pixcorr)):
        of_samples = np.mean([function(as_tensors[0], sample).numpy() for sample in as_tensors[1:]], 0)
        np.testing.assert_allclose(content["rows"]["samples-mean"][name]["per_image"], of_samples, rtol=1e-4)
        assert not np.allclose(content["rows"]["reconstruction"][name]["per_image"], of_samples)
    assert [entry["ci_low"], entry["ci_high"]] == pytest.approx(list(bootstrap(np.array(expected), 300)), abs=1e-6)


def test_rows_that_are_the_same_for_all_methods_are_measured_once(scored):
    _, files = scored
    first, second = (set(json.loads(files[method, "subj01"].read_text())["rows"]) for method in ("good", "poor"))
    assert first - second == {"mean-training-image", "unconditional", "embedding-ceiling", "autoencoder-ceiling"} and not second - first


def test_a_protocol_of_its_own_has_its_own_controls_or_the_reason(tiny, tmp_path):
    content = tiny.study.model_dump(mode="json")
    content["methods"]["poor"]["sampling"]["samples"] = 1
    content["methods"]["also"] = content["methods"]["poor"]
    tiny.study = parse_study(content)
    for subject in tiny.subjects:
        with h5py.File(tiny.path(f"poor-{subject}.h5"), "a") as file:
            one = file["samples"][:, :1]
            del file["samples"]
            file["samples"], file["shown"][:] = one, 0
            file.attrs["choice"] = "the only one"
        shutil.copy(tiny.path(f"poor-{subject}.h5"), tiny.path(f"also-{subject}.h5"))
        with h5py.File(tiny.path(f"also-{subject}.h5"), "a") as file:
            file.attrs["method"] = "also"
    features = tiny.features()
    files = {(method, subject): file for subject in tiny.subjects for method, file in tiny.score(subject, features).items()}
    good, poor, also = (json.loads(files[method, "subj01"].read_text()) for method in ("good", "poor", "also"))
    assert set(good["rows"]) - set(poor["rows"]) == {"embedding-ceiling", "samples-mean"} and good["absent_rows"] == {}
    assert set(poor["rows"]) - set(also["rows"]) == {"mean-training-image", "unconditional", "autoencoder-ceiling"}
    assert poor["absent_rows"]["samples-mean"] == also["absent_rows"]["samples-mean"] == "one sample is drawn of each picture"
    assert poor["rows"]["mean-training-image"]["mse"]["value"] == good["rows"]["mean-training-image"]["mse"]["value"]
    tabulate(tiny.study, list(files.values()), [], tmp_path / "tables")
    frame = pd.read_csv(tmp_path / "tables" / "reconstruction.csv", dtype={"protocol": str})
    rows = frame[(frame.subject == "subj01") & (frame.metric == "mse")].groupby("method").protocol.nunique()
    assert rows["mean-training-image"] == rows["unconditional"] == 2 and rows["embedding-ceiling"] == 1
    text = (tmp_path / "tables" / "reconstruction.md").read_text()
    assert "Absent rows: embedding ceiling: the picture is the best of 2 samples, with which methods that have 1 do not compare." in text


def test_joined_pictures_are_read_by_rows(tmp_path):
    random = np.random.default_rng(0)
    samples, single = random.integers(0, 256, (5, 2, 4, 4, 3), dtype=np.uint8), random.integers(0, 256, (9, 4, 4, 3), dtype=np.uint8)
    read = []

    class Watched:
        def __init__(self, values):
            self.values, self.shape = values, values.shape

        def __len__(self):
            return len(self.values)

        def __getitem__(self, index):
            read.append(len(np.atleast_1d(index)))
            return self.values[index]

    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["samples"] = samples
        joined = Joined()
        of_samples, of_single = joined.add(file["samples"], np.array([4, 0, 2])), joined.add(Watched(single), np.array([8, 1]))
        assert of_samples.shape == (3, 2) and of_single.shape == (2,) and len(joined) == 8
        np.testing.assert_array_equal(joined[of_samples.ravel()], samples[[4, 0, 2]].reshape(6, 4, 4, 3))
        mixed = np.array([7, 1, 0, 6, 4])
        np.testing.assert_array_equal(joined[mixed], [single[1], samples[4, 1], samples[4, 0], single[8], samples[2, 0]])
        assert read == [2], "what is not asked for is not read"
        with pytest.raises(InputError, match="x.h5: has 5 entries, but entry 5 is asked for"):
            joined.add(file["samples"], np.array([5]))
        with pytest.raises(InputError, match="pictures of different sizes"):
            joined.add(single[:, :2])


def test_controls_are_where_they_belong(scored):
    _, files = scored
    rows = json.loads(files["good", "subj01"].read_text())["rows"]
    errors = [rows[row]["mse"]["value"] for row in ("autoencoder-ceiling", "embedding-ceiling", "reconstruction", "chance")]
    assert errors == sorted(errors)
    assert rows["mean-training-image"]["study_clip"]["value"] == pytest.approx(0.5)
    assert rows["reconstruction"]["identification"]["value"] > rows["shuffled"]["identification"]["value"]
    assert rows["chance"]["retrieval_forward"]["value"] == rows["chance"]["retrieval_backward"]["value"] == 1 / 8, "the level of chance, not below it"
    assert rows["chance"]["identification"]["value"] == 0.5


def test_stored_and_fresh_truth_features_give_the_same(tiny, monkeypatch):
    seen = []
    encode = Embedding.encode
    monkeypatch.setattr(Embedding, "encode", lambda self, images: seen.append((images * 255).round().byte()) or encode(self, images))

    def truths_encoded():
        encoded = {picture.permute(1, 2, 0).numpy().tobytes() for batch in seen for picture in batch}
        seen.clear()
        return len(encoded & {picture.tobytes() for picture in tiny.images[tiny.test]})

    features = tiny.features()
    assert truths_encoded() == 8
    first = tiny.content("good", "subj01", features)
    assert truths_encoded() == 0, "the truths' features were computed again"
    with h5py.File(features, "a") as file:
        file["study_clip"]["study_clip"][:] = file["study_clip"]["study_clip"][:][::-1]
    poisoned = tiny.content("good", "subj01", features)["rows"]["reconstruction"]
    assert poisoned["study_clip"]["value"] < first["rows"]["reconstruction"]["study_clip"]["value"] - 0.2, "the stored features were not used"
    with h5py.File(features, "a") as file:
        del file["study_clip"]
    seen.clear()
    fresh = tiny.content("good", "subj01", features)
    assert truths_encoded() == 8
    before, after = (content["rows"]["reconstruction"].pop("similarity")["per_image"] for content in (first, fresh))
    np.testing.assert_allclose(after, before, atol=1e-6)  # sums in batches of another size
    assert fresh == first


def test_a_new_subject_may_be_tested_on_pictures_no_training_subject_is_tested_on(tiny):
    for subject in ("subj01", "subj02"):
        with h5py.File(tiny.path(f"{subject}.h5"), "a") as file:
            file["split"][:] = np.where(np.isin(file["stimulus"][:], tiny.test[:2]), 0, file["split"][:])
    features = tiny.features()
    assert len(tiny.content("good", "subj03", features)["stimulus"]) == 8
    with h5py.File(features, "a") as file:
        file["stimulus"][0] = 10**6
    with pytest.raises(InputError, match=f"features.h5: has no features of stimulus {tiny.test[0]}"):
        tiny.score("subj03", features, "good")


def test_results_do_not_depend_on_the_batch_size(tiny):
    features = tiny.features()
    first = tiny.content("good", "subj01", features)["rows"]
    section = tiny.study.evaluation.model_copy(update={"batch_size": 64})
    tiny.study = tiny.study.model_copy(update={"evaluation": section})
    second = tiny.content("good", "subj01", tiny.features())["rows"]
    for row, measures in first.items():
        for name, entry in measures.items():
            assert second[row][name]["value"] == pytest.approx(entry["value"], rel=1e-5, abs=1e-6), (row, name)


def score_until(root, features, out, blocks=-1, rank=0, processes=1, port=None):
    """The tiny study scored, or one process's part of it, in small blocks; dies of SIGKILL before its next block."""
    from evaluation_fakes import Classifier

    from unimind.evaluation import pairs, panel
    from unimind.evaluation.score import score

    pairs.TRUTHS_A_BLOCK = pairs.PICTURES_A_BLOCK = panel.PICTURES_A_BLOCK = 3
    if processes > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    made, save = [], np.savez

    def counted(*given, **arrays):
        if len(made) == blocks:
            os.kill(os.getpid(), signal.SIGKILL)
        made.append(save(*given, **arrays))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unimind.foundations.load_embedding", Embedding)
        patch.setattr("unimind.foundations.load_classifier", Classifier)
        patch.setattr(np, "savez", counted)
        given = ("controls.h5", features, "stimuli.h5", "subj01.h5", "embeddings.h5", "foundations/embedding", "foundations/classifier", out)
        study = parse_study(json.loads((root / "study.json").read_text()))
        score(study, "sim", "subj01", [root / "good-subj01.h5", root / "poor-subj01.h5"], *(root / name for name in given))


def test_a_killed_scoring_goes_on_and_two_processes_score_as_one_does_with_equal_bytes(tiny, capsys):
    (tiny.root / "study.json").write_text(tiny.study.model_dump_json(exclude_unset=True))
    features = tiny.features()
    score_until(tiny.root, features, "whole")
    expected = {path.name: path.read_bytes() for path in (tiny.root / "whole").iterdir()}
    assert expected.keys() == {"good.json", "poor.json"}
    assert killed(started(score_until, tiny.root, features, "cut", 7)) and not (tiny.root / "cut").exists()
    capsys.readouterr()
    score_until(tiny.root, features, "cut")
    assert "continuing after 3 of 3 blocks" in (told := capsys.readouterr().err) and re.search(r"continuing after [12] of", told)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    both = [started(score_until, tiny.root, features, "both", -1, rank, 2, port) for rank in range(2)]
    for process in both:
        process.join()
        assert process.exitcode == 0
    for out in ("cut", "both"):
        assert {path.name: path.read_bytes() for path in (tiny.root / out).iterdir()} == expected
    assert not list(tiny.root.glob(".*partial"))


def test_files_that_do_not_belong_together_are_refused(tiny):
    features = tiny.features()
    with h5py.File(tiny.root / "controls.h5", "a") as file:
        kept = file["stimulus"][1:]
        del file["stimulus"]
        file["stimulus"] = kept
    with pytest.raises(InputError, match="good-subj01.h5 and .*good-subj02.h5 are both of the method good"), contextlib.ExitStack() as stack:
        _opened([tiny.path("good-subj01.h5"), tiny.path("good-subj02.h5")], stack)
    with pytest.raises(InputError, match="no controls for stimulus"):
        tiny.score("subj01", features, "good")


def test_tables(scored, tmp_path):
    tiny, files = scored
    models = tmp_path / "models" / "good" / "fit" / "sim-subj01"
    models.mkdir(parents=True)
    (models / "efficiency.json").write_text(json.dumps({"parameters": 1000, "seconds": 1.5}))
    save_file({"encoder.a": torch.zeros(3, 2), "condition.b": torch.zeros(6), "unet.c": torch.zeros(99)}, models / "model.safetensors")
    tabulate(tiny.study, list(files.values()), [tmp_path / "models"], tmp_path / "tables")
    folder = tmp_path / "tables"
    frame = pd.read_csv(folder / "reconstruction.csv")
    assert list(frame.columns) == COLUMNS
    assert set(frame.role) == {"train", "new", "control"}
    assert set(frame.method) >= CONTROLS
    once = frame[(frame.method == "unconditional") & (frame.subject == "subj01") & (frame.metric == "mse")]
    assert len(once) == 1
    train = frame[(frame.method == "good") & (frame.metric == "mse") & frame.subject.isin(["subj01", "subj02"])].value
    average = frame[(frame.method == "good") & (frame.metric == "mse") & (frame.subject == "average:train")]
    assert average.value.item() == pytest.approx(train.mean())
    assert average.ci_low.item() < average.value.item() < average.ci_high.item()
    assert set(pd.read_csv(folder / "adaptation.csv").subject) == {"subj03"}
    efficiency = pd.read_csv(folder / "efficiency.csv")
    assert efficiency[efficiency.quantity == "parameters"].value.item() == 1000
    assert efficiency[efficiency.quantity == "model_parameters"].value.item() == 12, "the generator is not the model's"
    assert efficiency.stage.unique().tolist() == ["fit/sim-subj01"]
    comparisons = pd.read_csv(folder / "comparisons.csv")
    assert (comparisons.p_holm >= comparisons.p).all()
    text = (folder / "reconstruction.md").read_text()
    assert "| Good |" in text and text.index("| Good |") < text.index("| shuffled: Good |")
    assert "Absent: " in text and "Protocol " in text and "unstable below 5000" in text
    for name in ("reconstruction", "retrieval", "adaptation", "efficiency"):
        assert (folder / f"{name}.md").stat().st_size and (folder / f"{name}.tex").stat().st_size
    assert "There are none on this study's data" in (folder / "peers.md").read_text() and "MindEye2" not in text
    assert "By the network whose embedding is predicted and by which samples are chosen: Own CLIP, Identification" in text


def test_bold_only_where_the_paired_test_says_so(scored, tmp_path):
    tiny, files = scored
    for file in files.values():
        content = json.loads(file.read_text())
        file.write_text(json.dumps(content | {"rows": only(content["rows"], "mse", "ssim")}))
    tabulate(tiny.study, list(files.values()), [], tmp_path / "sure")
    rows = [line for line in (tmp_path / "sure" / "reconstruction.md").read_text().splitlines() if line.startswith("| Good |")]
    assert any("**" in line for line in rows)
    for subject in tiny.subjects:  # the same pictures twice: no difference, nothing bold
        content = json.loads(files["good", subject].read_text())
        files["poor", subject].write_text(json.dumps(content | {"method": "poor"}))
    tabulate(tiny.study, list(files.values()), [], tmp_path / "same")
    assert "**" not in (tmp_path / "same" / "reconstruction.md").read_text()


def test_other_protocols_have_columns_of_their_own(scored, tmp_path):
    tiny, files = scored
    for subject in tiny.subjects:
        content = json.loads(files["poor", subject].read_text())
        content["protocol"]["id"] = "other"
        files["poor", subject].write_text(json.dumps(content))
    tabulate(tiny.study, list(files.values()), [], tmp_path / "tables")
    text = (tmp_path / "tables" / "reconstruction.md").read_text()
    head = next(line for line in text.splitlines() if line.startswith("| | SSIM"))
    assert head.count("SSIM ↑") == 2 and "(other)" in head
    good = next(line for line in text.splitlines() if line.startswith("| Good |")).split("|")[2:4]
    assert sum(cell.strip() == "-" for cell in good) == 1
    assert pd.read_csv(tmp_path / "tables" / "comparisons.csv").empty


def test_tables_survive_missing_measures_and_subjects(scored, tmp_path):
    tiny, files = scored
    content = json.loads(files["poor", "subj02"].read_text())
    content["rows"] = {"reconstruction": {"mse": content["rows"]["reconstruction"]["mse"]}}
    files["poor", "subj02"].write_text(json.dumps(content))
    del files["good", "subj01"]
    tabulate(tiny.study, list(files.values()), [], tmp_path / "tables")
    tabulate(tiny.study, [], [], tmp_path / "empty")
    assert "No numbers" in (tmp_path / "empty" / "reconstruction.md").read_text()


def test_the_mean_image_that_wins_low_level_is_named(scored, tmp_path):
    tiny, files = scored
    for path in files.values():
        content = json.loads(path.read_text())
        if "mean-training-image" in content["rows"]:
            content["rows"]["mean-training-image"]["ssim"]["value"] = 0.99
            path.write_text(json.dumps(content))
    tabulate(tiny.study, list(files.values()), [], tmp_path / "tables")
    assert "the mean training image, which shows nothing, beats every method in SSIM" in (tmp_path / "tables" / "reconstruction.md").read_text()

"""The stage generalise: planted faults are told apart in words, clean decoders raise no alarm, every number against another computation."""

import json
from pathlib import Path

import h5py
import jsonschema
import numpy as np
import pandas as pd
import pytest
import torch
from evaluation_fakes import write_foundations
from planted_faults import SIDE, TEST, TRAIN, Planted, brighter, embedded
from scipy.stats import entropy

from unimind.cli import main
from unimind.data.shapes import shapes
from unimind.errors import InputError
from unimind.evaluation.findings import of_method, of_test_set
from unimind.evaluation.generalise import by_distance, category_level, effective_rank, generalise
from unimind.evaluation.neighbours import Middles, Ruler, TrainingPictures, nearest, outside_span, ranks
from unimind.evaluation.pictures import resize
from unimind.report.generalisation import of_generator
from unimind.study import parse_study

ROOT = Path(__file__).parents[2]


def study_of(*methods: str, categories: str | None = None):
    return parse_study({
        "name": "planted", "picture_size": SIDE, "seed": 3,
        "datasets": {"sim": {"source": "simulated", "training_subjects": ["subj01"], "seconds_per_trial": 4, "categories": categories}},
        "foundations": {"diffusion": {"kind": "study"}, "embedding": {"kind": "study-clip"}, "classifier": {"kind": "study"}},
        "methods": {name: {"enter": {"kind": "ridge"}, "scope": "subject", "label": name.title()} for name in methods},
        "evaluation": {"bootstrap": 200, "weights": "nowhere", "squeezenet": None, "batch_size": 64},
    })  # fmt: skip


@pytest.fixture(scope="module")
def foundations(tmp_path_factory, fakes):
    return write_foundations(tmp_path_factory.mktemp("networks"))


def checked(planted: Planted, foundations: Path, *reconstructions: Path, categories: str | None = None, controls: Path | None = None) -> dict:
    """What the stage writes."""
    root, out = planted.root, planted.root / "checks.json"
    files = [root / name for name in ("stimuli.h5", "subj01.h5", "embeddings.h5")]
    study = study_of(*(path.stem for path in reconstructions), categories=categories)
    training = [[root / name] for name in ("subj01.h5", "embeddings.h5", "stimuli.h5")]
    generalise(
        study, "sim", "subj01", reconstructions, root / "metrics", *files, *training, foundations / "embedding", foundations / "classifier", out, controls
    )  # fmt: skip
    return json.loads(out.read_text())


def alarms(findings: list[dict]) -> list[str]:
    return [finding["kind"] for finding in findings if finding["alarm"]]


# --- planted faults -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_the_words_say_which_fault_is_which_and_clean_decoders_raise_none(tmp_path, foundations, seed):
    plain, grouped = Planted(tmp_path / "plain", seed), Planted(tmp_path / "grouped", seed, categories=True)
    found = checked(plain, foundations, plain.clean(), plain.clean("weak", 2.0), plain.blurred(), plain.nearest(), plain.five())
    assert {name: alarms(own["findings"]) for name, own in found["methods"].items()} == {
        "clean": [], "weak": [], "pictures": [], "nearest": ["copies"], "five": ["collapse"],
    }  # fmt: skip
    assert alarms(found["findings"]) == []
    assert "returns what it has stored" in found["methods"]["nearest"]["findings"][0]["text"]
    assert f"to {TEST} test pictures it gives only 5 different p" in found["methods"]["five"]["findings"][0]["text"]
    found = checked(grouped, foundations, grouped.clean("clean", 0.4), grouped.categorical(), categories="^c([0-7])_")
    assert {name: alarms(own["findings"]) for name, own in found["methods"].items()} == {"clean": [], "categorical": ["category"]}
    assert "knowing the category alone" in found["methods"]["categorical"]["findings"][0]["text"]


def test_a_decoder_whose_outputs_differ_in_two_dimensions_alone_is_told(tmp_path, foundations):
    """Every picture and prediction is another one; what they vary in is a plane of the embedding."""
    planted = Planted(tmp_path, 11)
    read = planted.read(0.1)
    axes = np.linalg.svd(read - read.mean(0), full_matrices=False)[2][:2]
    flat = read.mean(0) + (read - read.mean(0)) @ axes.T @ axes
    found = checked(planted, foundations, planted.write("flat", planted.noisy(planted.truth, 20), flat))["methods"]["flat"]
    assert alarms(found["findings"]) == ["collapse"] and found["spread"]["effective_rank"] == pytest.approx(2, abs=0.3)
    assert "its outputs vary in 2.0 effective dimensions, the test pictures' targets in" in found["findings"][0]["text"]


@pytest.mark.parametrize(("duplicates", "alarm"), [(0, False), (2, False), (10, True)])
def test_near_duplicates_of_training_pictures_are_found_one_by_one(tmp_path, foundations, duplicates, alarm):
    planted = Planted(tmp_path, 5, duplicates=duplicates)
    found = checked(planted, foundations, planted.clean())
    assert np.flatnonzero(found["audit"]["near_duplicate"]).tolist() == list(range(duplicates))
    assert [finding["alarm"] for finding in found["findings"]] == [alarm]
    if alarm:
        assert "10 of 80 test pictures (12 %) have a near-duplicate among the 400 training pictures: scores on them" in found["findings"][0]["text"]
        for stimulus, place in zip(found["stimulus"][:duplicates], found["audit"]["nearest"], strict=False):
            np.testing.assert_array_equal(brighter(planted.images[place["stimulus"]][None])[0], planted.images[stimulus])
        scores = np.array(json.loads((tmp_path / "metrics/clean.json").read_text())["rows"]["reconstruction"]["clip"]["per_image"])
        assert found["methods"]["clean"]["by_distance"]["clip"]["without_near_duplicates"] == pytest.approx(scores[duplicates:].mean())
    assert alarms(found["methods"]["clean"]["findings"]) == []


def test_a_generator_that_makes_scenes_of_shapes_is_told_from_one_that_shows_them(tmp_path, foundations):
    """Both draw test pictures well; one draws another's scene for every shape."""
    planted, drawn = Planted(tmp_path, 9), np.stack(list(shapes(SIDE).values()))
    order = planted.random.permutation(TEST)
    found = {}
    for name, shown in (("able", planted.noisy(drawn, 20)), ("unable", planted.truth[: len(drawn)])):
        with h5py.File(tmp_path / "controls.h5", "w") as file:
            file["stimulus"], file["embedding_ceiling"] = TRAIN + order, planted.noisy(planted.truth, 20)[order]
            file["shapes/image"], file["shapes/embedding_ceiling"], file.attrs["samples"] = drawn, shown, 3
        found[name] = checked(planted, foundations, planted.clean(), controls=tmp_path / "controls.h5")["recovery"]
    able, unable = found["able"], found["unable"]
    assert able["test_pictures"]["embedding"]["pixcorr"]["value"] > 0.8 and set(able["shapes"]) == {"count", "distance", "embedding"}
    large = [resize(torch.from_numpy(one).permute(0, 3, 1, 2) / 255, 256) for one in (drawn, planted.truth[: len(drawn)])]
    first, second = (resize(one, 425).flatten(1).numpy() for one in large)
    expected = [np.corrcoef(a, b)[0, 1] for a, b in zip(first, second, strict=True)]
    assert unable["shapes"]["embedding"]["pixcorr"]["value"] == pytest.approx(np.mean(expected), abs=1e-4)
    ruler = Ruler.of(planted.known_embedding)
    a, b = (ruler.standard(embedded(one)) for one in (drawn, planted.truth[: len(drawn)]))
    expected = [np.corrcoef(x, y)[0, 1] for x, y in zip(a, b, strict=True)]
    assert unable["shapes"]["embedding"]["similarity"]["value"] == pytest.approx(np.mean(expected), abs=1e-5)
    assert unable["shapes"]["distance"] == able["shapes"]["distance"] > able["test_pictures"]["distance"]
    assert "It cannot show them" in of_generator(unable)[0] and "cannot" not in of_generator(able)[0]
    tested = unable["test_pictures"]["embedding"]
    broken = unable | {"test_pictures": unable["test_pictures"] | {"embedding": tested | {"pixcorr_of_another": tested["pixcorr"]["value"]}}}
    assert "It shows neither" in of_generator(broken)[0]
    with h5py.File(tmp_path / "controls.h5", "a") as file:
        file["stimulus"][:] = 0
    with pytest.raises(InputError, match="no controls for stimulus 400; run the reconstruct-controls stage again"):
        checked(planted, foundations, planted.clean(), controls=tmp_path / "controls.h5")


def test_a_decoder_that_reads_nothing_is_no_fault_of_these_kinds(tmp_path, foundations):
    planted = Planted(tmp_path, 6, categories=True)
    shown, read = planted.truth, planted.embedding[TRAIN:]
    found = checked(planted, foundations, planted.write("blind", np.roll(shown, 1, 0), np.roll(read, 1, 0)), categories="^c([0-7])_")
    assert [finding["kind"] for finding in found["methods"]["blind"]["findings"]] == ["unread"]
    one_category = category_level(np.eye(4), np.zeros(4, int), np.arange(4), 50, 0)
    assert [finding["kind"] for finding in of_method(found["methods"]["blind"] | {"groups": one_category})] == ["ungrouped"]


def test_predictions_alone_are_checked_where_no_picture_is_drawn(tmp_path, foundations):
    planted = Planted(tmp_path, 8)
    paths = planted.clean(), planted.nearest(), planted.five()
    for path in paths:
        with h5py.File(path, "a") as file:
            del file["samples"], file["shown"]
    found = checked(planted, foundations, *paths)
    assert {name: alarms(own["findings"]) for name, own in found["methods"].items()} == {"clean": [], "nearest": ["copies"], "five": ["collapse"]}
    with h5py.File(paths[0], "a") as file:
        del file["predicted"]
    with pytest.raises(InputError, match="holds neither pictures nor predicted embeddings"):
        checked(planted, foundations, paths[0])


def test_the_words_name_no_fault_where_there_is_none():
    assert of_test_set({"near_duplicates": 0, "test_pictures": 5, "training_pictures": 1200})[0]["text"] == (
        "No test picture has a near-duplicate among the 1,200 training pictures."
    )
    fine = {
        "copies": {"pictures": 0.1, "predictions": 0.0}, "spread": {"count": 50, "different": {"pictures": 50, "predictions": 49}},
        "groups": {"within": {"value": 0.7, "ci_low": 0.6}, "between": {"value": 0.8, "ci_low": 0.7}, "one_output_each": False},
    }  # fmt: skip
    fine["spread"] |= {"effective_rank": 16.0, "effective_rank_of_targets": 173.2}
    assert [finding["kind"] for finding in of_method(fine)] == ["clean"]


# --- every number against another computation ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def one(tmp_path_factory, foundations):
    """A run without categories: its pictures, and what was found."""
    planted = Planted(tmp_path_factory.mktemp("one"), 9)
    return planted, checked(planted, foundations, planted.clean())


def standardised(planted: Planted, values: np.ndarray) -> np.ndarray:
    known = planted.embedding[:TRAIN].astype(float)
    return (values - known.mean(0)) / known.std(0)


def predicted(planted: Planted) -> np.ndarray:
    with h5py.File(planted.root / "clean.h5") as file:
        return file["predicted"][:][np.argsort(file["stimulus"][:])].astype(float)


def test_nearest_training_pictures_and_places_are_those_of_all_correlations(one):
    planted, found = one
    every = [
        np.corrcoef(row, other)[0, 1] for row in standardised(planted, planted.embedding[TRAIN:]) for other in standardised(planted, planted.known_embedding)
    ]
    every = np.array(every).reshape(TEST, TRAIN)
    assert [place["stimulus"] for place in found["audit"]["nearest"]] == every.argmax(1).tolist()
    np.testing.assert_allclose(found["audit"]["distance"], 1 - every.max(1), atol=1e-5)
    guess = standardised(planted, predicted(planted))
    own = np.array([np.corrcoef(guess[i], standardised(planted, planted.embedding[TRAIN + i]))[0, 1] for i in range(TEST)])
    others = np.corrcoef(guess, standardised(planted, planted.known_embedding))[:TEST, TEST:]
    place = 1 + (others >= own[:, None]).sum(1)
    told = found["methods"]["clean"]["training_identification"]
    assert told["candidates"] == TRAIN + 1 and told["median_place"] == np.median(place)
    for top in (1, 10, 50):
        assert told[f"top{top}"]["value"] == pytest.approx((place <= top).mean())


def test_collapse_is_measured_by_rank_and_variance(one):
    planted, found = one
    guess, truth = standardised(planted, predicted(planted)), standardised(planted, planted.embedding[TRAIN:])
    spread = found["methods"]["clean"]["spread"]
    for key, values in (("effective_rank", guess), ("effective_rank_of_targets", truth)):
        centred = values - values.mean(0)
        singular = np.sqrt(np.linalg.eigvalsh(centred.T @ centred).clip(0))
        assert spread[key] == pytest.approx(np.exp(entropy(singular)), rel=1e-3)
    assert spread["variance"] == pytest.approx(np.trace(np.cov(guess.T)) / np.trace(np.cov(truth.T)), rel=1e-3)


def test_identification_is_told_by_the_dimensions_of_the_signal(one):
    planted, found = one
    guess, truth = standardised(planted, predicted(planted)), standardised(planted, planted.embedding[TRAIN:])
    every = np.corrcoef(truth, guess)[:TEST, TEST:]
    expected = np.mean([(every[:, k] < every[k, k]).sum() / (TEST - 1) for k in range(TEST)])
    nothing, whole = found["methods"]["clean"]["bottleneck"]
    assert (nothing["dimensions"], whole["dimensions"]) == (1, 12)
    assert whole["identification"]["value"] == pytest.approx(expected, abs=1e-3) and nothing["identification"]["value"] < 0.6
    assert found["methods"]["clean"]["groups"]["score"] == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("directions", [1, 3, 7])
def test_effective_rank_of_equal_directions_is_their_number(directions):
    values = np.concatenate([np.eye(directions, 12), -np.eye(directions, 12)])
    assert effective_rank(values) == pytest.approx(directions)
    assert effective_rank(np.ones((5, 3))) == 0


def test_the_category_level_is_the_score_of_one_who_knows_the_category_alone():
    random = np.random.default_rng(0)
    k, each, q = 5, 40, 0.8
    group = np.repeat(np.arange(k), each)
    alike = group[:, None] == group[None]
    own = np.full(len(group), 1.0)
    likeness = np.where(random.random(alike.shape) < np.where(alike, 0.5, q), 0.0, 2.0)
    np.fill_diagonal(likeness, own)
    found = category_level(likeness, group, np.arange(len(group)), 50, 0)
    same = (each - 1) / (k * each - 1)
    assert found["same_group"] == pytest.approx(same)
    assert found["category_level"] == pytest.approx(same * 0.5 + (1 - same) * q, abs=0.01)
    assert found["score"] == pytest.approx(found["category_level"], abs=0.01) and found["within"]["value"] == pytest.approx(0.5, abs=0.02)
    left_out = category_level(likeness, np.where(group == 0, -1, group), np.arange(len(group)), 50, 0)
    assert left_out == category_level(likeness[each:, each:], group[each:], np.arange(len(group) - each), 50, 0)


def test_scores_by_distance_are_of_equal_groups_nearest_first():
    distance = np.random.default_rng(1).permutation(50) / 50
    found = by_distance({"clip": {"per_image": (1 - distance).tolist()}, "fid": {"per_image": None}}, distance, distance < 0.1)
    assert list(found) == ["clip"] and [group["n"] for group in found["clip"]["groups"]] == [5] * 10
    np.testing.assert_allclose([group["value"] for group in found["clip"]["groups"]], 1 - (np.arange(50) / 50).reshape(10, 5).mean(1))
    assert found["clip"]["correlation"] == pytest.approx(-1) and found["clip"]["without_near_duplicates"] == pytest.approx(1 - np.arange(5, 50).mean() / 50)
    nothing = by_distance({"clip": {"per_image": [None] * 4}}, np.arange(4.0), np.zeros(4, bool))
    assert nothing["clip"]["groups"] == [] and nothing["clip"]["correlation"] is None


def test_what_training_targets_do_not_span_is_found(tmp_path):
    random = np.random.default_rng(2)
    spanned = random.normal(size=(60, 4)) @ random.normal(size=(4, 12))
    with h5py.File(tmp_path / "embeddings.h5", "w") as file:
        file["embedding"] = spanned.astype(np.float32)
    with h5py.File(tmp_path / "stimuli.h5", "w") as file:
        file["sha256"] = [str(i) for i in range(60)]
    with h5py.File(tmp_path / "subj01.h5", "w") as file:
        file["stimulus"], file["split"] = np.arange(60), np.repeat([0, 1], 30)
    training = TrainingPictures([tmp_path / "subj01.h5"], [tmp_path / "embeddings.h5"], [tmp_path / "stimuli.h5"])
    ruler = Ruler(np.zeros(12), np.ones(12))
    assert len(training) == 60, "validation pictures have been looked at in training"
    assert outside_span(spanned[:9], training, ruler) == pytest.approx(0, abs=1e-6)
    base = np.linalg.svd(spanned - spanned.mean(0), full_matrices=False)[2][:4]
    off = random.normal(size=(9, 12))
    inside = (off - spanned.mean(0)) @ base.T
    expected = 1 - (inside**2).sum() / ((off - spanned.mean(0)) ** 2).sum()
    assert outside_span(off, training, ruler) == pytest.approx(expected, abs=1e-5)


def test_pictures_of_several_subjects_count_once_and_are_read_in_any_order(tmp_path):
    random = np.random.default_rng(3)
    for name, first in (("a", 0), ("b", 4)):  # pictures 4 to 7 are the same in both sets
        with h5py.File(tmp_path / f"{name}.stimuli.h5", "w") as file:
            file["sha256"], file["images"] = (
                [str(i) for i in range(first, first + 8)],
                np.arange(first, first + 8, dtype=np.uint8)[:, None, None, None] + np.zeros((1, 4, 4, 3), np.uint8),
            )
        with h5py.File(tmp_path / f"{name}.embeddings.h5", "w") as file:
            file["embedding"] = random.normal(size=(8, 3)).astype(np.float32)
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["stimulus"], file["split"] = np.arange(8), np.array([0, 0, 0, 0, 0, 1, 0, 2])
    training = TrainingPictures(*([tmp_path / f"{name}{kind}" for name in "ab"] for kind in (".h5", ".embeddings.h5", ".stimuli.h5")))
    assert len(training) == 11 and training.of_last.tolist() == [4, 5, 6, 7, 8, 9, 10]
    with h5py.File(tmp_path / "b.stimuli.h5") as b, h5py.File(tmp_path / "a.stimuli.h5") as a:
        pictures = training.pictures(lambda path: {"a": a, "b": b}[path.name[0]]["images"])
        assert pictures[np.array([10, 3, 7])][:, 0, 0, 0].tolist() == [10, 3, 7]
    rows = training.read(np.array([9, 1]))
    with h5py.File(tmp_path / "a.embeddings.h5") as a, h5py.File(tmp_path / "b.embeddings.h5") as b:
        np.testing.assert_array_equal(rows, [b["embedding"][5], a["embedding"][1]])
        vectors = Ruler(np.zeros(3), np.ones(3))(rows)
    number, distance = nearest(vectors, training, Ruler(np.zeros(3), np.ones(3)), 1)
    assert number[:, 0].tolist() == [9, 1] and distance == pytest.approx(0, abs=1e-6)
    other, _ = nearest(vectors, training, Ruler(np.zeros(3), np.ones(3)), 1, without=np.array([9, 1]))
    assert (other[:, 0] != [9, 1]).all()
    assert ranks(vectors, vectors, training, Ruler(np.zeros(3), np.ones(3))).tolist() == [2, 2], "a tie counts against the seen picture"


def test_the_middle_of_a_picture_is_its_middle_at_full_size():
    ramp = np.tile(np.arange(0, 200, 10, dtype=np.uint8)[None, :, None], (20, 1, 3))
    middle = Middles(ramp[None])[np.array([0])]
    assert middle.shape == (1, 20, 20, 3) and middle[0, 0, 0, 0] in range(18, 24) and middle[0, 0, -1, 0] in range(166, 172)


# --- files that do not belong together ----------------------------------------------------------------------------------


def test_scores_of_other_pictures_are_refused(tmp_path, foundations):
    planted = Planted(tmp_path, 7)
    path = planted.clean()
    metrics = tmp_path / "metrics/clean.json"
    metrics.write_text(json.dumps(json.loads(metrics.read_text()) | {"stimulus": [1, 2]}))
    with pytest.raises(InputError, match="has no scores of clean for these test pictures"):
        checked(planted, foundations, path)
    assert not (tmp_path / "checks.json").exists()


def test_embeddings_of_other_pictures_are_refused(tmp_path, foundations):
    planted = Planted(tmp_path, 7)
    path = planted.clean()
    with h5py.File(tmp_path / "stimuli.h5", "a") as file:
        few = file["sha256"][:100]
        del file["sha256"]
        file["sha256"] = few
    with pytest.raises(InputError, match="has 100 pictures, but stimulus 399 is asked for"):
        checked(planted, foundations, path)


@pytest.mark.parametrize(("rule", "message"), [("c[0-7]", "has no group"), ("c(", "is no regular expression")])
def test_a_rule_of_categories_that_finds_none_is_refused(rule, message):
    with pytest.raises(InputError, match=f"datasets.sim.*categories.*{message}"):
        study_of("clean", categories=rule)


# --- tables, declaration ------------------------------------------------------------------------------------------------


def test_the_declaration_is_what_its_schema_says_and_the_table_has_every_check(one, tmp_path, monkeypatch):
    planted, found = one
    study = study_of("clean")
    monkeypatch.chdir(tmp_path)
    Path("study.json").write_text(study.model_dump_json())
    content = json.loads((planted.root / "metrics/clean.json").read_text())
    for key, value in {"role": "train", "trials": 800, "absent": {}, "tested": {"retrieval_pool": 80}, "study": "planted"}.items():
        content[key] = value
    content["rows"]["reconstruction"]["clip"] |= {"ci_low": 0.4, "ci_high": 0.6, "n": TEST}
    Path("clean.json").write_text(json.dumps(content))
    given = ["--study", "study.json", "--metrics", "clean.json", "--models", str(tmp_path), "--generalisation", str(planted.root / "checks.json")]
    assert main(["tabulate", *given, "--out", "tables"]) == 0
    declared = json.loads(Path("tables/declaration.json").read_text())
    schema = json.loads((ROOT / "config/declaration.schema.json").read_text())
    jsonschema.validate(declared, schema)
    own = declared["subjects"][0]
    assert own["subject_seen_in_training"] is None and own["training_minutes"] == pytest.approx(800 * 4 / 60, abs=0.1)
    assert (own["training_trials"], own["repeats_in_training"], own["test_pictures"], own["trials_per_test_picture"]) == (800, "2", 80, "1")
    assert own["rule_of_test_pictures"] == "pictures shown to every subject, seen 3 times" and own["near_duplicates_in_training"] == 0
    assert own["methods"][0] == {
        "method": "clean", "trained_on_this_subject": "closed form", "training_subjects": 0, "trials_of_this_subject": 800, "samples": 1,
        "choice_of_sample": "the only one",
    }  # fmt: skip
    for broken in ({**declared, "subjects": [{**own, "test_pictures": 1}]}, {**declared, "more": 1}, {"study": "x"}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(broken, schema)
    table = pd.read_csv("tables/generalisation.csv")
    of = table.set_index("check").value
    assert of["training_identification:top10"] == pytest.approx(found["methods"]["clean"]["training_identification"]["top10"]["value"])
    assert of["median_distance"] == pytest.approx(found["audit"]["median_distance"]) and (table.check == "by_distance:clip").sum() == 10
    assert not table.check.str.startswith("alarm").any()

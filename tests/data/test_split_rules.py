"""Test pictures by a rule on the pictures: every rule against its definition, the same for everybody, and prepared so."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from unimind.cli import main
from unimind.data.prepare import _training_images
from unimind.data.prepared import PreparedSubject, Stimuli
from unimind.data.split import split
from unimind.errors import InputError
from unimind.study import layout, parse_study, resolved

N, DIMENSION = 120, 6
BLOBS = 5


def study_of(rule: dict, **data):
    section = {
        "source": "arrays", "responses": "{subject}.npy", "images": "{subject}", "training_subjects": ["a", "b"], "new_subjects": ["c"], "test_pictures": rule,
    }  # fmt: skip
    methods = {"ridge": {"enter": {"kind": "ridge"}, "scope": "subject"}}
    return parse_study({"name": "s", "datasets": {"lab": section | data}, "foundations": {"diffusion": {"kind": "study"}}, "methods": methods, "seed": 4})


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """Pictures of two training subjects, who share a third, and of a new one: clusters of embeddings, a category in every name."""
    root, random = tmp_path_factory.mktemp("lab"), np.random.default_rng(0)
    centres = 6 * random.normal(size=(BLOBS, DIMENSION))
    blob = random.integers(BLOBS, size=3 * N)
    embedding = centres[blob] + random.normal(size=(3 * N, DIMENSION))
    for subject, rows in {"a": range(N), "b": range(N - 40, 2 * N - 40), "c": range(2 * N - 80, 3 * N - 80)}.items():
        rows = random.permutation(rows)
        with h5py.File(root / f"{subject}.h5", "w") as file:
            file["images"] = np.zeros((N, 4, 4, 3), np.uint8)
            file["id"], file["sha256"] = [f"c{row % 12}_{row}" if row % 30 else f"odd{row}" for row in rows], [f"{row:064d}" for row in rows]
            file["test"] = np.ones(N, bool)
        with h5py.File(root / f"{subject}.embeddings.h5", "w") as file:
            file["embedding"] = embedding[rows].astype(np.float32)
    return root, embedding, blob


def split_of(root, rule: dict, subject: str, out, order=("a", "b"), embeddings=True, **data) -> dict[int, tuple[bool, bool]]:
    """Picture -> (tested, left out) in a subject's set."""
    training = [root / f"{name}.h5" for name in order]
    vectors = [root / f"{name}.embeddings.h5" for name in order] if embeddings else []
    own = root / f"{subject}.embeddings.h5" if embeddings else None
    split(study_of(rule, **data), "lab", root / f"{subject}.h5", training, own, vectors, out)
    with Stimuli(out) as file:
        return {int(name): (bool(test), bool(left)) for name, test, left in zip(file.sha256, file.test, file.left_out, strict=True)}


RULES = {
    "random": {"rule": "random", "share": 0.25, "leave_out": 0.3},
    "far": {"rule": "far", "share": 0.25, "leave_out": 0.3},
    "clusters": {"rule": "clusters", "count": BLOBS, "test": 1},
    "categories": {"rule": "categories", "share": 0.25},
}
NAMED = {"categories": "^c([0-9]+)_"}


@pytest.mark.parametrize("rule", RULES)
def test_a_picture_is_on_one_side_for_everybody_in_whatever_order_the_files_come(lab, tmp_path, rule):
    root, *_ = lab
    found = {name: split_of(root, RULES[rule], name, tmp_path / f"{name}.h5", **NAMED) for name in "abc"}
    again = split_of(root, RULES[rule], "a", tmp_path / "again.h5", order=("b", "a"), **NAMED)
    assert again == found["a"]
    for first, second in (("a", "b"), ("b", "c")):
        shared = found[first].keys() & found[second].keys()
        assert len(shared) == 40 and all(found[first][k] == found[second][k] for k in shared)
    for own in found.values():
        assert any(test for test, _ in own.values()) and not all(test or left for test, left in own.values()) and not any(t and x for t, x in own.values())


def test_far_tests_on_the_pictures_of_random_and_leaves_out_as_many_but_those_nearest_to_them(lab, tmp_path):
    root, embedding, _ = lab
    far, random = ([split_of(root, RULES[rule], name, tmp_path / f"{rule}{name}.h5") for name in "ab"] for rule in ("far", "random"))
    far, random = far[0] | far[1], random[0] | random[1]
    tested = {k for k, (test, _) in far.items() if test}
    assert tested == {k for k, (test, _) in random.items() if test} and 0.15 < len(tested) / len(far) < 0.35
    left = {k for k, (_, out) in far.items() if out}
    others = far.keys() - tested
    assert len(left) == pytest.approx(0.3 * len(others), abs=1) and abs(sum(out for _, out in random.values()) - len(left)) < 0.12 * len(others)
    centred = embedding - embedding[sorted(far)].mean(0)
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    nearest = {k: max(float(unit[k] @ unit[t]) for t in tested) for k in others}
    assert min(nearest[k] for k in left) > max(nearest[k] for k in others - left), "exactly those nearest to a test picture"


def test_no_test_picture_of_a_new_subject_is_near_to_what_anybody_trains_on(lab, tmp_path):
    root, embedding, _ = lab
    found = [split_of(root, RULES["far"], name, tmp_path / f"{name}.h5") for name in "abc"]
    known = sorted(found[0].keys() | found[1].keys())
    centred = embedding - embedding[known].mean(0)
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    sides = [{k for own in found for k, told in own.items() if told == side} for side in ((True, False), (False, False), (False, True))]
    assert not sides[0] & sides[1] and not sides[1] & sides[2]
    of_training = unit[[k for k in known if k in sides[1]]] @ unit[[k for k in known if k in sides[0]]].T
    assert (unit[sorted(sides[1])] @ unit[sorted(sides[0])].T).max() == pytest.approx(of_training.max(), abs=0.02)
    random = set().union(*({k for k, (test, _) in split_of(root, RULES["random"], name, tmp_path / "r.h5").items() if test} for name in "abc"))
    assert sides[0] < random


def test_clusters_are_those_of_the_embedding_and_each_picture_is_tested_on_once_in_turn(lab, tmp_path):
    root, _, blob = lab
    tested = []
    for turn in range(BLOBS):
        found = split_of(root, {"rule": "clusters", "count": BLOBS, "test": turn}, "a", tmp_path / f"{turn}.h5")
        tested += [k for k, (test, _) in found.items() if test]
        assert len({blob[k] for k, (test, _) in found.items() if test}) == 1
    assert sorted(tested) == list(range(N))


def test_categories_are_disjoint_and_pictures_without_one_are_in_no_split(lab, tmp_path):
    root, *_ = lab
    found = split_of(root, RULES["categories"], "b", tmp_path / "b.h5", embeddings=False, **NAMED)
    tested = {k % 12 for k, (test, _) in found.items() if test}
    assert len(tested) == 3 and not tested & {k % 12 for k, (test, left) in found.items() if not test and not left}
    assert {k for k, (_, left) in found.items() if left} == {k for k in found if k % 30 == 0}


def test_pictures_left_out_are_nobodys_training_pictures(lab, tmp_path):
    root, *_ = lab
    found = split_of(root, RULES["far"], "a", tmp_path / "a.h5")
    tests, others = _training_images([tmp_path / "a.h5"])
    assert {int(name) for name in tests} == {k for k, (test, _) in found.items() if test}
    assert {int(name) for name in others} == {k for k, (test, left) in found.items() if not test and not left}


@pytest.mark.parametrize(
    ("rule", "data", "message"),
    [
        ({"rule": "clusters", "count": 3, "test": 3}, {}, "counted from 0 to 2"),
        ({"rule": "categories"}, {}, "needs to know them; give `categories`"),
        ({"rule": "random"}, {"split": {"every": 4}}, "split: test_pictures says which"),
        ({"rule": "random"}, {"categories": "c[0-9]"}, "has no group"),
        ({"rule": "random", "count": 3}, {}, "count"),
        ({"rule": "nearest"}, {}, "rule"),
    ],
)
def test_rules_that_cannot_be_are_refused_before_anything_runs(rule, data, message):
    with pytest.raises(InputError, match=message):
        study_of(rule, **data)


@pytest.mark.parametrize(
    ("rule", "changed", "message"),
    [
        ({"rule": "categories", "share": 0.02}, {}, "leaves no test pictures"),
        ({"rule": "clusters", "count": 201}, {}, "201 clusters of 200 pictures"),
        ({"rule": "far"}, {"embeddings": False}, "its embeddings are missing"),
    ],
)
def test_files_that_a_rule_cannot_be_used_on_are_refused(lab, tmp_path, rule, changed, message):
    root, *_ = lab
    with pytest.raises(InputError, match=message):
        split_of(root, rule, "a", tmp_path / "out.h5", **changed, **NAMED)
    assert not (tmp_path / "out.h5").exists()


def test_embeddings_of_other_pictures_are_refused(lab, tmp_path):
    root, *_ = lab
    with h5py.File(tmp_path / "few.h5", "w") as file:
        file["embedding"] = np.zeros((3, DIMENSION), np.float32)
    with pytest.raises(InputError, match="has 3 embeddings for the 120 pictures"):
        split(study_of(RULES["far"]), "lab", root / "a.h5", [root / "a.h5"], tmp_path / "few.h5", [root / "a.embeddings.h5"], tmp_path / "out.h5")


# --- in a study -----------------------------------------------------------------------------------------------------------


def test_a_rule_takes_the_place_of_the_data_sets_own_and_stays_it_when_the_study_is_written_out():
    study = study_of({"rule": "far"}, split=None)
    assert parse_study(resolved(study)) == study and study.datasets["lab"].test_pictures.leave_out == 0.3
    jobs = [(job.stage, job.path) for job in study.jobs() if job.names.get("stimuli") == "a.stimuli" or job.names.get("dataset") == "lab"]
    pictures, stimuli = (layout.path(pattern, dataset="lab", stimuli="a.stimuli") for pattern in (layout.PICTURES, layout.STIMULI))
    assert ("stimuli", pictures) in jobs and ("split", stimuli) in jobs and study.splits_by_embedding()
    plain = study_of(None)
    assert ("stimuli", stimuli) in [(job.stage, job.path) for job in plain.jobs()] and not any(job.stage == "split" for job in plain.jobs())


@pytest.mark.parametrize("rule", [{"rule": "random", "share": 0.3, "leave_out": 0.4}, {"rule": "clusters", "count": 3, "test": 2}])
def test_trials_follow_their_pictures_through_the_stages(tmp_path, monkeypatch, rule):
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    np.save("pictures.npy", random.integers(0, 256, (60, 12, 12, 3), dtype=np.uint8))
    np.save("a.npy", random.normal(size=(60, 5)))
    with h5py.File("vectors.h5", "w") as file:
        file["embedding"] = random.normal(size=(60, 4)).astype(np.float32)
    data = {"training_subjects": ["a"], "new_subjects": [], "root": str(tmp_path), "images": "pictures.npy"}
    Path("study.json").write_text(json.dumps(resolved(study_of(rule, **data))))
    given = ["--study", "study.json", "--dataset", "lab"]
    assert main(["fetch", *given, "--stimuli", "--out", "pictures.json"]) == 0
    assert main(["fetch", *given, "--subject", "a", "--out", "a.json"]) == 0
    assert main(["stimuli", *given, "--fetched", "pictures.json", "--out", "pictures.h5"]) == 0
    known = ["--training-pictures", "pictures.h5", "--embeddings", "vectors.h5", "--training-embeddings", "vectors.h5"]
    assert main(["split", *given, "--pictures", "pictures.h5", *known, "--out", "stimuli.h5"]) == 0
    files = ["--fetched", "a.json", "--stimuli", "stimuli.h5", "--training-stimuli", "stimuli.h5"]
    assert main(["prepare", *given, "--subject", "a", *files, "--out", "a.h5"]) == 0
    with Stimuli("stimuli.h5") as pictures, PreparedSubject("a.h5") as subject:
        assert pictures.test.sum() > 5 and bool(pictures.left_out.any()) == (rule["rule"] == "random")
        assert subject.stimulus.tolist() == np.flatnonzero(~pictures.left_out).tolist(), "no trial of a picture that is left out"
        np.testing.assert_array_equal(subject.split == 2, pictures.test[subject.stimulus])

"""How the rows of a batch are shared by subjects, and by micro-batches: what is possible works, the rest is refused before anything runs."""

import re
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from test_condition_stage import files_of
from tiny_training import TRAINING, make_study

from unimind.errors import InputError
from unimind.storage import load_model
from unimind.study import Study, Training, parse_study, read_study, resolved
from unimind.training.adapt import adapt
from unimind.training.align import align
from unimind.training.batches import part_of
from unimind.training.data import turns
from unimind.training.objectives.siamese import cross_subject_pairs

CONFIG = Path(__file__).parents[2] / "config"
STUDIES = [*sorted(CONFIG.glob("*.yaml")), *sorted(CONFIG.glob("additions/*.yaml"))]


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch):
    monkeypatch.setenv("UNIMIND_DEVICE", "cpu")


def read(path: Path) -> Study:
    """A study, or an addition to the study that its first lines name."""
    base = re.search(rf"--configfile (config/\w+\.yaml) config/additions/{path.name}", path.read_text())
    return read_study(*([CONFIG.parent / base[1]] if base else []), path)


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_micro_batch_of_every_stage_has_rows(path):
    study, stages = read(path), 0
    for name in study.all_methods():
        method = study.method(name)
        for stage in ("pretrain", "align", "condition", "adapt"):
            if (settings := getattr(method, stage)) is None:
                continue
            training = settings.training
            for group in {study.group(name, *pair) for pair in study.pairs("train")}:
                members = [f"{dataset}-{subject}" for dataset, subject in study.members(name, group)]
                for step in range(2 * len(members)):
                    rows = torch.cat(list(turns(members, training.batch_size, step).values()))
                    parts = [part_of({"index": rows}, part, training.accumulate)["index"] for part in range(training.accumulate)]
                    assert {len(part) for part in parts} == {training.batch_size // training.accumulate} and len(rows) == training.batch_size
            stages += 1
    assert stages


@pytest.mark.parametrize("size", [2, 3, 16, 17])
@pytest.mark.parametrize("subjects", [2, 3, 5])
def test_batches_have_pairs_of_different_subjects(size, subjects):
    names = [f"s{number}" for number in range(subjects)]
    total = dict.fromkeys(names, 0)
    for step in range(subjects):
        places = turns(names, size, step)
        for name, own in places.items():
            assert own.tolist() == list(range(total[name], total[name] + len(own)))  # on from the step before
            total[name] += len(own)
        rows = [name for name, own in places.items() for _ in own]
        pairs = cross_subject_pairs(rows)
        assert len(rows) == size and pairs and all(rows[one] != rows[other] for one, other in pairs)
    assert set(total.values()) == {size}


def test_rows_of_unequal_parts_are_all_used_once():
    batch = {"index": torch.arange(7), "subject": list("abcdefg")}
    parts = [part_of(batch, part, 3) for part in range(3)]
    assert torch.cat([part["index"] for part in parts]).tolist() == list(range(7))
    assert [letter for part in parts for letter in part["subject"]] == batch["subject"]
    assert sorted(len(part["subject"]) for part in parts) == [2, 2, 3]


def test_micro_batches_of_alignment_change_nothing(files, tmp_path, monkeypatch):
    """The losses that take each row by itself; dropout, whose places depend on the micro-batch, is left out."""
    monkeypatch.setattr(torch.nn.Dropout, "forward", lambda self, x: x)
    losses = {"siamese": 0.0, "embedding": 1.0, "softclip": 0.0, "subject": 0.1, "adversarial": 0.1}
    curves, states = [], []
    for accumulate in (1, 3):
        training = TRAINING | {"steps": 12, "batch_size": 15, "validate_every": 4, "accumulate": accumulate}
        align(
            make_study(pretrain=None, align={"losses": losses, "training": training}),
            "m",
            "sim",
            *files_of(files),
            None,
            None,
            tmp_path / "c",
            tmp_path / str(accumulate),
        )
        rows = [line.rsplit(",", 1) for line in (tmp_path / str(accumulate) / "losses.csv").read_text().splitlines()[1:]]
        curves.append({key: float(value) for key, value in rows})
        states.append(load_model(tmp_path / str(accumulate))[0])
    assert curves[1] == pytest.approx(curves[0], rel=1e-3, abs=1e-4)
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name], tensor, rtol=1e-3, atol=1e-3, msg=name)


SHARED = TRAINING | {"batch_size": 24, "accumulate": 2}
REFUSED = [
    ({"align": {"training": SHARED}}, ["methods.m.align: training.accumulate: 2 given", "siamese", "gradient_checkpointing"]),
    ({"align": {"losses": {"siamese": 0.0, "softclip": 1.0}, "training": SHARED}}, ["methods.m.align: training.accumulate: 2 given", "softclip"]),
    ({"align": {"training": TRAINING | {"batch_size": 1}}}, ["methods.m.align: training.batch_size: 1 given", "2 or more"]),
    ({"adapt": {"losses": {"softclip": 1.0}, "training": SHARED}}, ["methods.m.adapt: training.accumulate: 2 given", "softclip"]),
    ({"adapt": {"mix_training": 0.2, "losses": {"siamese": 1.0}, "training": SHARED}}, ["methods.m.adapt: training.accumulate: 2 given", "siamese"]),
    (
        {"adapt": {"mix_training": 0.2, "training": TRAINING | {"batch_size": 1}}},
        ["methods.m.adapt: training.batch_size", "mix_training"],
    ),
    ({"condition": {"training": TRAINING | {"batch_size": 2, "accumulate": 4}}}, ["methods.m.condition.training: accumulate: 4 given", "batch_size 2"]),
    ({"condition": {"training": TRAINING | {"batch_size": 5, "accumulate": 2}}}, ["methods.m.condition.training: accumulate: 2 given", "batch_size 5"]),
]


@pytest.mark.parametrize(("changes", "words"), REFUSED)
def test_what_cannot_be_shared_out_is_refused_by_the_study(changes, words):
    with pytest.raises(InputError) as error:
        make_study(**changes)
    assert "\n" not in str(error.value) and all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize("network", ["embedding", "classifier"])
def test_foundations_that_compare_rows_are_not_shared_out(network):
    content = resolved(make_study())
    content["foundations"][network] = {"kind": "study-clip" if network == "embedding" else "study", "training": SHARED}
    with pytest.raises(InputError, match=rf"foundations.{network}: training.accumulate: 2 given"):
        parse_study(content)


@pytest.mark.parametrize(
    "changes",
    [
        {"align": {"losses": {"siamese": 0.0, "subject": 1.0}, "training": SHARED}},
        {"adapt": {"training": SHARED}},
        {"condition": {"training": TRAINING | {"batch_size": 2, "accumulate": 2}}},
    ],
)
def test_what_can_be_shared_out_is_taken(changes):
    (stage,) = changes
    training = getattr(make_study(**changes).methods["m"], stage).training
    assert training.accumulate == 2 and training.batch_size == changes[stage]["training"]["batch_size"]


def test_accumulation_says_what_it_changes():
    assert "compare the rows of a batch" in str(Training.model_fields["accumulate"].description)


def test_a_mixed_batch_of_adaptation_has_its_size(files, tmp_path):
    """Seven rows of the new subject, and three of the training subjects in turn."""
    study = make_study(
        pretrain=None,
        adapt={"mix_training": 0.3, "losses": {"siamese": 1.0}, "training": TRAINING | {"batch_size": 10}},
        align={"training": TRAINING | {"steps": 2}},
    )
    align(study, "m", "sim", *files_of(files), None, None, tmp_path / "c", tmp_path / "shared")
    batches = []

    def train(module, *, draw, **more):
        batches.extend(draw(step) for step in range(2))
        raise InterruptedError

    prepared, embeddings = files_of(files)
    with patch("unimind.training.adapt.train", train), pytest.raises(InterruptedError):
        adapt(
            study, "m", "sim", "subj03", files / "subj03.h5", files / "embeddings.h5", tmp_path / "shared", tmp_path / "c", tmp_path / "new",
            training_prepared=prepared, training_embeddings=embeddings,
        )  # fmt: skip
    counts = [[batch["subject"].count(f"sim-subj0{number}") for number in (3, 1, 2)] for batch in batches]
    assert counts == [[7, 2, 1], [7, 1, 2]]

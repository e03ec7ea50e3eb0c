"""What Snakemake plans after a laboratory has edited its files: what is made of them, whatever their size and date, and nothing else."""

import os
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from workflow_clone import Clone, tiny

from unimind.data.fetch import fetch
from unimind.report.status import status
from unimind.study import parse_study

RNG = np.random.default_rng(2)
TRIALS = "session\tpicture\n" + "".join(f"{1 + k // 6}\tp{k % 8}\n" for k in range(12))
OF_SUBJECT = {
    "fetch_subject": 1, "prepare_subject": 1, "check_subjects": 1, "enter_subject": 1, "reconstruct_pictures": 1, "score_reconstructions": 1,
    "check_generalisation": 2,  # both are training subjects, whose pictures count for each other
}  # fmt: skip
OF_PICTURES = {"fetch_stimuli", "prepare_stimuli", "embed_stimuli", "sample_controls", "extract_features", "train_foundation"}


def study_of_arrays() -> dict:
    quick = tiny()
    dataset = {
        "source": "arrays", "root": "lab", "training_subjects": ["s1", "s2"], "images": "pictures", "split": {"every": 2},
        "responses": "{subject}/ses-{session}.npy", "mask": "{subject}/mask.npy", "trials": "{subject}/trials.tsv",
    }  # fmt: skip
    foundations = quick["foundations"] | {"classifier": None}
    return {key: quick[key] for key in ("name", "picture_size", "evaluation")} | {
        "datasets": {"own": dataset}, "methods": {"ridge": quick["methods"]["ridge"]}, "foundations": foundations,
    }  # fmt: skip


def write_laboratory(root: Path) -> None:
    (root / "pictures").mkdir(parents=True)
    for k in range(8):
        Image.fromarray(RNG.integers(0, 256, (4, 4, 3), dtype=np.uint8)).save(root / f"pictures/p{k}.png")
    for subject in ("s1", "s2"):
        (root / subject).mkdir()
        np.save(root / subject / "mask.npy", np.array([[[1, 1], [0, 1]], [[0, 1], [1, 1]]], np.uint8))
        for session in (1, 2):
            np.save(root / subject / f"ses-{session}.npy", RNG.normal(size=(2, 2, 2, 6)).astype(np.float32))
        (root / subject / "trials.tsv").write_text(TRIALS)


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory):
    clone = Clone.make(tmp_path_factory.mktemp("laboratory") / "unimind")
    write_laboratory(clone.folder / "lab")
    study = clone.study(study_of_arrays())
    done = clone.snakemake(configfile=study)
    assert done.returncode == 0, done.stdout + done.stderr
    return clone, study


def replaced(path: Path, at: int, value: int):
    content = bytearray(path.read_bytes())
    content[at] = value
    return {path: bytes(content)}


def a_label(lab):
    return {lab / "s1/trials.tsv": TRIALS.replace("1\tp3", "1\tp4", 1).encode()}


def two_labels_swapped(lab):
    return {lab / "s1/trials.tsv": TRIALS.replace("1\tp3\n1\tp4", "1\tp4\n1\tp3", 1).encode()}


def a_session_more(lab):
    return {
        lab / "s1/ses-3.npy": (lab / "s1/ses-2.npy").read_bytes(),
        lab / "s1/trials.tsv": (TRIALS + "".join(f"3\tp{k}\n" for k in range(6))).encode(),
    }


def a_voxel_of_the_mask(lab):
    return replaced(lab / "s1/mask.npy", -1, 0)


def a_response(lab):
    return replaced(lab / "s1/ses-1.npy", -1, 0x40)


def a_picture(lab):
    Image.fromarray(RNG.integers(0, 256, (4, 4, 3), dtype=np.uint8)).save(lab / "other.png")
    content = (lab / "other.png").read_bytes()
    (lab / "other.png").unlink()
    return {lab / "pictures/p5.png": content}


def a_picture_more(lab):
    return {lab / "pictures/p9.png": next(iter(a_picture(lab).values()))}


def a_date(lab):
    return {lab / "s1/trials.tsv": TRIALS.encode()}


@pytest.mark.slow
@pytest.mark.parametrize("edit", [a_label, two_labels_swapped, a_session_more, a_voxel_of_the_mask, a_response, a_picture, a_picture_more, a_date])
def test_an_edit_plans_what_is_made_of_it(laboratory, edit):
    clone, study = laboratory
    changes = edit(clone.folder / "lab")
    before = {path: (path.read_bytes(), path.stat()) for path in changes if path.exists()}
    for path, content in changes.items():
        path.write_bytes(content)
        if edit is not a_date and path in before:
            os.utime(path, ns=(before[path][1].st_atime_ns, before[path][1].st_mtime_ns))  # as copying programs set it
    try:
        planned = clone.planned(configfile=study)
    finally:
        for path in changes:
            path.write_bytes(before[path][0]) if path in before else path.unlink()
    if edit is a_date:
        assert planned == {}
    elif edit in (a_picture, a_picture_more):
        assert planned.keys() >= OF_PICTURES - {"train_foundation"} and planned["prepare_subject"] == 2
    else:
        assert planned.items() >= OF_SUBJECT.items() and not planned.keys() & OF_PICTURES


@pytest.mark.slow
def test_another_mask_in_the_study_touches_nothing_of_the_pictures(laboratory):
    content = study_of_arrays()
    content["datasets"]["own"]["mask_threshold"] = 0.5
    path = laboratory[0].folder / "other.yaml"
    path.write_text(yaml.safe_dump(content))
    planned = laboratory[0].planned(configfile=path)
    assert planned["prepare_subject"] == 2 and not planned.keys() & OF_PICTURES


def test_status_says_stale(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_laboratory(Path("lab"))
    study = parse_study(study_of_arrays())
    for subject, name in ((None, "stimuli"), ("s1", "s1"), ("s2", "s2")):
        fetch(study, "own", subject, stimuli=subject is None, out=Path(f"results/tiny/fetched/own/{name}.json"))
    status(study)
    assert "stale" not in capsys.readouterr().out
    Path("lab/s1/trials.tsv").write_text(TRIALS.replace("p3", "p4", 1))
    status(study)
    said = capsys.readouterr().out
    assert "1 stale" in said and "  stale       fetch                 own s1\n" in said

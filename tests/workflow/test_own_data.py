"""The worked example of config/README.md: a laboratory's NIfTI betas, masks and pictures, to the curve of a new subject."""

import json
import re
import shutil

import nibabel
import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from workflow_clone import ROOT, Clone, tiny

from unimind.cli import main
from unimind.data.prepared import PreparedSubject, Stimuli
from unimind.study import parse_study

pytestmark = pytest.mark.slow

EXAMPLE = (ROOT / "config" / "README.md").read_text().partition("<!-- own data -->")[2].partition("\n## ")[0]
STUDY = yaml.safe_load(re.search(r"```yaml\n(.*?)```", EXAMPLE, re.DOTALL)[1])
COMMANDS = re.search(r"```sh\n(.*?)```", EXAMPLE, re.DOTALL)[1].splitlines()
PEOPLE = ("anna", "bert", "carl")


def small() -> dict:
    """The example's study with foundations and trainings that take seconds."""
    quick = tiny()
    study = STUDY | {"picture_size": 32, "threads": 1, "foundations": quick["foundations"], "evaluation": quick["evaluation"]}
    own = STUDY["methods"]["unimind"]
    like = {key: quick["methods"]["unimind"][key] for key in ("body", "sampling")}
    study["methods"]["unimind"] = own | like | {"align": own["align"] | {"training": {"steps": 4, "batch_size": 8}}}
    study["methods"]["ridge"]["sampling"] = quick["methods"]["ridge"]["sampling"]
    return study | {"transfer": STUDY["transfer"] | {"seeds": 1}}


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory):
    """A clone with the example's files in it; what each trial showed and what it measured, by person."""
    clone = Clone.make(tmp_path_factory.mktemp("laboratory") / "unimind", standin=False)
    generator = np.random.default_rng(0)
    data = clone.folder / "mydata"
    (data / "pictures").mkdir(parents=True)
    pixels = {f"{kind}_{k:03d}.png": generator.integers(0, 256, (32, 32, 3), dtype=np.uint8) for kind in ("cat", "dog") for k in range(1, 41)}
    for name, picture in pixels.items():
        Image.fromarray(picture).save(data / "pictures" / name)
    shown, volumes, masks = {}, {}, {}
    for person in PEOPLE:
        (data / person).mkdir()
        masks[person] = generator.integers(0, 2, (4, 5, 3)).astype(np.uint8)
        nibabel.save(nibabel.Nifti1Image(masks[person], np.eye(4)), data / person / "visual.nii.gz")
        shown[person] = [list(pixels)[k] for k in generator.permutation(160) % len(pixels)]
        volumes[person] = generator.normal(size=(4, 5, 3, 160)).astype(np.float32)
        rows = ["session\tpicture\tpart"]
        for session in (1, 2):
            part = slice(80 * session - 80, 80 * session)
            nibabel.save(nibabel.Nifti1Image(volumes[person][..., part], np.eye(4)), data / person / f"betas_ses-{session}.nii.gz")
            rows += [f"{session}\t{name}\t{'test' if int(name[4:7]) % 5 == 0 else 'train'}" for name in shown[person][part]]
        (data / person / "trials.tsv").write_text("\n".join(rows) + "\n")
    (clone.folder / "my_lab.yaml").write_text(yaml.safe_dump(small(), sort_keys=False))
    return clone, pixels, shown, volumes, masks


def run(clone: Clone, command: str):
    done = clone.snakemake(*command.replace("--cores all", "").split()[1:], configfile=None)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-8000:]
    return done


def test_the_example_is_a_study_as_it_stands():
    assert parse_study(STUDY).transferred() == ["unimind", "ridge"]


def test_betas_become_z_scored_voxels_of_the_pictures_they_were_shown_with(laboratory, monkeypatch, capsys):
    clone, pixels, shown, volumes, masks = laboratory
    check, plan, prepare, _ = COMMANDS
    monkeypatch.chdir(clone.folder)
    assert main(check.split()[1:]) == 0
    assert main("check --data my_lab.yaml".split()) == 0
    assert f"mine anna: session 1 trial 1: {shown['anna'][0]}" in capsys.readouterr().out
    planned = run(clone, plan)
    assert "teach_closed_form" in planned.stdout + planned.stderr
    run(clone, prepare)
    prepared = clone.folder / "results/my_lab/prepared/mine"
    with Stimuli(prepared / "stimuli.h5") as stimuli, PreparedSubject(prepared / "anna.h5") as subject:
        assert [stimuli.id[row] for row in subject.stimulus] == shown["anna"]
        for row in subject.stimulus:
            np.testing.assert_array_equal(stimuli.images[int(row)], pixels[stimuli.id[row]])
        assert ((subject.split == 2) == [int(name[4:7]) % 5 == 0 for name in shown["anna"]]).all()
        raw = volumes["anna"][masks["anna"] > 0].T
        for session in (1, 2):
            at = subject.session == session
            train = at & (subject.split == 0)
            expected = (raw[at] - raw[train].mean(0)) / raw[train].std(0)
            np.testing.assert_allclose(subject.responses[:][at], expected[:, subject.stored], atol=1e-4)


@pytest.mark.longest
def test_the_whole_path_ends_in_the_curve_of_the_new_person(laboratory):
    clone = laboratory[0]
    run(clone, COMMANDS[-1])
    results = clone.folder / "results/my_lab"
    assert (results / "report.html").stat().st_size > 10_000
    table = pd.read_csv(results / "tables/adaptation.csv")
    bert = table[table.subject == "bert"]
    assert set(bert.method) == {"unimind", "ridge"}
    assert set(bert.trials) == {25, 50, 100, 128}
    assert (bert.trainable_parameters <= bert.parameters).all() and (bert.seconds > 0).all()


def nobody(data, study):
    study["datasets"]["mine"]["new_subjects"].append("dora")


def no_session(data, study):
    (data / "bert/betas_ses-2.nii.gz").unlink()


def other_grid(data, study):
    nibabel.save(nibabel.Nifti1Image(np.ones((4, 5, 4), np.uint8), np.eye(4)), data / "bert/visual.nii.gz")


def not_a_number(data, study):
    study["datasets"]["mine"]["drop_bad_voxels"] = False
    file = data / "bert/betas_ses-1.nii.gz"
    volumes = nibabel.load(file).get_fdata().astype(np.float32)
    volumes[..., 3] = np.nan
    nibabel.save(nibabel.Nifti1Image(volumes, np.eye(4)), file)


def unknown_picture(data, study):
    table = data / "bert/trials.tsv"
    table.write_text(table.read_text().replace("dog_007", "dog_777"))


def nothing_to_test(data, study):
    for person in PEOPLE:
        table = data / person / "trials.tsv"
        table.write_text(table.read_text().replace("\ttest", "\ttrain"))


DAMAGE = {
    nobody: "dora", no_session: "session 2, of which there is no file of responses", other_grid: "(4, 5, 4)", not_a_number: "missing values",
    unknown_picture: "dog_777", nothing_to_test: "test split is empty",
}  # fmt: skip


@pytest.mark.parametrize("damage", [pytest.param(case, marks=[] if case is not_a_number else pytest.mark.longest, id=case.__name__) for case in DAMAGE])
def test_bad_data_are_one_line_before_anything_is_trained(laboratory, tmp_path, damage):
    clone = Clone.make(tmp_path / "unimind", standin=False)
    shutil.copytree(laboratory[0].folder / "mydata", clone.folder / "mydata")
    study = json.loads(json.dumps(small()))
    damage(clone.folder / "mydata", study)
    done = clone.snakemake("--quiet", "all", configfile=clone.study(study))
    lines = done.stderr.partition("This run stopped because of what it was given:\n")[2].splitlines()
    assert done.returncode == 2 and lines, done.stderr[-3000:]
    assert all(line.startswith("unimind ") for line in lines) and any(DAMAGE[damage] in line for line in lines)
    results = clone.folder / "results/my_lab"
    assert not (results / "models").exists() and not (results / "foundations").exists() and not (results / "checkpoints").exists()
    assert not (results / "prepared/mine" / f"{'dora' if damage is nobody else 'bert'}.h5").exists()

"""A study that draws no pictures: what is planned, what is refused, and the whole of it from nothing to its report."""

import copy
import csv
import json
import re
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml
from planned import planned_commands
from workflow_clone import ROOT, tiny

from unimind.cli import main
from unimind.errors import InputError
from unimind.study import parse_study, resolved


def study() -> dict:
    """The tiny study's closed forms, its generator taken away."""
    content = copy.deepcopy(tiny())
    content["foundations"] = {name: content["foundations"][name] for name in ("drawn", "embedding")} | {"diffusion": {"kind": "none"}}
    content["methods"] = {
        name: {key: value for key, value in content["methods"][name].items() if key not in ("condition", "sampling")} for name in ("unimind", "ridge")
    }
    content["methods"]["unimind"]["align"]["losses"] = {"latent": 0, "siamese": 0.5}
    content["transfer"] = {"trials": [20, "all"], "seeds": 1}
    content["evaluation"] = {"bootstrap": 50}
    del content["unpaired"]
    return content | {"threads": 1}


def changed(path: str, value) -> dict:
    content = study()
    *sections, last = path.split(".")
    part = content
    for section in sections:
        part = part.setdefault(section, {})
    part[last] = value
    return content


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("foundations.autoencoder", {"kind": "hub"}, "foundations: autoencoder: hub given, but with diffusion.kind none"),
        ("foundations.classifier", {"kind": "study"}, "foundations: classifier: study given"),
        ("foundations.diffusion", {"kind": "autoencoder"}, None),
        ("methods.ridge.condition", {}, "methods.ridge.condition: given, but with foundations.diffusion.kind none no picture is drawn; leave it out"),
        ("methods.ridge.sampling", {"steps": 3}, "methods.ridge.sampling.steps: 3 given"),
        (
            "methods.unimind.align",
            {},
            "methods.unimind.align.losses.latent: 0.1 given, but with foundations.diffusion.kind none there is no",
        ),
        ("methods.unimind.embedding_prior", {}, "methods.unimind.embedding_prior: given, but with foundations.diffusion.kind none"),
        ("evaluation.metrics", ["identification", "clip", "ssim"], "evaluation.metrics: clip, ssim given"),
        ("evaluation.squeezenet", None, "evaluation.squeezenet: None given"),
        ("transfer.pictures", True, "transfer.pictures: true given"),
    ],
)
def test_what_only_pictures_need_is_refused(path, value, words):
    if words is None:
        words = "autoencoder nothing else is drawn than the predicted latent; write 0"
    with pytest.raises(InputError, match=re.escape(words)) as raised:
        parse_study(changed(path, value))
    assert "\n" not in str(raised.value)


def test_an_autoencoder_is_missed_where_pictures_are_drawn():
    content = tiny()
    content["foundations"]["autoencoder"] = None
    with pytest.raises(InputError, match="foundations: autoencoder: none given, but pictures are drawn"):
        parse_study(content)


def test_defaults_are_those_of_predictions_and_written_out():
    parsed = parse_study(study())
    assert parsed.evaluation.metrics == ["identification", "embedding_error", "retrieval_forward", "retrieval_backward"]
    assert not parsed.transfer.pictures and parsed.foundations.autoencoder is None and parsed.networks() == ["embedding"]
    assert parse_study(json.loads(json.dumps(resolved(parsed)))) == parsed
    assert parse_study(tiny()).draws and not {job.stage for job in parsed.jobs()} & {"reconstruct", "reconstruct-controls", "features", "condition"}


def test_the_example_of_the_documentation_is_such_a_study():
    text = (ROOT / "docs/data.md").read_text()
    content = study() | yaml.safe_load(re.search(r"<!-- no pictures -->\n```yaml\n(.*?)```", text, re.DOTALL)[1])
    assert not parse_study(content).draws


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A folder in which the study has run: the commands that Snakemake plans, one after the other, in this process."""
    folder = tmp_path_factory.mktemp("without")
    (folder / "study.yaml").write_text(yaml.safe_dump(study(), sort_keys=False))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        commands = planned_commands()
        assert len(commands) == len(list(parse_study(study()).jobs()))
        for command in commands:
            assert main(command) == 0, command
    return folder / "results/tiny"


def test_everything_is_made_and_no_picture(run):
    assert all((run / job.path).exists() for job in parse_study(study()).jobs())
    assert not any((run / name).exists() for name in ("reconstructions", "features", "foundations/autoencoder", "foundations/diffusion"))
    with h5py.File(run / "embeddings/simulated/stimuli.h5") as file:
        assert set(file) == {"embedding"} and "autoencoder_network" not in file.attrs


def test_tables_have_identification_and_its_controls(run):
    with open(run / "tables/reconstruction.csv") as stream:
        rows = {(row["subject"], row["method"], row["metric"]): float(row["value"]) for row in csv.DictReader(stream)}
    assert {name for _, name, _ in rows} == {
        "unimind", "ridge", "shuffled:unimind", "shuffled:ridge", "body-removed:unimind", "chance:unimind", "chance:ridge",
    }  # fmt: skip
    assert rows["subj03", "chance:ridge", "identification"] == 0.5
    with h5py.File(run / "embeddings/simulated/stimuli.h5") as targets, h5py.File(run / "prepared/simulated/subj03.h5") as trials:
        embedding, stimulus, split = targets["embedding"][:].astype(float), trials["stimulus"][:], trials["split"][:]
    training = embedding[np.unique(stimulus[split == 0])]
    for name, key in (("ridge", "predicted"), ("shuffled:ridge", "predicted_shuffled")):
        with h5py.File(run / "predictions/ridge/simulated/subj03.h5") as file:
            seen, predicted = file["stimulus"][:], file[key][:]
        z = [(values - training.mean(0)) / training.std(0) for values in (embedding[seen], predicted)]
        alike = np.corrcoef(*z)[: len(seen), len(seen) :]
        wins = [alike[i, i] > alike[j, i] for i in range(len(seen)) for j in range(len(seen)) if i != j]
        assert rows["subj03", name, "identification"] == pytest.approx(np.mean(wins))
    text = (run / "tables/reconstruction.md").read_text()
    assert "none drawn" in text and "mean training image" not in text and "Absent:" not in text


def test_the_curve_over_budgets_is_of_identification(run):
    with open(run / "tables/adaptation.csv") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["metric"] for row in rows} == {"identification", "embedding_error", "retrieval_forward", "retrieval_backward"}
    assert {(row["method"], row["trials"] == "20") for row in rows} == {(method, few) for method in ("unimind", "ridge") for few in (True, False)}


def test_the_report_has_no_section_of_pictures(run):
    page = (run / "report.html").read_text()
    assert (
        'id="pictures"' not in page
        and "#pictures" not in page
        and "reconstruct" not in re.search(r'<section class="answer">(.*?)</section>', page, re.DOTALL)[1]
    )
    files = {entry["file"] for entry in json.loads((run / "figures/captions.json").read_text())}
    assert {"adaptation_simulated.png", "scores_simulated.png", "similarity_simulated.png"} <= files
    assert not any(name.startswith(("pictures", "overview")) for name in files)


def test_pictures_and_predictions_are_not_measured_together(run, tmp_path):
    from unimind.evaluation.score import score

    paths = [run / "predictions/ridge/simulated/subj03.h5", tmp_path / "other.h5"]
    with h5py.File(paths[0]) as given, h5py.File(paths[1], "w") as other:
        other["stimulus"], other["samples"], other.attrs["method"] = given["stimulus"][:], np.zeros((10, 1, 4, 4, 3)), "other"
    stimuli, prepared = run / "prepared/simulated/stimuli.h5", run / "prepared/simulated/subj03.h5"
    networks = run / "embeddings/simulated/stimuli.h5", run / "foundations/embedding"
    with pytest.raises(InputError, match="give files of one kind"):
        score(parse_study(study()), "simulated", "subj03", paths, None, None, stimuli, prepared, *networks, None, tmp_path / "out")

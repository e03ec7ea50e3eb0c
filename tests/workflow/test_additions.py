"""The additions to studies in `config/additions/`: planned as their first lines say, and adding jobs without changing any."""

import functools
import re
from pathlib import Path

import pytest
import yaml
from workflow_clone import ROOT, Clone, jobs

ADDITIONS = sorted((ROOT / "config/additions").glob("*.yaml"))


def configfiles(addition: Path) -> list[str]:
    """The files after `--configfile` in the command of an addition's header."""
    header = "".join(line for line in addition.read_text().splitlines(keepends=True) if line.startswith("#"))
    given = re.search(r"snakemake --cores \w+ --configfile (\S+\.yaml) (\S+\.yaml)", header)
    assert given and given[2] == f"config/additions/{addition.name}"
    return list(given.groups())


@functools.cache
def plan(clone: Clone, *files: str) -> tuple[dict[str, int], set[str]]:
    """Jobs by rule, and the message of each, which names its result."""
    done = clone.snakemake("-n", "--configfile", *files, configfile=None)
    return jobs(done), set(re.findall(r"^Job \d+: (.*)$", done.stdout + done.stderr, re.MULTILINE))


@pytest.mark.parametrize("addition", ADDITIONS, ids=lambda path: path.stem)
def test_an_addition_adds_jobs_and_changes_none(bare, addition):
    study, added = configfiles(addition)
    (_, without), (_, within) = plan(bare, study), plan(bare, study, added)
    content = yaml.safe_load(addition.read_text())
    if "name" in content:  # a study of its own beside, of the same jobs
        without, within = ({re.sub(r"results/[\w-]+", "results", message) for message in messages} for messages in (without, within))
    if "name" in content or content.get("methods", {}).keys() <= yaml.safe_load((ROOT / study).read_text())["methods"].keys() and "methods" in content:
        assert len(without) > 20 and without == within
    else:
        assert len(without) > 20 and without < within


def test_ablations_are_further_methods(bare):
    study, added = "config/config.yaml", "config/additions/ablations_of_embedded.yaml"
    methods = yaml.safe_load((ROOT / study).read_text())["methods"]
    more = yaml.safe_load((ROOT / added).read_text())["methods"]
    assert not set(methods) & set(more)
    subjects = yaml.safe_load((ROOT / study).read_text())["datasets"]["simulated"]
    count = len(subjects["training_subjects"]) + len(subjects["new_subjects"])
    before, after = (plan(bare, *files)[0] for files in ((study,), (study, added)))
    assert after["reconstruct_pictures"] - before["reconstruct_pictures"] == len(more) * count and after["score_reconstructions"] == count
    assert after["align_subjects"] - before["align_subjects"] == sum(one.get("align") is not None for one in more.values())
    assert after["pretrain_encoder"] - before["pretrain_encoder"] == sum(one.get("pretrain") is not None for one in more.values())
    unchanged = [rule for rule in before if rule.startswith(("fetch", "prepare", "train", "embed"))]
    assert [after[rule] for rule in unchanged] == [before[rule] for rule in unchanged]


def test_training_subjects_are_further_baselines_of_the_comparison(bare):
    study, added = "config/macaque_v4.yaml", "config/additions/training_subjects_of_macaque_v4.yaml"
    more = yaml.safe_load((ROOT / added).read_text())["transfer"]["baselines"]
    (recordings,) = yaml.safe_load((ROOT / study).read_text())["datasets"].values()
    before, after = (plan(bare, *files)[0] for files in ((study,), (study, added)))
    grown = {rule: after[rule] - before.get(rule, 0) for rule in after if after[rule] != before.get(rule)}
    trained_on = sum(min(one["trained_on"]["subjects"], len(recordings["training_subjects"])) for one in more.values())
    assert grown == {
        "teach_closed_form": len(more), "enter_subject": trained_on, "align_subjects": len(more),
        "compare_budgets": len(more) * len(recordings["new_subjects"]),
    }  # fmt: skip

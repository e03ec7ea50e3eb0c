"""The data-set table, the thesis's studies and the documentation say what the code does."""

import csv
import re
from pathlib import Path

import pytest

from unimind.cli import main
from unimind.data.fetch import ACCESS
from unimind.data.sources import open_source
from unimind.data.sources.hcp import HcpSource
from unimind.study import parse_study, read_study, resolved

ROOT = Path(__file__).parents[2]
METHODS = {"methods": {"m": {"enter": {"kind": "ridge"}, "scope": "subject"}}, "foundations": {"diffusion": {"kind": "study"}}}


def table() -> list[dict[str, str]]:
    with open(ROOT / "config" / "datasets.tsv", newline="") as stream:
        return list(csv.DictReader(stream, delimiter="\t"))


def as_pattern(text: str) -> str:
    return re.sub(r"\\{\w+\\}", r"[^/]+", re.escape(text)) + "$"


def test_the_table_has_every_file_the_sources_ask_for(tmp_path):
    study = parse_study(
        {
            "name": "s",
            "datasets": {
                "nsd": {"source": "nsd", "training_subjects": ["subj01"]},
                "nsd-nifti": {"source": "nsd", "training_subjects": ["subj01"], "form": "nifti"},
                "god": {"source": "god", "training_subjects": ["Subject1", "Subject5"]},
                "bold5000": {"source": "bold5000", "training_subjects": ["CSI1"]},
                "laion": {"source": "laion-fmri", "training_subjects": ["sub-01", "sub-03"]},
                "mosaic": {"source": "mosaic", "training_subjects": ["sub-01_NSD"], "images": "pictures"},
            },
            "unpaired": {"source": "hcp", "subjects": ["100307"]},
            **METHODS,
        }
    )
    wanted = [("hcp", file) for file in HcpSource(study, tmp_path).files("100307")]
    for name, section in study.datasets.items():
        source = open_source(study, name, tmp_path)
        wanted += [(section.source, file) for subject in (None, *section.subjects) for file in source.files(subject)]
    rows = table()
    for source, file in wanted:
        if file.address:
            found = [row for row in rows if row["dataset"] == source and re.match(as_pattern(row["files"]), file.path)]
            assert any(re.match(as_pattern(row["address"]), file.address) for row in found), file
    assert {row["dataset"] for row in rows} == {source for source, _ in wanted}


def test_the_table_and_refusals_name_the_same_places():
    for row in table():
        for address in re.findall(r"https://\S+", row["access"]):
            assert address in ACCESS[row["dataset"]].hint


@pytest.mark.parametrize("name", ["thesis", "thesis-24gb"])
def test_the_thesis_is_a_valid_study(name, capsys):
    assert main(["check", str(ROOT / "config" / f"{name}.yaml")]) == 0
    study = read_study(ROOT / "config" / f"{name}.yaml")
    assert list(study.pairs("new")) == [("nsd", "subj07")]
    assert [subject for dataset, subject in study.pairs("train") if dataset == "nsd"] == ["subj01", "subj02", "subj05"]
    assert len([1 for dataset, _ in study.pairs("train") if dataset == "god"]) == 5
    assert len(study.unpaired.subjects) == len(set(study.unpaired.subjects)) == 100


def test_one_small_card_differs_in_what_saves_memory_alone():
    def without(content):
        if isinstance(content, dict):
            return {key: without(value) for key, value in content.items() if key not in ("precision", "accumulate", "gradient_checkpointing", "name", "title")}
        return [without(value) for value in content] if isinstance(content, list) else content

    large, small = (resolved(read_study(ROOT / "config" / f"{name}.yaml")) for name in ("thesis", "thesis-24gb"))
    assert without(large) == without(small) and large != small

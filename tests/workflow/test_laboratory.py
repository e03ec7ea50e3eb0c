"""A laboratory's BIDS betas, by the block of docs/data.md, from its files to the report."""

import re
import sys

import pandas as pd
import pytest
import yaml
from workflow_clone import ROOT, Clone, tiny

sys.path.append(str(ROOT / "tests/data"))
from laboratories import Betas

pytestmark = [pytest.mark.slow, pytest.mark.longest]


def test_from_the_documented_block_to_the_report(tmp_path):
    clone = Clone.make(tmp_path / "unimind", standin=False)
    text = re.search(r"<!-- bids betas -->\n```yaml\n(.*?)```", (ROOT / "docs/data.md").read_text(), re.DOTALL)[1]
    datasets = yaml.safe_load(text)["datasets"]
    datasets["lab"]["training_subjects"] = ["01"]
    Betas(clone.folder / "mylab").write()
    quick = tiny()
    study = {key: quick[key] for key in ("picture_size", "foundations", "evaluation")} | {"methods": {"ridge": quick["methods"]["ridge"]}}
    done = clone.snakemake(configfile=clone.study({"name": "lab", "threads": 1, "datasets": datasets} | study))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    results = clone.folder / "results/lab"
    page = (results / "report.html").read_text()
    assert "Voxels by ROI" in page and "Trials by session" in page
    scores = pd.read_csv(results / "tables/reconstruction.csv", dtype={"subject": str})
    found = scores[(scores.subject == "01") & (scores.metric == "identification")].set_index("method").value
    assert found["ridge"] > 0.6 and found["chance:ridge"] == 0.5

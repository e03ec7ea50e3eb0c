"""A machine without any network: a whole small study, every stage real, from nothing to its report."""

import csv
import os
import shutil
import subprocess
import sys

import pytest
import yaml
from test_conda import small
from workflow_clone import ROOT

# Started in a network of its own: says what it sees of the network, then becomes the command it is given.
ALONE = """
import errno, os, socket, sys
with socket.socket() as out:
    out.settimeout(5)
    print("interfaces:", *(name for _, name in socket.if_nameindex()), "outside:", errno.errorcode.get(out.connect_ex(("192.0.2.1", 443))), flush=True)
os.execv(sys.argv[1], sys.argv[1:])
"""


def why_not() -> str:
    """Why a process cannot be put into a network of its own here; empty where it can."""
    if shutil.which("unshare") is None:
        return "no `unshare` here"
    done = subprocess.run(["unshare", "--net", "true"], capture_output=True, text=True)
    return f"`unshare --net` is refused here: {done.stderr.strip()}" if done.returncode else ""


@pytest.mark.longest
def test_a_study_runs_without_a_network(tmp_path):
    if reason := why_not():
        pytest.skip(reason)
    content = small()
    content["foundations"].pop("classifier")
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    (tmp_path / "home").mkdir()
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("SNAKEMAKE", "PYTHONPATH", "HF_", "XDG_", "UNIMIND_"))}
    command = [sys.executable, "-m", "snakemake", "-s", str(ROOT / "Snakefile"), "--cores", "2", "--nocolor", "--configfile", "study.yaml"]
    done = subprocess.run(
        ["unshare", "--net", sys.executable, "-c", ALONE, *command],
        cwd=tmp_path, env=inherited | {"HOME": str(tmp_path / "home")}, capture_output=True, text=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-8000:]
    assert done.stdout.splitlines()[0] == "interfaces: lo outside: ENETUNREACH"
    results = tmp_path / "results/tiny"
    with open(results / "tables/reconstruction.csv") as stream:
        rows = list(csv.DictReader(stream))
    assert {"mse", "pixcorr", "ssim", "identification"} <= {row["metric"] for row in rows if (row["method"], row["subject"]) == ("ridge", "subj01")}
    assert "A tiny study" in (results / "report.html").read_text()

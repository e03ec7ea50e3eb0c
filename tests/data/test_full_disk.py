"""Stages on a disk that is full: one line, nothing that looks whole, and no crash of the HDF5 library."""

import json
import os
import resource
import subprocess
import sys

import pytest
from data_studies import manifest, small_study

from unimind.data.sources.simulated import simulate
from unimind.data.stimuli import stimuli
from unimind.study import resolved


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A study, its manifests, and the pictures' file."""
    folder = tmp_path_factory.mktemp("written")
    study = small_study(folder / "sim", new_subjects=[])
    (folder / "study.json").write_text(json.dumps(resolved(study)))
    manifest(folder / "sim", simulate(study, "sim"), folder / "pictures.json")
    manifest(folder / "sim", simulate(study, "sim", "subj01"), folder / "subj01.json")
    stimuli(study, "sim", None, folder / "pictures.json", folder / "stimuli.h5")
    return folder


def run(folder, stage, out, **options):
    """The command line of `stimuli` or `prepare`, in a process of its own."""
    given = ["--study", folder / "study.json", "--dataset", "sim", "--out", out]
    given += ["--fetched", folder / "pictures.json"] if stage == "stimuli" else ["--fetched", folder / "subj01.json", "--subject", "subj01"]
    given += [] if stage == "stimuli" else ["--stimuli", folder / "stimuli.h5", "--training-stimuli", folder / "stimuli.h5"]
    return subprocess.run([sys.executable, "-m", "unimind", stage, *map(str, given)], capture_output=True, text=True, **options)


def assert_refused(done, out, words):
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"unimind {done.args[3]}: {out.parent}: {words}") and "Traceback" not in done.stderr
    assert not [path for path in out.parent.iterdir() if path.is_file()]


@pytest.mark.parametrize("stage", ["stimuli", "prepare"])
@pytest.mark.parametrize("size", [4, 60])
def test_a_full_disk(written, tmp_path, stage, size):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = os.geteuid() == 0 and subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", disk], capture_output=True).returncode == 0
    if not mounted:
        pytest.skip("a small disk can only be mounted by root")
    try:
        assert_refused(run(written, stage, disk / "out.h5"), disk / "out.h5", "the disk is full; free some space and run again")
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("stage", ["stimuli", "prepare"])
def test_a_file_larger_than_allowed(written, tmp_path, stage):
    done = run(written, stage, tmp_path / "out.h5", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000)))
    assert_refused(done, tmp_path / "out.h5", "a file is larger than is allowed there; see `ulimit -f` and run again")


def test_a_folder_one_may_not_write_to(written, tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    (tmp_path / "locked").mkdir(mode=0o555)
    done = run(written, "stimuli", tmp_path / "locked" / "out.h5")
    assert done.returncode == 2 and "no permission; change its rights, or name another place" in done.stderr and "Traceback" not in done.stderr

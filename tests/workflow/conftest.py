"""Clones of the workflow to run Snakemake in."""

import pytest
from workflow_clone import Clone


@pytest.fixture(scope="session")
def bare(tmp_path_factory) -> Clone:
    """A clone in which nothing has run; not to be changed."""
    return Clone.make(tmp_path_factory.mktemp("bare") / "unimind")


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Clone:
    """A clone in which the tiny study has run; not to be changed."""
    clone = Clone.make(tmp_path_factory.mktemp("finished") / "unimind")
    done = clone.snakemake(cores=4)
    assert done.returncode == 0, done.stdout + done.stderr
    return clone


@pytest.fixture
def clone(finished, tmp_path) -> Clone:
    """A clone in which the tiny study has run, to be changed at will."""
    return finished.copy(tmp_path / "unimind")

"""Real stages killed at random moments, and started again, end with the weights of one left alone."""

import json
import math
import random
import time
from itertools import pairwise

import pytest
from apart import killed, started
from safetensors import safe_open
from safetensors.torch import load_file
from test_condition_stage import conditioned, diffusion, files_of, on_cpu, study_of  # noqa: F401 - fixtures
from tiny_training import ADAPTER, LOSSES, make_study
from torch import equal

from unimind.training import checkpoint
from unimind.training.align import align

TRAINING = {"steps": 100, "batch_size": 22, "learning_rate": 2e-3, "validate_every": 25, "checkpoint_minutes": 0}
CHECKPOINT = "model.checkpoints/checkpoint.safetensors"


def train_alignment(files, diffusion, folder):  # noqa: F811
    """All losses, MixCo, dropout of voxels, averaged weights."""
    checkpoint.SHARE = math.inf
    study = make_study(pretrain=None, enter=ADAPTER | {"dropout": 0.1}, align={"losses": LOSSES, "mixco": 0.3, "training": TRAINING | {"ema": 0.9}})
    align(study, "m", "sim", *files_of(files), None, None, folder / "model.checkpoints", folder / "model")


def train_condition(files, diffusion, folder):  # noqa: F811
    """The encoder too, in micro-batches, with dropped conditions."""
    checkpoint.SHARE = math.inf
    training = TRAINING | {"steps": 80, "batch_size": 6, "accumulate": 2}
    conditioned(study_of(training, drop=0.2), files, diffusion, folder / "model")


def wait_for_checkpoint(process, folder, since):
    while not (file := folder / CHECKPOINT).exists() or file.stat().st_mtime < since:
        assert process.is_alive(), "ended before its checkpoint"
        time.sleep(0.001)


def saved_step(folder):
    with safe_open(folder / CHECKPOINT, "pt") as stored:
        return json.loads(stored.metadata()["state"])["step"]


@pytest.mark.slow
@pytest.mark.parametrize("train", [train_alignment, train_condition])
def test_a_stage_killed_at_ten_random_moments_ends_with_the_same_weights(files, diffusion, tmp_path, train):  # noqa: F811
    """Ten lives, each of at least one checkpoint; every step saves one, so some moments are in the midst of saving."""
    whole, disturbed = tmp_path / "whole", tmp_path / "disturbed"
    alone = started(train, files, diffusion, whole)
    wait_for_checkpoint(alone, whole, 0.0)
    begun = time.monotonic()
    alone.join()
    seconds = time.monotonic() - begun
    assert alone.exitcode == 0
    moments, steps = random.Random(0), [0]
    for _ in range(10):
        process, birth = started(train, files, diffusion, disturbed), time.time()
        wait_for_checkpoint(process, disturbed, birth)
        time.sleep(moments.uniform(0, seconds / 15))
        process.kill()
        assert killed(process)
        steps.append(saved_step(disturbed))
    assert all(one < other for one, other in pairwise(steps))  # every life went on from the one before
    assert not (disturbed / "model").exists()
    last = started(train, files, diffusion, disturbed)
    last.join()
    assert last.exitcode == 0
    one, other = (load_file(folder / "model" / "model.safetensors") for folder in (whole, disturbed))
    assert one.keys() == other.keys() and all(equal(one[name], other[name]) for name in one)
    assert (whole / "model" / "losses.csv").read_text() == (disturbed / "model" / "losses.csv").read_text()

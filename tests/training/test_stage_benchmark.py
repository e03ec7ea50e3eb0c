"""`benchmarks/stages.py`: the real stages for a few steps, at a size for a CPU; counts by hand, and memory that can be added up."""

import json
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import stages
from unimind.foundations.diffusion import adaptable_names, build_unet
from unimind.foundations.ldm import convert_unet
from unimind.models.vit import ViTTrunk
from unimind.study import Training, parse_study, read_study, resolved

KEYS = Path(os.environ.get("UNIMIND_REAL_DATA", "")) / "reference" / "ldm" / "cin256.keys.json"
FACTOR, BATCH = 64, 4
CONVMIXER, MINDVIS, UNIMIND = "thesis-convmixer", "mindvis", "unimind"


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch):
    monkeypatch.setenv("UNIMIND_DEVICE", "cpu")


@pytest.fixture(scope="module")
def study():
    content = resolved(read_study(Path(__file__).parents[2] / "config/thesis.yaml"))
    content["methods"][MINDVIS]["body"] |= {"depth": 1, "decoder_depth": 1}
    return stages.resized(parse_study(content), FACTOR, BATCH, "fp32")


@pytest.fixture(scope="module")
def folder(study, tmp_path_factory):
    place = tmp_path_factory.mktemp("stages")
    stages.write_files(place, study, "nsd", FACTOR, 2, list(stages.STAGES), [CONVMIXER, MINDVIS, UNIMIND])
    return place


def unet_counts(factor):
    """Parameters of the UNet, and of its part that is trained."""
    with torch.device("meta"):
        unet = build_unet(stages.unet_config(factor))
    own = set(adaptable_names(unet))
    return sum(p.numel() for p in unet.parameters()), sum(p.numel() for name, p in unet.named_parameters() if name in own)


def test_the_unet_is_the_one_of_the_checkpoint():
    assert round(unet_counts(1)[0] / 1e6, 1) == 400.9
    if not KEYS.exists():
        pytest.skip("reference/ldm is absent (UNIMIND_REAL_DATA)")
    state = {key: torch.empty(shape, device="meta") for key, shape in json.loads(KEYS.read_text()).items()}
    assert convert_unet(state)[1] == stages.UNET


def test_every_stage_of_a_method_takes_steps(study, folder):
    """Parameters by hand: width 8, 16 patches of 16 voxels, embedding of 512, three repeats as channels."""
    rows = {stage: stages.row(study, CONVMIXER, stage, "nsd", folder, False) for stage in stages.STAGES}
    for stage, line in rows.items():
        assert not line["failed"], stage
        assert line["batch"] == BATCH and line["precision"] == "fp32" and line["micro_batches"] == 1
        assert line["samples_per_second"] == pytest.approx(BATCH / line["seconds"]) and line["seconds"] > 0
    mixing = (3 * 8 + 8) + 2 * 8 + (8 * 8 + 8) + 2 * 8
    stem, position = 16 * 8 + 8, 8 * 16
    assert rows["pretrain"]["parameters"] == stem + position + 4 * mixing + 8 + 8 * mixing + (8 * 16 + 1)
    trunk = 3 * 16 * 8 + 8 + position + 4 * mixing
    components = min(512, stages.TRAINED - 1)  # of the embedding, of so many pictures
    head = 8 * components + components
    encoder, subject = trunk + head, 16 + (8 * 8 + 8) + (8 * 3 + 3)
    assert rows["align"]["parameters"] == rows["align"]["trained"] == encoder + subject
    low_rank = [(8, 48), *[(8, 8)] * 4, (components, 8)]
    updates = sum(min(8, *shape) * sum(shape) for shape in low_rank)
    assert rows["adapt"]["trained"] == updates and rows["adapt"]["parameters"] == encoder + updates
    whole, changed = unet_counts(FACTOR)
    frozen = whole - changed + encoder + subject  # the classifier of the alignment gives the subject token
    assert rows["condition"]["parameters"] - rows["condition"]["trained"] == frozen
    assert rows["condition"]["trained"] > changed


def test_a_body_on_signals_takes_steps(study, folder):
    """Stages that read no voxel."""
    for stage in ("align", "condition"):
        line = stages.row(study, UNIMIND, stage, "nsd", folder, False)
        assert not line["failed"] and line["samples_per_second"] > 0, line["failed"]


def test_what_fails_is_a_row(study, folder, monkeypatch):
    content = resolved(study)
    content["methods"][MINDVIS]["pretrain"]["training"] |= {"precision": "fp16"}
    line = stages.row(parse_study(content), MINDVIS, "pretrain", "nsd", folder, False)
    assert "fp16 needs a GPU" in line["failed"] and line["seconds"] is None and line["memory"] is None

    def full(*arguments, **named):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as changed:
        changed.setattr(ViTTrunk, "reconstruct", full)
        line = stages.row(study, MINDVIS, "pretrain", "nsd", folder, False)
    assert line["failed"] == "out of memory"
    assert "| out of memory |" in stages.markdown([line])


def test_estimated_memory_adds_up(tmp_path):
    """A linear map of a million weights: weights, gradients and two moments, to which a fused step adds nothing; with validation also the best weights."""
    network = nn.Linear(1000, 1000, bias=False)
    weights = 4 * 1000**2
    for validate, copies in ((None, 4), (lambda module: {"x": 1.0}, 5)):
        watch = stages.Watch(True)
        with pytest.raises(stages.Enough):
            watch.train(
                network, draw=lambda step: {"x": torch.zeros(2, 1000)}, losses=lambda module, batch: {"x": module(batch["x"]).square().mean()},
                validate=validate, settings=Training(steps=9, batch_size=2), seed=0, checkpoints=tmp_path, fingerprint="", label="x", n_samples=9,
            )  # fmt: skip
        assert copies * weights <= watch.found["memory"] < (copies + 0.1) * weights


def test_recomputed_activations_and_bf16_need_less(study, folder):
    """Of MinD-Vis's ViT, whose masks, norms and attention the estimate answers for; the order of sizes, not their value."""
    content = resolved(study)
    training = content["methods"][MINDVIS]["pretrain"]["training"]
    found = {}
    for precision, recomputed in (("fp32", False), ("bf16", False), ("bf16", True)):
        training |= {"precision": precision, "gradient_checkpointing": recomputed}
        line = stages.row(parse_study(content), MINDVIS, "pretrain", "nsd", folder, True)
        found[precision, recomputed] = line["memory"]
        assert line["seconds"] is None and not line["failed"]
    assert found["fp32", False] > found["bf16", False] > found["bf16", True]


def test_the_table(study):
    """One row, measured as the command line does: in a process of its own."""
    rows = stages.measured(
        study, "nsd", device="cpu", precisions=["bf16"], factor=1, stages=["pretrain", "adapt"], methods=[MINDVIS], batch=None, estimate=False
    )  # fmt: skip
    assert [(line["method"], line["stage"], line["precision"]) for line in rows] == [("MinD-Vis", "pretrain", "bf16")]
    assert rows[0]["memory"] > 0
    head, _, line = stages.markdown(rows).splitlines()
    columns = [cell.strip() for cell in head.strip("|").split("|")]
    assert columns == [
        "method", "stage", "precision", "samples a step", "micro-batches", "recomputed", "parameters", "trained", "seconds a step", "drawing in turn",
        "samples a second", "seconds of drawing a batch", "waiting for it", "card busy", "memory of a step", "before the first step", "",
    ]  # fmt: skip
    assert [cell.strip() for cell in line.strip("|").split("|")][:6] == ["MinD-Vis", "pretrain", "bf16", str(BATCH), "1", "no"]

"""The training loop: exact resume, refusal of foreign checkpoints, equality over micro-batches and processes, failures in words."""

import json
import math
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
import torch
from apart import killed, started
from safetensors.torch import load_file
from tiny_training import ADAPTER, make_study
from torch import nn

from unimind import study
from unimind.device import on_device
from unimind.errors import InputError
from unimind.evaluation import networks
from unimind.foundations.embed import embed
from unimind.training import checkpoint, loop, measuring
from unimind.training.batches import drawn_ahead, moved, packed

INPUTS = torch.randn(50, 8, generator=loop.generator("inputs"))
TARGETS = INPUTS @ torch.randn(8, 3, generator=loop.generator("weights"))


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch):
    monkeypatch.setenv("UNIMIND_DEVICE", "cpu")


def network(norm=True, dropout=0.2):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16) if norm else nn.LayerNorm(16), nn.GELU(), nn.Dropout(dropout), nn.Linear(16, 3))


def draw(step):
    index = loop.drawn(50, 8, step, "batches")
    return {"x": INPUTS[index], "y": TARGETS[index], "index": index}


def losses(module, batch):
    return {"mse": (module(batch["x"]) - batch["y"]).square().mean(), "size": 0.01 * module[0].weight.square().mean()}


def validate(module):
    return {"mse": (module(INPUTS) - TARGETS).square().mean().item()}


def run(module, folder, on_step=None, validate=validate, **changes):
    settings = study.Training(**{"steps": 40, "batch_size": 8, "validate_every": 5, "ema": 0.9, "learning_rate": 1e-2} | changes)
    return loop.train(
        module, draw=draw, losses=losses, settings=settings, seed=0, checkpoints=folder, fingerprint="one", label="test", n_samples=50,
        validate=validate, on_step=on_step,
    )  # fmt: skip


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_training_learns(tmp_path):
    module = network()
    before = validate(module.eval())["mse"]
    trained = run(module, tmp_path)
    assert validate(module)["mse"] < before
    assert validate(module)["mse"] == pytest.approx(trained.validation["mse"])  # the module holds the weights that were best
    best = min((value, step) for step, split, term, value in trained.losses if split == "validation")
    assert trained.best_step == best[1]
    assert {term for _, split, term, _ in trained.losses if split == "train"} == {"mse", "size", "total"}


def run_until(folder, last, board=None):
    """A run that dies of SIGKILL after a step."""
    if board is not None:
        os.environ["UNIMIND_TENSORBOARD"] = str(board)

    def on_step(step):
        if step == last:
            time.sleep(0 if board is None else 1)  # for TensorBoard's writer, which has a thread of its own
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoint.SHARE = math.inf
    run(network(), folder, on_step, checkpoint_minutes=0)


def test_killed_at_random_moments_ends_with_the_same_weights(tmp_path):
    """Real SIGKILLs, with EMA, BatchNorm and dropout."""
    undisturbed = network()
    expected = run(undisturbed, tmp_path / "whole")
    for kill in sorted(random.Random(3).sample(range(1, 40), 5)):
        assert killed(started(run_until, tmp_path / "killed", kill))
    resumed = network()
    trained = run(resumed, tmp_path / "killed")
    assert same(resumed, undisturbed)
    assert trained.losses == expected.losses
    assert trained.best_step == expected.best_step


@pytest.mark.parametrize("validated", [False, True])
def test_averaged_weights_are_their_formula(tmp_path, validated):
    """e <- d e + (1 - d) w after every step, d = min(ema, (1 + step) / (10 + step)), from the weights before training; validated and kept."""
    module, weights, seen = network(norm=False), [], []
    weights.append(module[4].weight.detach().clone())

    def watched(module):
        seen.append(module[4].weight.detach().clone())
        return {"value": -len(seen)}

    def on_step(step):
        weights.append(module[4].weight.detach().clone())

    run(module, tmp_path, on_step, watched if validated else None, ema=0.5, steps=12, validate_every=12)
    average = weights[0].double()
    for step, weight in enumerate(weights[1:]):
        decay = min(0.5, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * weight.double()
    assert not torch.allclose(average.float(), weights[-1], rtol=1e-3)
    torch.testing.assert_close(module[4].weight, average.float(), rtol=1e-5, atol=1e-6)
    if validated:
        torch.testing.assert_close(seen, [weights[0], average.float()], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("minutes", "cost", "expected"), [(1, 0.0, [60, 120, 180]), (1, 3.0, [100, 200, 300]), (0.5, 0.3, [30, 60, 90])])
def test_checkpoints_are_written_by_the_clock_and_take_a_share_of_the_time(tmp_path, monkeypatch, minutes, cost, expected):
    """A step a second, for five minutes; writing takes `cost` seconds."""
    now, written = [0.0], []

    def save(*given):
        written.append(round(now[0]))
        now[0] += cost
        (tmp_path / "checkpoint.safetensors").touch()

    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(checkpoint, "save_file", save)
    file = checkpoint.Checkpoint(tmp_path, "", minutes, "")
    file.write({}, {})
    while now[0] < 310:
        now[0] += 1
        if file.due:
            file.write({}, {})
    assert written[0] == 0 and written[1 : 1 + len(expected)] == pytest.approx(expected, abs=cost * len(expected) + 1)
    assert cost * len(written) <= 0.04 * now[0]


def test_validations_take_a_tenth_of_the_work_between_first_and_last(tmp_path):
    """50 rows validated against 8 trained a step, forwards and backwards: every 50 / (0.1 * 2 * 8) = 31.25 steps at most."""
    for every, expected in ((5, {0, 32, 64, 96, 100}), (45, {0, 45, 90, 100})):
        trained = run(network(), tmp_path / str(every), validate_every=every, steps=100)
        assert {step for step, split, *_ in trained.losses if split == "validation"} == expected


def test_seeds_depend_on_no_label(tmp_path):
    modules = [network(), network()]
    for label, module in zip("ab", modules, strict=True):
        loop.train(
            module, draw=draw, losses=losses, settings=study.Training(steps=4, batch_size=8), seed=0, checkpoints=tmp_path / label, fingerprint="x",
            label=label, n_samples=50,
        )  # fmt: skip
    assert same(*modules)


def test_batches_are_drawn_ahead_in_order_once_and_their_errors_come_in_time():
    drawn_steps, caller = [], threading.get_ident()

    def draw(step):
        assert threading.get_ident() != caller
        drawn_steps.append(step)
        if step == 7:
            raise InputError("step 7")
        return step * 10

    with drawn_ahead(draw, range(3, 20)) as batch:
        for step in range(3, 7):
            assert batch(step) == step * 10
            time.sleep(0.01)
            assert max(drawn_steps) <= step + 2  # no more than two ahead
        with pytest.raises(InputError, match="step 7"):
            batch(7)
    assert drawn_steps == sorted(set(drawn_steps))


def test_rows_of_unequal_lengths_travel_together_and_arrive_in_their_order():
    rows = [torch.full((1, length), float(number)) for number, length in enumerate((5, 3, 5, 4, 3))]
    part = {"responses": rows, "subject": list("abcde"), "index": torch.arange(5)}
    sent = packed(part, pinned=False)
    assert [len(stack) for stack in sent["responses"].stacks] == [2, 2, 1]
    arrived = moved(sent, torch.device("cpu"))
    assert arrived["subject"] == part["subject"] and torch.equal(arrived["index"], part["index"])
    assert all(torch.equal(one, other) for one, other in zip(arrived["responses"], rows, strict=True))


def test_a_signal_writes_a_checkpoint_at_the_next_step(tmp_path):
    undisturbed = network()
    run(undisturbed, tmp_path / "whole", validate=None)
    with pytest.raises(KeyboardInterrupt):
        run(network(), tmp_path / "stopped", lambda step: step == 9 and os.kill(os.getpid(), signal.SIGTERM), validate=None)
    assert int(load_file(tmp_path / "stopped" / "checkpoint.safetensors")["optimizer.step.0.weight"]) == 9
    resumed = network()
    run(resumed, tmp_path / "stopped", validate=None)
    assert same(resumed, undisturbed)


def test_a_checkpoint_of_another_configuration_is_not_used(tmp_path, capsys):
    expected = network()
    run(expected, tmp_path / "whole")
    loop.train(
        network(),
        draw=draw,
        losses=losses,
        settings=study.Training(steps=7, batch_size=8),
        seed=0,
        checkpoints=tmp_path / "c",
        fingerprint="other",
        label="test",
        n_samples=50,
    )
    module = network()
    run(module, tmp_path / "c")
    assert "training starts anew" in capsys.readouterr().err
    assert same(module, expected)


def test_a_broken_checkpoint_is_not_used(tmp_path, capsys):
    (tmp_path / "checkpoint.safetensors").write_bytes(b"half a file")
    run(network(), tmp_path)
    assert "cannot be read" in capsys.readouterr().err


def test_fingerprint_changes_with_settings_data_and_not_with_place(tmp_path):
    for name, content in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / name).write_bytes(content)
    marks = [
        loop.fingerprint(make_study(**changes), [tmp_path / name], "unimind.training.loop")
        for changes, name in (({}, "a"), ({}, "b"), ({}, "c"), ({"enter": ADAPTER | {"size": 64}}, "a"))
    ]
    assert marks[0] == marks[1] and len(set(marks)) == 3


def test_micro_batches_change_nothing(tmp_path):
    whole, shared = network(norm=False, dropout=0.0), network(norm=False, dropout=0.0)
    one, other = run(whole, tmp_path / "1"), run(shared, tmp_path / "2", accumulate=4)
    for (*_, a), (*_, b) in zip(one.losses, other.losses, strict=True):
        assert a == pytest.approx(b, rel=1e-4)


def test_two_processes_give_the_loss_curve_of_one(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(
        textwrap.dedent(f"""
        import json, pathlib, sys
        sys.path[:0] = {[str(folder) for folder in Path(__file__).parents[:2]]!r}
        import test_loop
        trained = test_loop.run(test_loop.network(norm=False, dropout=0.0), pathlib.Path({str(tmp_path / "shared")!r}))
        from accelerate import PartialState
        if PartialState().is_main_process:
            json.dump([PartialState().num_processes, trained.losses], open({str(tmp_path / "losses.json")!r}, "w"))
        """)
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(loop.__file__).parents[2])}
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=1", "--nproc-per-node=2"]  # what `accelerate launch` starts on GPUs
    command += ["--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "--local-addr=127.0.0.1"]
    done = subprocess.run([*command, str(script)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    processes, rows = json.loads((tmp_path / "losses.json").read_text())
    assert processes == 2
    alone = run(network(norm=False, dropout=0.0), tmp_path / "alone")
    for (*_, a), (*_, b) in zip(rows, alone.losses, strict=True):
        assert a == pytest.approx(b, rel=1e-4)


def test_epochs_draw_every_sample_once_and_in_a_new_order():
    batches = [loop.drawn(10, 4, step, "seed") for step in range(5)]
    epochs = torch.cat(batches).split(10)
    assert all(sorted(epoch.tolist()) == list(range(10)) for epoch in epochs)
    assert epochs[0].tolist() != epochs[1].tolist()
    assert torch.equal(loop.drawn(10, 4, 3, "seed"), batches[3])
    assert not torch.equal(loop.drawn(10, 4, 3, "other"), batches[3])


def test_a_loss_that_is_not_finite_names_step_term_and_samples(tmp_path):
    def broken(module, batch):
        terms = losses(module, batch)
        return terms | {"size": terms["size"] * (float("nan") if 17 in batch["index"] else 1)}

    bad = next(step for step in range(40) if 17 in draw(step)["index"])
    with pytest.raises(InputError, match=rf"'size' is nan in step {bad}, samples .*17"):
        loop.train(
            network(), draw=draw, losses=broken, settings=study.Training(steps=40), seed=0, checkpoints=tmp_path, fingerprint="x", label="test", n_samples=50
        )


@pytest.mark.parametrize(("bad", "step"), [(0, 0), (2, 10)])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_validation_that_is_not_finite_names_step_and_term(tmp_path, bad, step, value):
    values = [1.0] * bad + [value]
    with pytest.raises(InputError, match=f"test: the validation's 'other' is {value} in step {step}"):
        run(network(), tmp_path, validate=lambda module: {"mse": 1.0, "other": values.pop(0)})


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8000000000000 bytes"),
        MemoryError(),
    ],
    ids=["torch", "cublas", "cudnn", "cpu", "python"],
)
@pytest.mark.parametrize("where", ["in a step", "on the way to the device"])
def test_out_of_memory_says_what_to_lower(tmp_path, monkeypatch, error, where):
    def fails(*given):
        raise error

    module, when = network(), "in step 0"
    if where != "in a step":
        monkeypatch.setattr(module, "to", fails)
        when = "before the first step"
    with pytest.raises(InputError, match=f"out of memory on cpu {when}; lower training.batch_size"):
        loop.train(module, draw=draw, losses=fails, settings=study.Training(steps=4), seed=0, checkpoints=tmp_path, fingerprint="x", label="test", n_samples=50)


def test_other_errors_stay_what_they_are(tmp_path):
    def broken(module, batch):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied (8x8 and 9x16)")

    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        loop.train(
            network(), draw=draw, losses=broken, settings=study.Training(steps=4), seed=0, checkpoints=tmp_path, fingerprint="x", label="test", n_samples=50
        )


def test_a_network_that_cannot_recompute_is_refused_in_words(tmp_path):
    with pytest.raises(InputError, match="gradient_checkpointing: true given, but this network cannot"):
        run(network(), tmp_path, gradient_checkpointing=True)


def test_rows_that_are_compared_are_not_shared_out(tmp_path):
    settings = study.Training(steps=4, batch_size=8, accumulate=2)
    with pytest.raises(InputError, match=r"compare the rows of a batch .* 1 processes x training.accumulate 2"):
        loop.train(
            network(), draw=draw, losses=losses, settings=settings, seed=0, checkpoints=tmp_path, fingerprint="x", label="test", n_samples=50,
            compares_rows=True,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("given", "words"), [("gpu", "expected cpu, cuda or"), ("cuda:x", "expected cpu, cuda or"), ("cuda", "no GPU here"), ("cuda:2", "no GPU here")]
)
def test_a_device_that_is_not_there_is_refused_in_words(monkeypatch, tmp_path, given, words):
    monkeypatch.setenv("UNIMIND_DEVICE", given)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for call in (on_device, networks.device, lambda: run(network(), tmp_path), lambda: embed(*[None] * 5)):
        with pytest.raises(InputError, match=words):
            call()


def test_one_of_several_gpus_can_be_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for given, device in (("cuda:1", "cuda:1"), ("CUDA", "cuda"), ("cpu", "cpu"), ("", "cuda")):
        monkeypatch.setenv("UNIMIND_DEVICE", given)
        assert on_device() == torch.device(device)
    monkeypatch.setenv("UNIMIND_DEVICE", "cuda:2")
    with pytest.raises(InputError, match="there are 2 GPUs here, counted from cuda:0"):
        on_device()


def test_processes_under_a_scheduler_have_a_gpu_each(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("LOCAL_RANK", "1")
    for given, device in (("", "cuda:1"), ("cuda", "cuda:1"), ("cpu", "cpu")):
        monkeypatch.setenv("UNIMIND_DEVICE", given)
        assert on_device() == torch.device(device)
    for given, rank, words in (("cuda:1", "0", "each of several processes has a GPU of its own"), ("", "2", "processes: more than the 2 GPUs here")):
        monkeypatch.setenv("UNIMIND_DEVICE", given)
        monkeypatch.setenv("LOCAL_RANK", rank)
        with pytest.raises(InputError, match=words):
            on_device()


def test_losses_in_tensorboard_are_those_of_the_table(tmp_path, monkeypatch):
    """Read back by TensorBoard itself, after a run killed beyond its checkpoint."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setenv("UNIMIND_TENSORBOARD", str(tmp_path / "board"))
    assert killed(started(run_until, tmp_path / "c", 16, tmp_path / "board"))
    trained = run(network(), tmp_path / "c")
    (folder,) = (tmp_path / "board").iterdir()
    read = accumulator.EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    shown = {(event.step, tag): event.value for tag in read.Tags()["scalars"] for event in read.Scalars(tag)}
    assert len(shown) == sum(len(read.Scalars(tag)) for tag in read.Tags()["scalars"])
    assert shown == {(step, f"{split}/{term}"): pytest.approx(value) for step, split, term, value in trained.losses}


def test_tensorboard_asked_for_and_not_installed_is_refused_in_words(tmp_path, monkeypatch):
    monkeypatch.setenv("UNIMIND_TENSORBOARD", str(tmp_path / "board"))
    monkeypatch.setattr(measuring.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="TensorBoard is not installed"):
        run(network(), tmp_path / "c")


@pytest.mark.parametrize("precision", ["fp16", "tf32"])
def test_a_precision_without_a_gpu_is_refused_in_words(tmp_path, precision):
    with pytest.raises(InputError, match=f"training.precision: {precision} needs a GPU"):
        run(network(), tmp_path, precision=precision)


def test_early_stopping_keeps_the_best_weights(tmp_path):
    values = iter([3.0, 1.0, 2.0, 2.5, 0.1])
    kept = []

    def scripted(module):
        kept.append(module[0].weight.detach().clone())
        return {"value": next(values)}

    module = network()
    trained = run(module, tmp_path, validate=scripted, patience=2)
    assert (trained.steps, trained.best_step, trained.validation) == (15, 5, {"value": 1.0})
    assert torch.equal(module[0].weight, kept[1])


def test_only_named_parameters_are_trained(tmp_path):
    module, before = network(norm=False), network(norm=False)
    loop.train(
        module, draw=draw, losses=losses, settings=study.Training(steps=5), seed=0, checkpoints=tmp_path, fingerprint="x", label="test", n_samples=50,
        trainable=["4.weight"],
    )  # fmt: skip
    changed = {name for name, tensor in module.state_dict().items() if not torch.equal(tensor, before.state_dict()[name])}
    assert changed == {"4.weight"}


def test_flops_per_sample_is_the_hand_count(tmp_path):
    trained = run(network(), tmp_path)
    assert trained.efficiency["flops_per_sample"] == 2 * (8 * 16 + 16 * 3)
    assert trained.efficiency["parameters"] == sum(p.numel() for p in network().parameters())


class Mixed(nn.Module):
    """An input layer for each of two subjects, and a product that costs the same for any batch."""

    def __init__(self):
        super().__init__()
        self.enter = nn.ModuleDict({"a": nn.Linear(8, 4), "b": nn.Linear(5, 4)})
        self.up, self.down = nn.Parameter(torch.randn(4, 2)), nn.Parameter(torch.randn(2, 4))

    def forward(self, responses, subject):
        rows = torch.stack([self.enter[name](row[None])[0] for name, row in zip(subject, responses, strict=True)])
        return rows @ (self.up @ self.down)


@pytest.mark.parametrize(("compares_rows", "accumulate"), [(False, 1), (False, 2), (True, 1)])
def test_flops_of_rows_of_several_subjects_are_the_hand_count_from_few_rows(tmp_path, compares_rows, accumulate):
    subjects, counted = ["a"] * 5 + ["b"] * 3, []

    def losses(module, batch):
        if not torch.is_grad_enabled():
            counted.append(len(batch["responses"]))
        return {"size": module(batch["responses"], batch["subject"]).square().mean()}

    trained = loop.train(
        Mixed(), draw=lambda step: {"responses": [torch.ones(8 if name == "a" else 5) for name in subjects], "subject": subjects}, losses=losses,
        settings=study.Training(steps=1, batch_size=8, accumulate=accumulate), seed=0, checkpoints=tmp_path, fingerprint="x", label="test", n_samples=8,
        compares_rows=compares_rows,
    )  # fmt: skip
    of_rows, of_any_batch = 5 * 2 * 8 * 4 + 3 * 2 * 5 * 4 + 8 * 2 * 4 * 4, 2 * 4 * 2 * 4
    assert trained.efficiency["flops_per_sample"] == (of_rows + accumulate * of_any_batch) / 8
    assert max(counted) == (8 if compares_rows else 2)


def test_schedule_rises_then_falls_to_zero():
    factors = [loop._schedule(step, 100, 0.1) for step in range(101)]
    assert factors[9] == factors[10] == 1.0 and factors[0] == pytest.approx(0.1)
    assert all(a >= b for a, b in zip(factors[10:], factors[11:], strict=False)) and factors[100] == pytest.approx(0, abs=1e-12)


def test_write_model_writes_all_four_files_and_removes_the_checkpoints(tmp_path):
    module = network()
    trained = run(module, tmp_path / "checkpoints")
    loop.write_model(tmp_path / "model", module.state_dict(), {"kind": "test"}, trained, tmp_path / "checkpoints")
    assert {path.name for path in (tmp_path / "model").iterdir()} == {"model.safetensors", "config.json", "losses.csv", "efficiency.json"}
    assert (tmp_path / "model" / "losses.csv").read_text().startswith("step,split,term,value\n0,validation,mse,")
    assert not (tmp_path / "checkpoints").exists()

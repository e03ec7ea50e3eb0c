"""The training loop: exact resume, refusal of foreign checkpoints, equality over micro-batches and processes, failures in words."""

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from unimind import study
from unimind.errors import InputError
from unimind.training import loop

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
    settings = study.Training(**{"steps": 40, "batch_size": 8, "checkpoint_every": 6, "validate_every": 5, "ema": 0.9, "learning_rate": 1e-2} | changes)
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


def test_killed_at_random_moments_ends_with_the_same_weights(tmp_path):
    """Real SIGKILLs in forked processes, with EMA, BatchNorm and dropout."""
    undisturbed = network()
    expected = run(undisturbed, tmp_path / "whole")
    for kill in sorted(random.Random(3).sample(range(1, 40), 5)):
        child = os.fork()
        if child == 0:
            run(network(), tmp_path / "killed", lambda step, kill=kill: step == kill and os.kill(os.getpid(), signal.SIGKILL))
            os._exit(1)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    resumed = network()
    trained = run(resumed, tmp_path / "killed")
    assert same(resumed, undisturbed)
    assert trained.losses == expected.losses
    assert trained.best_step == expected.best_step


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
        loop.fingerprint(settings, [tmp_path / name], "unimind.training.loop")
        for settings, name in (({"x": 1}, "a"), ({"x": 1}, "b"), ({"x": 1}, "c"), ({"x": 2}, "a"))
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
        sys.path.insert(0, {str(os.path.dirname(__file__))!r})
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


def test_out_of_memory_says_what_to_lower(tmp_path):
    def hungry(module, batch):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(InputError, match="lower training.batch_size"):
        loop.train(
            network(), draw=draw, losses=hungry, settings=study.Training(steps=4), seed=0, checkpoints=tmp_path, fingerprint="x", label="test", n_samples=50
        )


def test_fp16_without_a_gpu_is_refused_in_words(tmp_path):
    with pytest.raises(InputError, match="fp16 needs a GPU"):
        run(network(), tmp_path, precision="fp16")


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

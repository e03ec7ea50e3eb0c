"""How fast the machine at hand is: what `unimind plan` needs to say how long a study would take here, measured in under a minute."""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch.nn.functional import mse_loss

from unimind.device import choose_precision, device_name, on_device
from unimind.models.bodies import TRUNKS
from unimind.models.ridge import fit_ridge
from unimind.progress import say
from unimind.report import work
from unimind.report.cost import KERNELS, Machine
from unimind.study import ViT

#: Seconds that one network is run for at least, after a first step that does not count, and the steps of it.
SECONDS, STEPS = 2.0, 2
#: Samples of a step: as many as keep a card busy, and on a processor as few as do not change its speed.
ON_CARD, ON_PROCESSOR = 32, 1
#: A transformer of the thesis's width over 256 tokens; a UNet of two of cin256-v2's levels; ridge regression (pictures, voxels, coordinates, folds).
BODY, SIGNAL = ViT(kind="vit", width=1024, depth=2, heads=16, mlp_ratio=1.0, patch=16), 4096
LEVELS, SIDE, CONTEXT, TOKENS = (192, 384), 32, 512, 77
RIDGE, PENALTIES = (600, 1500, 256, 3), (1.0, 100.0)
#: Layers of a network that has nothing to do.
LAYERS = 64


def calibrate(precisions: Iterable[str], threads: int) -> Machine:
    """Operations a second that networks reach here, and the seconds of a kernel that has nothing to do.

    Networks: training steps of a transformer and a UNet's evaluations, by what `report.work` counts of them. In fp64: ridge regression.
    A processor knows neither TF32 nor fp16.

    Parameters
    ----------
    precisions : iterable of str
        fp64, fp32, tf32, bf16, fp16: those wanted.
    threads : int
        Of a processor; its own number where that is fewer.
    """
    device, before = on_device(), torch.get_num_threads()
    where = device_name(device)
    torch.set_num_threads(min(threads, before))
    here = torch.get_num_threads()
    say(f"calibrating: {where}")
    rates = {}
    try:
        for precision in sorted(set(precisions)):
            if precision == "fp64":
                rates[precision] = _rate([_ridge(device)], device)
            elif device.type != "cpu" or precision in ("fp32", "bf16"):
                rates[precision] = _rate(_networks(device, precision), device)
        launch = _seconds(_idle(device), device) / (LAYERS * KERNELS)
    finally:
        torch.set_num_threads(before)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    return Machine(rates, launch, where if device.type == "cuda" else f"{where}, {here} thread{'s' if here > 1 else ''}")


def _rate(parts: Iterable[tuple[float, Callable[[], object]]], device: torch.device) -> float:
    """Operations a second of some work, given by its operations and a function that does it."""
    measured = [(operations, _seconds(step, device)) for operations, step in parts]
    return sum(operations for operations, _ in measured) / sum(seconds for _, seconds in measured)


def _seconds(step: Callable[[], object], device: torch.device) -> float:
    """Of one step, in the mean."""
    _run(step, device)
    count, begun = 0, time.perf_counter()
    while count < STEPS or time.perf_counter() - begun < SECONDS:
        _run(step, device)
        count += 1
    return (time.perf_counter() - begun) / count


def _run(step: Callable[[], object], device: torch.device) -> None:
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _networks(device: torch.device, precision: str) -> Iterator[tuple[float, Callable[[], object]]]:
    """Training steps of a transformer, and a UNet's evaluations: operations of each, and a function that does it."""
    from diffusers import UNet2DConditionModel

    dtype, samples = choose_precision(precision, device, "calibration"), ON_CARD if device.type == "cuda" else ON_PROCESSOR
    half = torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None)
    trunk = TRUNKS["vit"](1, SIGNAL, decoder=False, **BODY.model_dump(exclude={"kind"})).to(device)
    optimiser, signal = torch.optim.AdamW(trunk.parameters()), torch.randn(samples, 1, SIGNAL, device=device)

    def train() -> None:
        with half:
            found = trunk(signal)
        mse_loss(found.float(), torch.zeros_like(found, dtype=torch.float32)).backward()
        optimiser.step()
        optimiser.zero_grad()

    yield 3 * samples * work.vit(1, SIGNAL, BODY).flops, train
    shape = work.UNet(LEVELS, (0, 1), CONTEXT)
    unet: Any = UNet2DConditionModel(
        sample_size=SIDE, in_channels=shape.inputs, out_channels=shape.outputs, block_out_channels=LEVELS, cross_attention_dim=CONTEXT,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    unet = unet.to(device).eval()
    given = (torch.randn(samples, shape.inputs, SIDE, SIDE, device=device), torch.ones(samples, device=device))
    context = torch.randn(samples, TOKENS, CONTEXT, device=device)

    @torch.no_grad()
    def evaluate() -> None:
        with half:
            unet(*given, context)

    yield samples * shape.work(SIDE, TOKENS).flops, evaluate


def _ridge(device: torch.device) -> tuple[float, Callable[[], object]]:
    (n, voxels, targets, folds), random = RIDGE, np.random.default_rng(0)
    inputs, wanted = random.standard_normal((n, voxels), np.float32), random.standard_normal((n, targets), np.float32)
    return work.ridge(n, voxels, targets, len(PENALTIES), folds), lambda: fit_ridge(inputs, wanted, PENALTIES, folds, device=device)


def _idle(device: torch.device) -> Callable[[], object]:
    """Layers that have next to nothing to do."""
    layers = [torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.GELU(), torch.nn.LayerNorm(8)) for _ in range(LAYERS)]
    network, signal = torch.nn.Sequential(*layers).to(device).requires_grad_(False), torch.randn(1, 8, device=device)
    return lambda: network(signal)

"""A check for a graphics card: does it compute what a processor computes, how long does everything take, and is the card kept busy?

    python benchmarks/card.py                                         # on a card: at thesis size, at most 8 minutes
    python benchmarks/card.py --device cpu --shrink 16 --batch 2      # the same on a processor, at a reduced size

It needs the project and the wheels that `make install` brings (torch, torchvision, diffusers, transformers, accelerate, timm, open_clip_torch,
lpips, safetensors, h5py, numpy, scikit-learn, pydantic, pandas); no data and no weights: every network has random ones. Where an image has all
but the field's own, these are to be carried: annotated-types, diffusers, ftfy, importlib-metadata, lpips, open_clip_torch, pydantic,
pydantic-core, typing-inspection, wcwidth, and httpx and requests with what they need. The training stages are
those of `benchmarks/stages.py` on config/thesis.yaml. Each part runs in a process of its own; what the time does not suffice for is named.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import stages
import torch
from apart import taken

from unimind.device import on_device
from unimind.progress import say
from unimind.study import Study, read_study, resolved

#: Training stages, one method for each body and each way to train: what is worth most first.
TRAINED = (
    ("thesis-vit", "align"), ("mindvis", "condition"), ("unimind", "align"), ("unimind", "condition"), ("thesis-convmixer", "align"),
    ("thesis-vit", "pretrain"), ("thesis-vit", "adapt"), ("thesis-vit", "condition"), ("thesis-convmixer", "pretrain"),
)  # fmt: skip
#: Largest difference from the processor, as a share of the largest value, in single precision.
TOLERANCE = 1e-3
#: Pictures drawn at once, the sampler's steps; pairs of pictures measured; pictures, coordinates and features of closed forms.
DRAWN, STEPS, PAIRS = 16, 20, 200
TRIALS, COORDINATES, FEATURES = 9018, 640, 128
STUDY = Path(__file__).resolve().parents[1] / "config/thesis.yaml"

Row = dict[str, Any]


def timed(work: Callable[[], Any], device: torch.device) -> Row:
    """Seconds and memory of a call, after one that allocates, and how busy it keeps a card."""
    work()
    busy = stages.Busy(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    begun = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - begun
    memory = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else taken()["peak"]
    if device.type == "cuda":
        busy.start()
        work()
    return {"seconds": seconds, "memory": memory, "busy": busy.stop() if device.type == "cuda" else None}


# --- the parts: each a function of the factor that sizes are divided by, giving rows ------------------------------


def equality(factor: float, precision: str) -> Iterator[Row]:
    """Small inputs on the processor and on the device: values and gradients of every body, a UNet's samples, closed forms, a measuring network."""
    from unimind.models.encoder import Encoder
    from unimind.models.prior import EncodingPrior, Recorded
    from unimind.models.ridge import fit_ridge
    from unimind.models.space import PictureSpace

    device, cpu = on_device(), torch.device("cpu")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    bodies: dict[str, Row] = {
        "mlp": {"width": 64, "depth": 2, "dropout": 0.0},
        "convmixer": {"width": 64, "depth": 2, "patch": 8, "kernel": 3, "decoder_depth": 1},
        "vit": {"width": 64, "depth": 2, "heads": 4, "mlp_ratio": 1.0, "patch": 8, "decoder_width": 32, "decoder_depth": 1},
    }
    space = PictureSpace(32, (4, 8, 8), {"embedding": 16, "latent": 8})
    signal = torch.randn(6, 1, 300, generator=torch.Generator().manual_seed(0))

    def gradients(kind: str, where: torch.device) -> torch.Tensor:
        torch.manual_seed(0)
        enter = {"kind": "interpolate", "size": 256, "dropout": 0.0, "order": "stored", "repeats": "mean"}
        encoder = Encoder(enter, {"kind": kind} | bodies[kind], space, ("embedding", "latent"), {})
        for parameter in encoder.parameters():  # what starts from zero would hide the rest
            torch.nn.init.normal_(parameter, std=0.1)
        encoder.to(where)
        found = encoder(signal.to(where), "subject").coordinates
        sum(part.square().mean() for part in found.values()).backward()  # type: ignore[union-attr]
        grown = [parameter.grad.flatten() for parameter in encoder.parameters() if parameter.grad is not None]
        return torch.cat([*(part.detach().flatten() for part in found.values()), *grown])

    def regression(where: torch.device) -> torch.Tensor:
        random = np.random.default_rng(0)
        x, y = random.standard_normal((80, 200), np.float32), random.standard_normal((80, 9), np.float32)
        return torch.from_numpy(fit_ridge(x, y, [0.1, 10.0, 1e3], 4, device=where).weight)

    def prior(where: torch.device) -> torch.Tensor:
        random = np.random.default_rng(0)
        design, moments = random.standard_normal((300, 12)), (random.standard_normal((12, 9)), random.standard_normal(9))
        one, other = (Recorded(design, random.standard_normal((300, 400), np.float32), device=where) for _ in range(2))
        return torch.from_numpy(EncodingPrior.learned([one], 12).decoder(other, random.standard_normal((300, 9)), moments).weight)

    checks: dict[str, Callable[[torch.device], torch.Tensor]] = {
        **{f"{name}: values and gradients": partial(gradients, name) for name in bodies},
        "ridge regression": regression,
        "prior over voxels, and what it decodes": prior,
        "sampling, 4 steps": lambda where: drawn(24, where, "fp32", 2, 4)(),
        "AlexNet, SSIM, LPIPS": lambda where: panel_values(where, 4),
    }
    for name, check in checks.items():
        here, there = check(cpu).double(), check(device).cpu().double()
        apart = float((here - there).abs().max() / here.abs().max())
        yield {"what": f"equal to the processor: {name}", "precision": "fp32", "apart": apart, "failed": "" if apart < TOLERANCE else f"apart by {apart:.1e}"}


def drawn(factor: float, device: torch.device, precision: str, count: int, steps: int) -> Callable[[], torch.Tensor]:
    """Sampling with a UNet of cin256's shape divided by `factor`: a function that draws latents."""
    from unimind.foundations.diffusion import Conditioning, Diffusion
    from unimind.foundations.generators.samplers import sample
    from unimind.foundations.ldm import SCHEDULER
    from unimind.study import Sampling

    torch.manual_seed(0)
    config = stages.unet_config(factor)
    shape = (config["in_channels"], config["sample_size"], config["sample_size"])
    model = Diffusion("random", config, SCHEDULER, shape, None).eval().requires_grad_(False)
    condition = Conditioning(torch.randn(count, 77, model.context_dim).to(device), torch.randn(count, model.time_dim).to(device))
    model = model.to(device)
    sampling = Sampling(sampler="dpm-solver++", steps=steps, guidance=1.0, samples=1, precision=precision)
    return lambda: sample(model, condition, model.null(), sampling, [(0, k, 0) for k in range(count)])


def sampling(factor: float, precision: str) -> Iterator[Row]:
    count = max(1, round(DRAWN / factor))
    yield {"what": f"sampling: {count} latents, DPM-Solver++ in {STEPS} steps"} | timed(drawn(factor, on_device(), precision, count, STEPS), on_device())


def closed_forms(factor: float, precision: str) -> Iterator[Row]:
    from unimind.models.prior import EncodingPrior, Recorded
    from unimind.models.ridge import fit_ridge

    random, (n, voxels) = np.random.default_rng(0), (stages.shrunk(size, factor) for size in (TRIALS, stages.NSD["subj01"]))
    x, y = random.standard_normal((n, voxels), np.float32), random.standard_normal((n, stages.shrunk(COORDINATES, factor)), np.float32)
    alphas = [float(10**k) for k in range(-1, 7)]
    yield {"what": f"ridge regression: {n} pictures x {voxels} voxels, {len(alphas)} penalties, 5 folds", "precision": "fp64"} | timed(
        lambda: fit_ridge(x, y, alphas, 5), on_device()
    )
    design = random.standard_normal((n, FEATURES))
    moments = (random.standard_normal((FEATURES, y.shape[1])), np.asarray(random.standard_normal(y.shape[1])))
    own = Recorded(design, x)
    yield {"what": f"prior over voxels, learned of {voxels}", "precision": "fp64"} | timed(lambda: EncodingPrior.learned([own], FEATURES), on_device())
    prior = EncodingPrior.learned([own], FEATURES, iterations=1)
    yield {"what": f"decoder by the prior: {n} pictures x {voxels} voxels", "precision": "fp64"} | timed(
        lambda: prior.decoder(Recorded(design, x), y, moments), on_device()
    )


def panel_values(device: torch.device, pairs: int) -> torch.Tensor:
    """AlexNet's and the low-level measures of some pairs of pictures, on a device."""
    import functools
    from unittest.mock import patch

    import panel

    from unimind.evaluation import networks
    from unimind.evaluation.panel import Panel, measure
    from unimind.evaluation.pictures import PictureSet

    rows = {name: row | {"sha256": ""} for name, row in networks.manifest().items()}
    wanted = ["ssim", "pixcorr", "lpips", "effnet", "swav"]
    with (
        tempfile.TemporaryDirectory() as folder, patch.object(networks, "manifest", functools.cache(lambda: rows)),
        patch.dict(os.environ, {"UNIMIND_DEVICE": str(device)}),
    ):  # fmt: skip
        panel.write_weights(Path(folder), ["alexnet", "effnet", "swav"])
        truths, others = (PictureSet(panel.pictures(pairs, 64, seed)) for seed in (0, 1))
        found = measure(Panel.of(wanted, folder, None), truths, others, {"x": np.arange(pairs)})["x"]
    return torch.from_numpy(np.concatenate([np.asarray(found[name]) for name in wanted]))


def measuring(factor: float, precision: str) -> Iterator[Row]:
    import panel

    pairs = max(4, round(PAIRS / factor))
    with tempfile.TemporaryDirectory() as folder:
        groups = [name for name in panel.GROUPS if name != "clip"]
        panel.write_weights(Path(folder), groups)
        yield {"what": f"the panel's networks but CLIP: {pairs} pairs of pictures of 256 pixels"} | timed(
            lambda: panel.ours(Path(folder), groups, pairs, 256, 1, 64), on_device()
        )


PARTS = {"equality": equality, "sampling": sampling, "closed-forms": closed_forms, "panel": measuring}


# --- all of it ----------------------------------------------------------------------------------------------------


class Clock:
    """The time there is: parts are not begun after it, and ended with it."""

    def __init__(self, minutes: float) -> None:
        self.end = time.monotonic() + 60 * minutes

    @property
    def left(self) -> float:
        return self.end - time.monotonic()


def part(name: str, given: argparse.Namespace, precision: str, device: str, clock: Clock) -> list[Row]:
    """Rows of a part, measured in a process of its own."""
    known = {"what": name, "precision": precision}
    if clock.left < 5:
        return [known | {"failed": "not begun: the time was up"}]
    call = [sys.executable, __file__, "--part", name, "--precision", precision, "--shrink", str(given.shrink)]
    try:
        done = subprocess.run(call, env=os.environ | {"UNIMIND_DEVICE": device}, capture_output=True, text=True, timeout=clock.left)
    except subprocess.TimeoutExpired:
        return [known | {"failed": "not ended: the time was up"}]
    if done.returncode:
        return [known | {"failed": done.stderr.strip().splitlines()[-1][:200]}]
    return [known | row for row in json.loads(done.stdout.splitlines()[-1])]


def training(study: Study, given: argparse.Namespace, precisions: list[str], device: str, clock: Clock) -> list[Row]:
    """Rows of the training stages, by `stages`."""
    rows, dataset = [], next(iter(study.datasets))
    with tempfile.TemporaryDirectory() as place:
        own = stages.resized(study, given.shrink, given.batch, None)
        held_out = stages.FEW if device == "cpu" else stages.HELD_OUT
        stages.write_files(Path(place), own, dataset, given.shrink, held_out, list(stages.STAGES), list(dict.fromkeys(name for name, _ in TRAINED)))
        for precision in precisions:
            changed = stages.resized(study, given.shrink, given.batch, precision)
            for method, stage in TRAINED:
                batch = getattr(changed.methods[method], stage).training.batch_size
                known = {"what": f"{stage}: {method}, a step of {batch}", "precision": precision}
                order = {"study": resolved(changed), "method": method, "stage": stage, "dataset": dataset, "folder": place, "estimate": False}
                if clock.left < 5:
                    rows.append(known | {"failed": "not begun: the time was up"})
                    continue
                say(f"card: {known['what']}, {precision}")
                try:
                    rows.append(stages.in_own_process(order, device, clock.left) | known)
                except subprocess.TimeoutExpired:
                    rows.append(known | {"failed": "not ended: the time was up"})
                except RuntimeError as error:
                    rows.append(known | {"failed": str(error).strip().splitlines()[-1][:200]})
    return rows


def markdown(rows: list[Row]) -> str:
    """The rows as a Markdown table."""
    columns: dict[str, tuple[str, Callable[[Any], str]]] = {
        "what": ("", str), "precision": ("precision", str), "seconds": ("seconds", "{:.3g}".format), "memory": ("memory [GB]", lambda n: f"{n / 1e9:.2f}"),
        "busy": ("card busy", "{:.0%}".format), "apart": ("largest difference", "{:.1e}".format), "failed": ("", str),
    }  # fmt: skip
    lines = ["| " + " | ".join(title for title, _ in columns.values()) + " |", "|" + "---|" * len(columns)]
    for row in rows:
        lines.append("| " + " | ".join("-" if row.get(key) is None else show(row[key]) for key, (_, show) in columns.items()) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], help="by default a GPU where there is one")
    parser.add_argument("--shrink", type=float, default=1.0, help="divides sizes, for a processor")
    parser.add_argument("--batch", type=int, help="samples of a training step, instead of the study's")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--part", choices=list(PARTS), help=argparse.SUPPRESS)
    parser.add_argument("--precision", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part:
        torch.manual_seed(0)
        print("\n" + json.dumps(list(PARTS[given.part](given.shrink, given.precision))))
        return
    if given.device:
        os.environ["UNIMIND_DEVICE"] = given.device
    clock, device = Clock(given.minutes), str(on_device())
    precisions = ["fp32", "bf16"] if device == "cpu" else ["fp32", "bf16", "tf32"]
    rows = []
    for name in PARTS:
        for precision in precisions if name == "sampling" else ["fp32"]:
            say(f"card: {name}, {precision}")
            rows += part(name, given, precision, device, clock)
    rows += training(read_study(STUDY), given, precisions, device, clock)
    where = torch.cuda.get_device_name(device) if device.startswith("cuda") else "no card: a processor"
    size = "at thesis size" if given.shrink == 1 else f"sizes divided by {given.shrink:g}"
    print(f"{where}, {size}; torch {torch.__version__}, {given.minutes - clock.left / 60:.1f} minutes\n\n{markdown(rows)}")
    if failed := [row["what"] for row in rows if row.get("failed")]:
        sys.exit(f"card: failed or not measured: {', '.join(failed)}")


if __name__ == "__main__":
    main()

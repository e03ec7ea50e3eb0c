"""Stage `benchmark`: what the light model saves against the transformer, whole models, measured in one run on this machine."""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from unimind import study
from unimind.device import on_device
from unimind.errors import InputError
from unimind.models.bodies import TRUNKS
from unimind.models.condition import ConditionStage
from unimind.models.encoder import Encoder
from unimind.models.space import COMPONENTS, PictureSpace
from unimind.progress import say
from unimind.storage import whole_file
from unimind.training.loop import count_flops
from unimind.training.objectives.masked import MaskedModelling, draw_masks

#: NSD's subject 1 (nsdgeneral), to which the thesis brings every subject.
VOXELS = 15724
#: Steps timed after the first one, which allocates.
STEPS = 3
ENCODERS: dict[str, study.ConvMixer | study.ViT] = {
    "ConvMixer": study.ConvMixer(kind="convmixer", width=512, depth=4, decoder_depth=8),
    "ViT (MinD-Vis)": study.ViT(kind="vit"),
}
OBJECTIVE = "masked modelling, forward + backward + AdamW"
#: MinD-Vis's image embedding (CLIP ViT-B/32) and autoencoder latent, and what its latent diffusion model takes: 77 tokens of 512, a time embedding of 768.
EMBEDDING, LATENT, TOKENS, CONTEXT, TIME = 512, (3, 64, 64), 77, 512, 768
REFERENCE = "ViT (MinD-Vis)"
#: Column -> whether less is better.
COMPARED = {"parameters": True, "flops_per_sample": True, "memory": True, "samples_per_second": False}


def benchmark(voxels: str | None = None, batches: str | None = None, device: str | None = None, precision: str | None = None, out: Path | None = None) -> None:
    """Print a Markdown table of parameters, FLOPs, memory and speed for ConvMixer and MinD-Vis's ViT, and write it as CSV.

    Parameters and FLOPs are of the whole model that turns voxels into what the generator takes: encoder with head, condition
    stage. Memory and speed are of one training step of masked modelling (forward, backward, AdamW) of its trunk on random
    voxels; models and batch sizes alternate, each measured in a process of its own so that one's peak memory is not the
    other's. The columns "times better" set a model against MinD-Vis's; above 1 the model is smaller, cheaper or faster.

    Parameters
    ----------
    voxels : str, optional
        Number of voxels; by default 15 724, rounded up to whole patches.
    batches : str, optional
        Batch sizes, comma-separated; by default 1,2,4 on a CPU and 1,8,32,128 on a GPU.
    device : str, optional
        `cpu` or `cuda`; by default `UNIMIND_DEVICE`, else a GPU where there is one.
    precision : str, optional
        fp32 (default) or bf16.
    out : Path, optional
        CSV file.

    Raises
    ------
    InputError
        An argument is not of that form, or the device is absent.
    """
    place = _device(device)
    count = _numbers("voxels", voxels or str(VOXELS))
    if len(count) != 1:
        raise InputError(f"--voxels: {voxels!r} given; expected one whole number")
    sizes = _numbers("batches", batches or ("1,8,32,128" if place.type == "cuda" else "1,2,4"))
    precision = precision or "fp32"
    if precision not in ("fp32", "bf16"):
        raise InputError(f"--precision: {precision!r} given; expected fp32 or bf16")
    rows = []
    for size in sizes:
        for name in ENCODERS:
            say(f"benchmark: {name}, batch {size}, {precision} on {place}")
            rows.append(_in_own_process(name, count[0], size, str(place), precision))
    table = against_reference(pd.DataFrame(rows))
    where = torch.cuda.get_device_name(place) if place.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{count[0]} voxels, {precision}, {where}; {OBJECTIVE}; times better: than {REFERENCE} at the same batch size, above 1 where better\n")
    print(table.to_markdown(index=False, floatfmt=".4g"))
    if out is not None:
        with whole_file(out) as temporary:
            table.assign(voxels=count[0], precision=precision, device=where).to_csv(temporary, index=False)


def measure_encoder(
    name: str, voxels: int, batch: int, device: torch.device, precision: str, encoder: study.ConvMixer | study.ViT | None = None
) -> dict[str, Any]:
    """One line of the table.

    Parameters
    ----------
    name : str
        A key of `ENCODERS`.
    voxels, batch : int
    device : torch.device
    precision : str
    encoder : study.ConvMixer or study.ViT, optional
        Measured instead of `ENCODERS[name]`.

    Returns
    -------
    dict
        `encoder`, `batch`, `parameters` and `flops_per_sample` of the whole model (forward pass, nothing hidden), `parameters_pretrained` (trunk with
        pretraining's decoder), `memory` (bytes: peak of the GPU, or growth of the process's peak on a CPU), `samples_per_second`, or `failed`: out of memory.
    """
    torch.manual_seed(0)
    settings = (encoder or ENCODERS[name]).model_dump()
    kind = settings.pop("kind")
    size = -(-voxels // settings["patch"]) * settings["patch"]
    parameters, flops = whole_model(kind, settings, size, voxels, device)
    before = _memory(device)
    trunk = TRUNKS[kind](1, size, decoder=True, **settings).to(device)
    signal = torch.randn(batch, 1, size, device=device)
    pretrained = sum(parameter.numel() for parameter in trunk.parameters())
    line = {"encoder": name, "batch": batch, "parameters": parameters, "flops_per_sample": flops, "parameters_pretrained": pretrained}
    optimizer = torch.optim.AdamW(trunk.parameters(), lr=1e-4)
    masks = draw_masks(batch, trunk.n_patches, 0.75, torch.Generator().manual_seed(0)).to(device)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            loss = MaskedModelling()(trunk, signal, masks)
        loss.backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    try:
        step()
        begun = time.perf_counter()
        for _ in range(STEPS):
            step()
        speed = STEPS * batch / (time.perf_counter() - begun)
    except (torch.OutOfMemoryError, MemoryError):
        return {**line, "memory": None, "samples_per_second": None, "failed": "out of memory"}
    return {**line, "memory": _memory(device) - before, "samples_per_second": speed, "failed": ""}


def whole_model(kind: str, settings: dict[str, Any], size: int, voxels: int, device: torch.device) -> tuple[int, float]:
    """Parameters, and FLOPs of a forward pass, of voxels interpolated to `size`, body, heads and condition stage."""
    enter, body = {"kind": "interpolate", "size": size, "dropout": 0.0}, {"kind": kind, **settings}
    encoder = Encoder(enter, body, PictureSpace(EMBEDDING, LATENT, COMPONENTS), tuple(COMPONENTS), {}).to(device).eval()
    response = torch.randn(1, 1, voxels, device=device)
    with torch.no_grad():
        tokens = encoder(response, "anybody").tokens
    stage = ConditionStage(encoder.width, tokens.shape[1], encoder.width, CONTEXT, TOKENS, TIME).to(device).eval()

    def forward() -> None:
        found = encoder(response, "anybody")
        stage(found.tokens, found.pooled)

    with torch.no_grad():
        flops = count_flops(forward)
    return sum(parameter.numel() for part in (encoder, stage) for parameter in part.parameters()), flops


def against_reference(table: pd.DataFrame) -> pd.DataFrame:
    """The table with a column `times better: <quantity>` for every quantity: how many times better than `REFERENCE` at the same batch size."""
    base = table[table.encoder == REFERENCE].set_index("batch")
    for column, less in COMPARED.items():
        if column in table and column in base:
            own, reference = table[column].astype(float), table.batch.map(base[column].astype(float))
            table[f"times better: {column}"] = reference / own if less else own / reference
    return table


def _memory(device: torch.device) -> int:
    """Peak so far in bytes."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _in_own_process(name: str, voxels: int, batch: int, device: str, precision: str) -> dict[str, Any]:
    call = "import json, sys, torch; from unimind.training.benchmark import measure_encoder; n, v, b, d, p = sys.argv[1:]; "
    call += "print(json.dumps(measure_encoder(n, int(v), int(b), torch.device(d), p)))"
    done = subprocess.run([sys.executable, "-c", call, name, str(voxels), str(batch), device, precision], capture_output=True, text=True)
    if done.returncode:
        if done.returncode == -9:  # the operating system's own answer to too little memory
            return {"encoder": name, "batch": batch, "failed": "out of memory"}
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def _device(device: str | None) -> torch.device:
    if device not in (None, "cpu", "cuda"):
        raise InputError(f"--device: {device!r} given; expected cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device: cuda given, but torch finds no GPU here; run `unimind doctor`, or give --device cpu")
    return on_device(device)


def _numbers(name: str, given: str) -> list[int]:
    parts = given.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise InputError(f"--{name}: {given!r} given; expected whole numbers above 0, such as 1,8,32")
    return [int(part) for part in parts]

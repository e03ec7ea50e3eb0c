"""Stage `reconstruct-controls`: what a decoder draws without a brain, and the best it could draw with a perfect one."""

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unimind.data.hdf5 import NewFile
from unimind.data.prepared import Stimuli
from unimind.device import on_device
from unimind.foundations import load_autoencoder, load_diffusion, load_embedding
from unimind.reconstruction.agreement import best_sample
from unimind.reconstruction.draw import draw, kept_blocks, to_bytes
from unimind.reconstruction.tested import pictures_tested
from unimind.storage import whole_file
from unimind.study import Study
from unimind.training.checkpoint import fingerprint


def controls(study: Study, stimuli: Path, prepared: list[Path], embeddings: Path, diffusion: Path, autoencoder: Path, embedding: Path, out: Path) -> None:
    """For every picture that may be tested on (`pictures_tested`): an unconditional sample, the autoencoder's round trip, and -
    where the UNet takes image embeddings - of as many samples as the study's first method draws, all from the true
    embedding, the one that agrees best with it.

    Rows of the tables that the study cannot have stand, with the reason, in the file's attribute `absent` (JSON).
    """
    device, batch = on_device(), study.evaluation.batch_size
    network, coder = load_diffusion(diffusion).to(device), load_autoencoder(autoencoder).to(device)
    sampling = next(iter(study.methods.values())).sampling
    count = sampling.samples
    order = pictures_tested(stimuli, prepared)
    embedder = load_embedding(embedding).to(device)
    with h5py.File(embeddings) as targets:
        network.take_latents(targets["latent"].shape[1:], str(embeddings))
        vectors, mean = targets["embedding"][order], mean_of_others(targets["embedding"], order)
    absent: dict[str, str] = {}
    if network.conditioner is None:
        absent["embedding-ceiling"] = f"{network.name} takes no image embedding"
    plain = sampling.model_copy(update={"guidance": 1.0, "samples": 1, "strength": 1.0})
    with torch.no_grad():
        null = network.null()

    def block(rows: NDArray[np.int64]) -> dict[str, NDArray]:
        with Stimuli(stimuli) as seen, torch.no_grad():
            images = torch.from_numpy(seen.read(order[rows])).permute(0, 3, 1, 2).to(device).float() / 255
            found = {"autoencoder_ceiling": to_bytes(coder.decode(coder.encode(images)))}
        keys = [(study.seed, int(image), k) for image in order[rows] for k in range(count)]
        found["unconditional"] = draw(network, coder, null.expand(len(rows)), null, plain, keys[::count])
        if network.conditioner is not None:
            wanted = torch.from_numpy(vectors[rows]).to(device)
            with torch.no_grad():
                condition = network.conditioner(wanted).repeat(count)
            drawn = draw(network, coder, condition, null, sampling, keys)
            shown = best_sample(embedder, drawn, wanted, mean.to(device), batch) if count > 1 else 0
            found["embedding_ceiling"] = drawn[count * np.arange(len(rows)) + shown]
        return found

    folder = out.with_name(f".{out.name}.partial")
    with Stimuli(stimuli) as seen:
        pixels = seen.sha256[order].tolist()
    mark = fingerprint(study, [embeddings, diffusion, autoencoder, embedding], __name__, batch, order.tolist(), pixels)
    label = f"controls of {len(order)} pictures, {count} samples from each true embedding"
    blocks = kept_blocks(folder, mark, len(order), max(1, batch // count), block, label)
    with whole_file(out) as temporary, NewFile(temporary) as file:
        file["stimulus"] = order
        for place, content in blocks:
            for name, values in content.items():
                if name not in file:
                    file.create_dataset(name, (len(order), *values.shape[1:]), np.uint8, compression="lzf", chunks=(1, *values.shape[1:]))
                file[name][place] = values
            file.check()
        file.attrs.update(
            {
                "diffusion": network.name,
                "autoencoder": coder.name,
                "embedding": embedder.name,
                "sampler": sampling.sampler,
                "steps": sampling.steps,
                "samples": sampling.samples,
                "absent": json.dumps(absent),
            }
        )
    shutil.rmtree(folder, ignore_errors=True)


def mean_of_others(values: h5py.Dataset, without: NDArray[np.int64], at_once: int = 4096) -> Tensor:
    """Mean (d,) of all rows (n, d) but some, read in blocks."""
    total, kept = np.zeros(values.shape[1:], np.float64), np.ones(len(values), bool)
    kept[without] = False
    for start in range(0, len(values), at_once):
        total += values[start : start + at_once][kept[start : start + at_once]].sum(0, dtype=np.float64)
    return torch.from_numpy((total / max(kept.sum(), 1)).astype(np.float32))

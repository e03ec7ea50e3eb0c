"""Stage `reconstruct-controls`: what a decoder draws without a brain, and the best it could draw with a perfect one."""

import json
from pathlib import Path

import h5py
import numpy as np
import torch

from unimind.data.hdf5 import NewFile
from unimind.data.prepared import Stimuli
from unimind.device import on_device
from unimind.foundations import load_autoencoder, load_diffusion, load_embedding
from unimind.reconstruction.agreement import best_sample
from unimind.reconstruction.reconstruct import draw_pictures
from unimind.reconstruction.tested import pictures_tested
from unimind.storage import whole_file
from unimind.study import Sampling, Study


def controls(study: Study, stimuli: Path, prepared: list[Path], embeddings: Path, diffusion: Path, autoencoder: Path, embedding: Path, out: Path) -> None:
    """For every picture that may be tested on (`pictures_tested`): an unconditional sample, the autoencoder's round trip, and -
    where the UNet takes image embeddings - of as many samples as the study's first method draws, all from the true
    embedding, the one that agrees best with it.

    Rows of the tables that the study cannot have stand, with the reason, in the file's attribute `absent` (JSON).
    """
    device, batch = on_device(), study.evaluation.batch_size
    network, coder = load_diffusion(diffusion).to(device), load_autoencoder(autoencoder).to(device)
    sampling = next(iter(study.methods.values())).sampling
    order = pictures_tested(stimuli, prepared)
    with Stimuli(stimuli) as seen:
        truths = seen.read(order)
    embedder = load_embedding(embedding).to(device)
    with h5py.File(embeddings) as targets:
        known = targets["embedding"][:]
        network.take_latents(targets["latent"].shape[1:], str(embeddings))
    vectors, training = (torch.from_numpy(values).to(device) for values in (known[order], np.delete(known, order, 0)))
    pictures, rounded = {}, []
    absent: dict[str, str] = {}
    for first in range(0, len(truths), batch):
        images = torch.from_numpy(truths[first : first + batch]).permute(0, 3, 1, 2).to(device).float() / 255
        with torch.no_grad():
            rounded.append(coder.decode(coder.encode(images)).clamp(0, 1).mul(255).round().byte().permute(0, 2, 3, 1).cpu().numpy())
    pictures["autoencoder_ceiling"] = np.concatenate(rounded)
    plain = Sampling(sampler=sampling.sampler, steps=sampling.steps, guidance=1.0, samples=1)
    with torch.no_grad():
        null = network.null()
        condition = None if network.conditioner is None else network.conditioner(vectors)
    if condition is not None:
        count = sampling.samples
        keys = [(study.seed, int(image), k) for image in order for k in range(count)]
        drawn = draw_pictures(network, coder, condition.repeat(count), null, sampling, keys, batch, f"{len(keys)} pictures from the true embedding")
        shown = best_sample(embedder, drawn, vectors, training.mean(0), batch) if count > 1 else 0
        pictures["embedding_ceiling"] = drawn[count * np.arange(len(order)) + shown]
    else:
        absent["embedding-ceiling"] = f"{network.name} takes no image embedding"
    keys = [(study.seed, int(image), 0) for image in order]
    pictures["unconditional"] = draw_pictures(network, coder, null.expand(len(order)), null, plain, keys, batch, "unconditional pictures")
    with whole_file(out) as temporary, NewFile(temporary) as file:
        file["stimulus"] = order
        for name, values in pictures.items():
            file.create_dataset(name, data=values, compression="lzf", chunks=(1, *values.shape[1:]))
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

"""Stage `embed`: image embeddings and autoencoder latents of a stimulus file, once for all methods."""

from pathlib import Path

import h5py
import numpy as np
import torch

from unimind.data.hdf5 import NewFile
from unimind.device import on_device
from unimind.foundations import load_autoencoder, load_embedding
from unimind.progress import track
from unimind.storage import file_hash, whole_file
from unimind.study import Study

#: Pictures per pass on a CPU: full-size maps then stay in its caches.
AT_ONCE = 16


def embed(study: Study, stimuli: Path, embedding: Path, autoencoder: Path, out: Path) -> None:
    """Write `embedding` (n, d) and `latent` (n, c, h, w), float32, in the order of the stimuli; pictures are streamed."""
    device = on_device()
    embedder, coder = load_embedding(embedding).to(device), load_autoencoder(autoencoder).to(device)
    size = study.evaluation.batch_size if device.type == "cuda" else min(study.evaluation.batch_size, AT_ONCE)
    with h5py.File(stimuli) as source, whole_file(out) as temporary, NewFile(temporary) as target:
        images = source["images"]
        for start in track(range(0, len(images), size), f"embedding {len(images)} pictures", total=-(-len(images) // size)):
            batch = torch.from_numpy(images[start : start + size]).permute(0, 3, 1, 2).to(device).float() / 255
            with torch.no_grad():
                vectors, latents = embedder.encode(batch).float().cpu().numpy(), coder.encode(batch).float().cpu().numpy()
            if start == 0:
                target.create_dataset("embedding", (len(images), vectors.shape[1]), np.float32)
                target.create_dataset("latent", (len(images), *latents.shape[1:]), np.float32, chunks=(1, *latents.shape[1:]))
            target["embedding"][start : start + len(vectors)] = vectors
            target["latent"][start : start + len(latents)] = latents
            target.check()
        target.attrs["embedding_network"] = embedder.name
        target.attrs["embedding_sha256"] = file_hash(embedding / "model.safetensors")
        target.attrs["autoencoder_network"] = coder.name
        target.attrs["autoencoder_sha256"] = file_hash(autoencoder / "model.safetensors")

"""Stage `embed`: the targets of a stimulus file (`foundations.targets`), once for all methods."""

from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from unimind.data.hdf5 import NewFile
from unimind.device import on_device
from unimind.errors import InputError
from unimind.foundations import load_autoencoder, load_embedding
from unimind.progress import track
from unimind.storage import file_hash, whole_file
from unimind.study import Study

#: Pictures per pass on a CPU: full-size maps then stay in its caches.
AT_ONCE = 16


def embed(study: Study, stimuli: Path, embedding: Path, autoencoder: Path | None, out: Path) -> None:
    """Write the targets of all pictures, in the order of the stimuli; pictures are streamed.

    These are `embedding` (n, d) and, where there is an autoencoder, `latent` (n, c, h, w), both float32; `norm` (n,) where the embedding
    has a length of its own, and `tokens` (n, tokens, width) where the study's generator takes them, in half precision.
    """
    device = on_device()
    embedder = load_embedding(embedding).to(device)
    coder = None if autoencoder is None else load_autoencoder(autoencoder).to(device)
    size = study.evaluation.batch_size if device.type == "cuda" else min(study.evaluation.batch_size, AT_ONCE)
    with h5py.File(stimuli) as source, whole_file(out) as temporary, NewFile(temporary) as target:
        images = source["images"]
        for start in track(range(0, len(images), size), f"embedding {len(images)} pictures", total=-(-len(images) // size)):
            batch = torch.from_numpy(images[start : start + size]).permute(0, 3, 1, 2).to(device).float() / 255
            with torch.no_grad():
                found = targets_of(batch, embedder, study.foundations.target == "tokens")
                found |= {} if coder is None else {"latent": coder.encode(batch)}
            for name, values in found.items():
                stored = values.to(torch.float16 if name == "tokens" else torch.float32).cpu().numpy()
                if not np.isfinite(stored).all():
                    network, last = autoencoder if name == "latent" else embedding, start + len(batch) - 1
                    raise InputError(f"{network}: {name} of pictures {start} to {last} of {stimuli} is no finite {stored.dtype}; are its weights whole?")
                if start == 0:
                    chunks = (1, *stored.shape[1:]) if stored.ndim > 2 else None
                    target.create_dataset(name, (len(images), *stored.shape[1:]), stored.dtype, chunks=chunks)
                target[name][start : start + len(stored)] = stored
            target.check()
        for role, network, directory in (("embedding", embedder, embedding), ("autoencoder", coder, autoencoder)):
            if network is not None and directory is not None:
                target.attrs[f"{role}_network"], target.attrs[f"{role}_sha256"] = network.name, file_hash(directory / "model.safetensors")


def targets_of(images: Tensor, embedder, tokens: bool = False) -> dict[str, Tensor]:
    """What an image embedding gives for pictures (n, 3, H, W) in [0, 1]: `embedding`, and, where it has them, `norm` and `tokens`."""
    if not hasattr(embedder, "raw"):
        return {"embedding": embedder.encode(images)}
    raw, *more = embedder.raw_and_tokens(images) if tokens else (embedder.raw(images),)
    return {"embedding": functional.normalize(raw, dim=-1), "norm": raw.norm(dim=-1), **dict(zip(["tokens"], more, strict=False))}

"""Stage `reconstruct-controls`: what a decoder draws without a brain, and the best it could draw with a perfect one."""

import json
from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unimind.blocks import Blocks, Work
from unimind.data.hdf5 import NewFile
from unimind.data.prepared import Stimuli
from unimind.data.shapes import shapes
from unimind.device import on_device
from unimind.foundations import load_autoencoder, load_embedding
from unimind.foundations.generators import as_bytes
from unimind.foundations.generators.latent import AutoencoderGenerator, UNetGenerator
from unimind.foundations.targets import Targets
from unimind.reconstruction.agreement import as_images, best_sample
from unimind.reconstruction.draw import drawing_protocol, generator_for, inputs_of_pictures, true_inputs
from unimind.reconstruction.tested import pictures_tested
from unimind.storage import whole_file
from unimind.study import Study
from unimind.training.checkpoint import fingerprint


def controls(study: Study, stimuli: Path, prepared: list[Path], embeddings: Path, diffusion: Path, autoencoder: Path, embedding: Path, out: Path) -> None:
    """For every picture that may be tested on (`pictures_tested`): an unconditional sample, the autoencoder's round trip, and -
    where the generator takes image embeddings - of as many samples as the study's first method draws, all from the true
    embedding, the one that agrees best with it. Both are drawn from noise.

    The group `shapes` holds drawn shapes (`data.shapes`), which nobody was trained on, with the same two ceilings.
    Rows of the tables that the study cannot have stand, with the reason, in the file's attribute `absent` (JSON).
    """
    device, batch = on_device(), study.evaluation.batch_size
    coder = load_autoencoder(autoencoder).to(device)
    generator = generator_for(diffusion, coder, study.picture_size, embeddings, device)
    sampling = next(iter(study.methods.values())).sampling
    count, sampling = sampling.drawn, sampling.model_copy(update={"strength": 1.0})
    order = pictures_tested(stimuli, prepared)
    embedder = load_embedding(embedding).to(device)
    with h5py.File(embeddings) as targets:
        mean = mean_of_others(targets["embedding"], order)
    absent: dict[str, str] = {}
    if not generator.takes:
        absent["embedding-ceiling"] = f"{generator.name} takes no image embedding"
    if isinstance(generator, AutoencoderGenerator):
        absent["unconditional"] = f"{generator.name} draws nothing without a predicted latent"
    if isinstance(generator, UNetGenerator) and generator.null() is None:
        absent["unconditional"] = f"{generator.name} came without what it learned to draw from without a condition (a null class, the empty prompt)"

    def round_trip(images: Tensor) -> NDArray[np.uint8]:
        with torch.no_grad():
            return as_bytes(coder.decode(coder.encode(images)))

    def ceiling(inputs: Mapping[str, Tensor], wanted: Tensor, keys: list[tuple]) -> NDArray[np.uint8]:
        """Of the samples drawn from each picture's own embedding the one that agrees best with it."""
        repeated = {name: values.to(device).repeat_interleave(count, 0) for name, values in inputs.items()}
        drawn = as_bytes(generator.draw(repeated, keys, sampling))
        shown = best_sample(embedder, drawn, wanted.to(device), mean.to(device), batch) if count > 1 else 0
        return drawn[count * np.arange(len(wanted)) + shown]

    def block(rows: NDArray[np.int64]) -> dict[str, NDArray]:
        with Stimuli(stimuli) as seen:
            found = {"autoencoder_ceiling": round_trip(as_images(seen.read(order[rows]), device))}
        keys = [(study.seed, int(image), k) for image in order[rows] for k in range(count)]
        if "unconditional" not in absent:
            found["unconditional"] = as_bytes(generator.draw(None, keys[::count], sampling))
        if generator.takes:
            with Targets(embeddings) as targets:
                wanted, inputs = torch.from_numpy(targets.read("embedding", order[rows])), true_inputs(generator, targets, order[rows])
            found["embedding_ceiling"] = ceiling(inputs, wanted, keys)
        return found

    def of_shapes(pictures: NDArray[np.uint8], first: int) -> dict[str, NDArray]:
        images = as_images(pictures, device)
        found = {"image": pictures, "autoencoder_ceiling": round_trip(images)}
        if generator.takes:
            with torch.no_grad():
                inputs, wanted = inputs_of_pictures(generator, embedder, images)
            found["embedding_ceiling"] = ceiling(inputs, wanted, [(study.seed, "shape", first + row, k) for row in range(len(pictures)) for k in range(count)])
        return found

    folder = out.with_name(f".{out.name}.partial")
    with Stimuli(stimuli) as seen:
        pixels = seen.sha256[order].tolist()
    mark = fingerprint(study, [embeddings, diffusion, autoencoder, embedding], __name__, batch, order.tolist(), pixels)
    label = f"controls of {len(order)} pictures, {count} samples from each true embedding"
    blocks, work = Blocks(folder, mark), Work("pictures", len(order), max(1, batch // count), block, label)
    blocks.make(work)
    if not blocks.all_made():
        return
    with whole_file(out) as temporary, NewFile(temporary) as file:
        file["stimulus"] = order
        for place, content in blocks.read(work):
            for name, values in content.items():
                if name not in file:
                    file.create_dataset(name, (len(order), *values.shape[1:]), np.uint8, compression="lzf", chunks=(1, *values.shape[1:]))
                file[name][place] = values
            file.check()
        named, at_once = shapes(study.picture_size), max(1, batch // count)
        pictures = np.stack(list(named.values()))
        parts = [of_shapes(pictures[first : first + at_once], first) for first in range(0, len(pictures), at_once)]
        file["shapes/name"] = list(named)
        for name in parts[0]:
            file[f"shapes/{name}"] = np.concatenate([part[name] for part in parts])
        file.attrs.update(
            {
                **drawing_protocol(generator, sampling, {}),
                "autoencoder": coder.name,
                "embedding": embedder.name,
                "samples": count,
                "absent": json.dumps(absent),
            }
        )
    blocks.remove()


def mean_of_others(values: h5py.Dataset, without: NDArray[np.int64], at_once: int = 4096) -> Tensor:
    """Mean (d,) of all rows (n, d) but some, read in blocks."""
    total, kept = np.zeros(values.shape[1:], np.float64), np.ones(len(values), bool)
    kept[without] = False
    for start in range(0, len(values), at_once):
        total += values[start : start + at_once][kept[start : start + at_once]].sum(0, dtype=np.float64)
    return torch.from_numpy((total / max(kept.sum(), 1)).astype(np.float32))

"""Pictures from predictions by any generator, a batch at a time, and kept as they are drawn."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unimind.foundations.embed import targets_of
from unimind.foundations.generators import Generator, as_bytes, load_generator
from unimind.foundations.generators.norms import LENGTH_HELD, RULE, TargetNorms
from unimind.foundations.targets import Targets
from unimind.models.embedding_prior import EmbeddingFlow
from unimind.progress import track
from unimind.reconstruction.decoder import Prediction
from unimind.streams import generator as random_generator
from unimind.study import Sampling

#: Pictures whose targets are read at a time.
READ_AT_ONCE = 256
#: What generators take that pictures have themselves; a condition stage's outputs are no picture's.
FROM_PICTURES = ("embedding", "tokens")


def generator_for(diffusion: Path, autoencoder, picture_size: int, embeddings: Path, device: torch.device) -> Generator:
    """The study's generator, for latents of the shape that a stimulus file's targets have."""
    with Targets(embeddings) as targets:
        shape = targets.shapes["latent"]
    return load_generator(diffusion, autoencoder, picture_size, device, shape)


def norms_of(generator: Generator, sampling: Sampling, count: int, pieces: Callable[[str], Iterable[NDArray[np.float32]]]) -> dict[str, TargetNorms]:
    """How the targets of `count` pictures lie, of those that pictures are drawn from: what the generator takes, and the latent that drawing starts at.

    `pieces` gives a target's values by the name it is stored under. One picture has no distribution: predictions stay as they are then.
    """
    taken = {name: _long(name) if generator.raw else name for name in generator.takes if name in FROM_PICTURES and sampling.strength > 0}
    names = taken | ({"latent": "latent"} if sampling.strength < 1 else {})
    return {name: TargetNorms.of(pieces(stored)) for name, stored in names.items()} if count > 1 else {}


def norms_for(generator: Generator, sampling: Sampling, embeddings: Path, rows: Sequence[int] | NDArray) -> dict[str, TargetNorms]:
    """As `norms_of`, of some pictures of a stimulus file, whose targets are read in pieces."""
    with Targets(embeddings) as targets:
        return norms_of(generator, sampling, len(rows), lambda name: targets.in_pieces(name, rows, READ_AT_ONCE))


def true_inputs(generator: Generator, targets: Targets, rows: NDArray) -> dict[str, Tensor]:
    """What a generator takes, of some pictures themselves."""
    return {name: torch.from_numpy(targets.raw(rows) if generator.raw and name == "embedding" else targets.read(name, rows)) for name in generator.takes}


def inputs_of_pictures(generator: Generator, embedder, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """What a generator takes, of pictures (n, 3, H, W) in [0, 1] that stand in no file; and their embeddings (n, d) of unit length."""
    found = targets_of(images, embedder, "tokens" in generator.takes)
    unit = found["embedding"]
    if generator.raw:
        found["embedding"] = unit * found["norm"][:, None]
    return {name: found[name].float() for name in generator.takes}, unit


def _long(name: str) -> str:
    """Name of a target with the length that its network gave it."""
    return "raw" if name == "embedding" else name


def inputs_of(
    generator: Generator, prediction: Prediction, norms: Mapping[str, TargetNorms], keys: Sequence[tuple], prior: EmbeddingFlow | None
) -> dict[str, Tensor]:
    """What a generator takes, of a prediction: its condition, or the targets, brought to the distribution of real pictures'.

    With a prior over embeddings, a sample of the embedding in the place of its regressed mean, of noise of each picture's own.
    """
    if prediction.condition is not None:
        return prediction.condition._asdict()
    found = {name: values for name, values in prediction.targets.items() if name in generator.takes}
    if prior is not None:
        noise = torch.stack([torch.randn(prior.size, generator=random_generator("embedding prior", *key)) for key in keys])
        sampled = prior.sample(found["embedding"], noise.to(found["embedding"].device))
        return {"embedding": norms["embedding"].within(sampled) if "embedding" in norms else sampled}
    return {name: norms[name].apply(values, unit=name == "embedding") if name in norms else values for name, values in found.items()}


def draw(
    generator: Generator, prediction: Prediction, norms: Mapping[str, TargetNorms], sampling: Sampling, keys: Sequence[tuple],
    prior: EmbeddingFlow | None = None,
) -> NDArray[np.uint8]:  # fmt: skip
    """One picture per row of a prediction on the generator's device, all in one batch: uint8 (n, H, W, 3).

    `keys` seed each picture's own noise. Below full strength drawing starts from the predicted latent, brought to the distribution of real
    pictures' as well; with 0 nothing else is looked at.
    """
    start = prediction.latent if sampling.strength < 1 else None
    if start is not None and "latent" in norms:
        start = norms["latent"].apply(start, unit=False)
    inputs = inputs_of(generator, prediction, norms, keys, prior) if sampling.strength else None
    return as_bytes(generator.draw(inputs, keys, sampling, start))


def draw_pictures(
    generator: Generator, prediction: Prediction, norms: Mapping[str, TargetNorms], sampling: Sampling, keys: Sequence[tuple], batch: int,
    device: torch.device, label: str, prior: EmbeddingFlow | None = None,
) -> NDArray[np.uint8]:  # fmt: skip
    """As `draw`, in batches, of a prediction that may lie elsewhere."""
    found = []
    for rows in track(torch.arange(len(keys)).split(batch), label):
        part = prediction.each(lambda values, rows=rows: values[rows].to(device))  # type: ignore[misc]
        found.append(draw(generator, part, norms, sampling, [keys[row] for row in rows], prior))
    return np.concatenate(found)


def drawing_protocol(generator: Generator, sampling: Sampling, norms: Mapping[str, TargetNorms], prior: EmbeddingFlow | None = None) -> dict[str, Any]:
    """How pictures were drawn, as attributes of an HDF5 file: texts and numbers, and what has parts as JSON."""
    said = generator.protocol(sampling)
    if norms:
        said["norms"] = {name: own.protocol(LENGTH_HELD if prior is not None and name == "embedding" else RULE) for name, own in norms.items()}
    if prior is not None:
        said["embedding_prior"] = "each picture is drawn from a sample of the embeddings that the regressed one may stand for"
    return {key: value if isinstance(value, str | int | float) else json.dumps(value, sort_keys=True) for key, value in said.items()}

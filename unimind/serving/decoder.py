"""A bundle's method as an estimator of scikit-learn's habits: arrays in, arrays and pictures out, no study and no files."""

import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from unimind.bundle import Bundle, read_bundle
from unimind.data.sources.base import as_rgb, pixel_hash, to_square
from unimind.device import on_device
from unimind.errors import InputError
from unimind.evaluation.metrics import correlations, two_way
from unimind.foundations import load_autoencoder, load_embedding
from unimind.foundations.embed import AT_ONCE, targets_of
from unimind.foundations.generators import load_generator
from unimind.models.embedding_prior import EmbeddingFlow, load_embedding_prior
from unimind.models.encoder import Encoder
from unimind.models.enter import Context
from unimind.models.prior import TaughtPrior
from unimind.models.space import PictureSpace
from unimind.reconstruction.agreement import agreement
from unimind.reconstruction.decoder import Decoder, Prediction
from unimind.reconstruction.draw import draw, norms_of
from unimind.storage import read_json
from unimind.study import Method, Study, parse_study
from unimind.training.enter import closed_form_of, load_taught

#: What a decoder of one subject calls it.
SUBJECT = "own-subject"
#: Root mean square that normalised responses lie within: 1 for single trials, less for averages of repeats (0.3 for ten of noise alone).
RMS = (0.15, 4.0)
#: Largest root mean square of the voxels' means, in units of their deviation, over at least so many rows: of 20 rows it is 0.22 by chance.
MEAN, ROWS = 0.7, 20


class RankedCandidates(NamedTuple):
    """Candidate pictures of every response, those most alike first.

    Attributes
    ----------
    index : int (n, m)
        Into the candidates given.
    similarity : float (n, m)
        Cosine of predicted and true embedding about the mean of the pictures fitted to.
    """

    index: NDArray[np.int64]  # type: ignore[assignment]
    similarity: NDArray[np.float32]


class _Loaded(NamedTuple):
    """What a bundle holds, in memory."""

    bundle: Bundle
    study: Study
    settings: Method
    space: PictureSpace
    prior: TaughtPrior | None
    shared: Decoder | None
    embedding_prior: EmbeddingFlow | None
    embedder: Any
    autoencoder: Any
    generator: Any


class SubjectDecoder(BaseEstimator):
    """Decoder of one subject by a bundle's method; made by `unimind.load`.

    Parameters
    ----------
    bundle : str
        Folder, zip file, or `name @ revision` of the hub.
    seed : int
        Of the drawing of pictures.

    Attributes
    ----------
    n_features_in_ : int
        Voxels.
    n_pictures_ : int
        Pictures that it was fitted to.
    mean_embedding_ : array (d,)
        Mean of their embeddings.
    """

    def __init__(self, bundle: str, seed: int = 0) -> None:
        self.bundle, self.seed = bundle, seed

    def fit(self, responses: ArrayLike, pictures: Sequence[Any] | NDArray, rois: Sequence[str] | None = None) -> "SubjectDecoder":
        """Fit the subject's closed form; no gradient step is taken.

        Parameters
        ----------
        responses : array (n, voxels)
            Normalised: every voxel z-scored over the session's training trials.
        pictures : n pictures
            PIL images, arrays (H, W, 3) uint8, or one array of all. Trials of equal pictures are averaged.
        rois : sequence of str, optional
            ROI word of every voxel, held against the bundle's.

        Raises
        ------
        InputError
            Responses that are not normalised; other numbers of rows; fewer than two pictures; ROI words the bundle was not trained with.
        """
        loaded = _loaded(str(self.bundle))
        values = normalised(responses)
        if len(pictures) != len(values):
            raise InputError(f"fit: {len(pictures)} pictures for {len(values)} responses; give one of each per trial")
        if rois is not None:
            if len(rois) != values.shape[1]:
                raise InputError(f"fit: {len(rois)} ROI words for {values.shape[1]} voxels; give one per voxel")
            loaded.bundle.require_words(sorted(set(map(str, rois))), "fit")
        pixels = _pixels(pictures)
        place: dict[str, int] = {}
        position = np.array([place.setdefault(pixel_hash(one), len(place)) for one in pixels])
        if len(place) < 2:
            raise InputError(f"fit: {len(place)} picture; at least two are needed")
        first = [int(np.flatnonzero(position == number)[0]) for number in range(len(place))]
        counts = np.bincount(position).astype(np.float32)
        total = np.zeros((len(place), values.shape[1]), np.float32)
        np.add.at(total, position, values)
        means = total / counts[:, None]
        embedding, raw, latent = _targets(loaded, [pixels[row] for row in first])
        coordinates = loaded.space.coordinates(embedding, latent).numpy()
        found = closed_form_of(loaded.settings, SUBJECT, loaded.space, loaded.prior, coordinates, means, self.seed)
        self.map_, self.context_ = found, Context.of(coordinates, loaded.space)
        of_pictures = {"embedding": embedding, "raw": raw, "latent": latent}
        self.norms_ = norms_of(loaded.generator, loaded.settings.sampling, len(place), lambda name: [of_pictures[name].numpy()])
        self.mean_embedding_ = embedding.mean(0).numpy()
        self.n_features_in_, self.n_pictures_ = values.shape[1], len(place)
        return self

    def predict(self, responses: ArrayLike) -> NDArray[np.float32]:
        """Predicted image embeddings (n, d) of responses (n, voxels), as regressed: what is drawn from."""
        embedding = self._predicted(responses).embedding
        assert embedding is not None
        return embedding.cpu().numpy()

    def embed(self, pictures: Sequence[Any] | NDArray) -> NDArray[np.float32]:
        """Image embeddings (n, d) of pictures: what `predict` predicts."""
        return _targets(_loaded(str(self.bundle)), _pixels(pictures))[0].numpy()

    def draw(self, responses: ArrayLike, samples: int | None = None) -> list[list[Any]]:
        """Pictures of what was seen, PIL images: of every response `samples`, by default as many as the method draws.

        The first agrees best with the predicted embedding, whatever the method's `sampling.chosen_by`: no encoding model is fitted here.
        """
        loaded = _loaded(str(self.bundle))
        prediction = self._predicted(responses)
        sampling = loaded.settings.sampling
        count = sampling.drawn if samples is None else samples
        if count < 1:
            raise InputError(f"draw: samples={count} given; draw at least one")
        return [self._of_one(loaded, prediction.each(lambda values, row=row: values[row : row + 1]), row, count) for row in range(len(prediction.features))]  # type: ignore[misc]

    def identify(self, responses: ArrayLike, candidates: Sequence[Any] | NDArray) -> RankedCandidates:
        """Rank candidate pictures for every response, by the embedding that the method tells pictures apart by."""
        wanted, mean = self._predicted(responses).features.cpu(), torch.from_numpy(self.mean_embedding_)
        own = torch.from_numpy(self.embed(candidates))
        similarity = torch.stack([agreement(row[None], own, mean) for row in wanted]).numpy()
        index = np.argsort(-similarity, axis=1, kind="stable")
        return RankedCandidates(index, np.take_along_axis(similarity, index, 1))

    def score(self, responses: ArrayLike, pictures: Sequence[Any] | NDArray) -> float:
        """Two-way identification of the pictures among each other: the share of pairs in which the own one correlates higher; chance is 0.5."""
        truth = self.embed(pictures)
        if len(truth) < 2:
            raise InputError("score: one picture has no others to be told from; give at least two")
        return float(two_way(correlations(torch.from_numpy(truth), self._predicted(responses).features.cpu())).mean())

    def _predicted(self, responses: ArrayLike) -> Prediction:
        check_is_fitted(self)
        loaded = _loaded(str(self.bundle))
        values = normalised(responses)
        if values.shape[1] != self.n_features_in_:
            raise InputError(f"predict: {values.shape[1]} voxels given, but it was fitted to {self.n_features_in_}; give the same voxels in the same order")
        decoder = loaded.shared
        if decoder is None:
            encoder = Encoder(loaded.settings.enter.model_dump(), {"kind": "identity"}, loaded.space, ("embedding", "latent"), {}).eval()
            decoder = Decoder.of(encoder, SUBJECT)
        decoder.encoder.take_map(SUBJECT, self.map_, self.context_)
        return decoder.to(on_device()).predict(values[:, None])

    def _of_one(self, loaded: _Loaded, prediction: Prediction, row: int, count: int) -> list[Any]:
        from PIL import Image

        repeated = prediction.each(lambda values: values.repeat_interleave(count, 0))
        sampling = loaded.settings.sampling
        pixels = draw(loaded.generator, repeated, self.norms_, sampling, [(self.seed, row, number) for number in range(count)], loaded.embedding_prior)
        order = np.arange(count)
        if count > 1 and prediction.embedding is not None:
            own = torch.from_numpy(self.embed(pixels))
            order = torch.argsort(agreement(own, prediction.embedding.cpu(), torch.from_numpy(self.mean_embedding_)), descending=True, stable=True).numpy()
        return [Image.fromarray(pixels[number]) for number in order]


def load(bundle: str | Path, seed: int = 0) -> SubjectDecoder:
    """The decoder of a bundle, to be fitted to a subject. See `unimind.load`."""
    _loaded(str(bundle))
    return SubjectDecoder(str(bundle), seed)


def normalised(responses: ArrayLike) -> NDArray[np.float32]:
    """Responses (n, voxels) as float32; InputError where they are not finite, or by their moments not normalised."""
    values = np.asarray(responses, np.float32)
    if values.ndim != 2 or 0 in values.shape:
        raise InputError(f"responses: an array of shape {values.shape} given; expected (trials, voxels)")
    if not np.isfinite(values).all():
        raise InputError("responses: hold values that are missing or infinite; leave those voxels or trials out")
    size = float(np.sqrt((values.astype(np.float64) ** 2).mean()))
    mean, deviation = values.mean(0, dtype=np.float64), values.std(0, dtype=np.float64)
    away = float(np.sqrt(((mean / np.maximum(deviation, 1e-6))[deviation > 0] ** 2).mean())) if (deviation > 0).any() else 0.0
    if not RMS[0] <= size <= RMS[1] or (len(values) >= ROWS and away > MEAN):
        raise InputError(
            f"responses: not normalised (root mean square {size:.3g}, voxels' means {away:.2g} of their deviations from 0); z-score every voxel within its "
            "session: subtract the mean and divide by the standard deviation of the session's training trials"
        )
    return values


def _pixels(pictures: Sequence[Any] | NDArray) -> list[NDArray[np.uint8]]:
    """Pictures as uint8 (H, W, 3)."""
    found = []
    for number, picture in enumerate(pictures):
        values = np.asarray(picture.convert("RGB") if hasattr(picture, "convert") else picture)
        if values.dtype != np.uint8 or values.ndim not in (2, 3):
            raise InputError(f"pictures: number {number} is {values.dtype} {values.shape}; give PIL images, or uint8 arrays (H, W, 3)")
        found.append(as_rgb(values))
    return found


@torch.no_grad()
def _targets(loaded: _Loaded, pixels: list[NDArray[np.uint8]]) -> tuple[Tensor, Tensor, Tensor]:
    """Image embeddings (n, d), the same with the length that the network gives them, and latents (n, c, h, w), on the CPU."""
    device, found = on_device(), []
    for start in range(0, len(pixels), AT_ONCE):
        images = np.stack([to_square(one, loaded.study.picture_size) for one in pixels[start : start + AT_ONCE]])
        batch = torch.from_numpy(images).permute(0, 3, 1, 2).to(device).float() / 255
        own = targets_of(batch, loaded.embedder) | {"latent": loaded.autoencoder.encode(batch)}
        found.append({name: values.float().cpu() for name, values in own.items()})
    joined = {name: torch.cat([part[name] for part in found]) for name in found[0]}
    raw = joined["embedding"] * joined["norm"][:, None] if "norm" in joined else joined["embedding"]
    return joined["embedding"], raw, joined["latent"]


@lru_cache(maxsize=2)
def _loaded(where: str) -> _Loaded:
    """What a bundle holds, every hash checked; read once a process."""
    bundle = read_bundle(where)
    bundle.check()
    study = parse_study(bundle.content["study"] | {"name": "bundle", "datasets": {"own": {"source": "simulated", "new_subjects": ["subj01"]}}, "bundle": where})
    settings = study.methods[bundle.method]
    if not settings.closed:
        raise InputError(f"{where}: {bundle.method} is adapted by gradient steps; give `bundle: {where}` to a study, which does that")
    if study.foundations.target == "tokens":
        raise InputError(f"{where}: its generator takes tokens, which are made in a study only; give `bundle: {where}` to a study")
    device = on_device()
    with bundle.part("teach") as folder:
        space, prior = load_taught(folder)
    shared = None
    for part in ("condition", "align"):
        if part in bundle.parts:
            with bundle.part(part) as folder:
                shared = Decoder(folder, None, "own", "subject").to(device)
            break
    embedding_prior = None
    if settings.embedding_prior is not None:
        with bundle.part("embedding-prior") as folder:
            embedding_prior = load_embedding_prior(folder).to(device)
    networks: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="unimind-foundations-") as temporary:
        folders = {name: _foundation(bundle, study, name, Path(temporary)) for name in ("embedding", "autoencoder", "diffusion")}
        networks["embedder"] = load_embedding(folders["embedding"]).to(device)
        networks["autoencoder"] = load_autoencoder(folders["autoencoder"]).to(device)
        networks["generator"] = load_generator(folders["diffusion"], networks["autoencoder"], study.picture_size, device, space.latent_shape)
    if shared is not None:
        shared.prepare(networks["generator"])
    return _Loaded(bundle, study, settings, space, prior, shared, embedding_prior, **networks)


def _foundation(bundle: Bundle, study: Study, name: str, folder: Path) -> Path:
    """A network's folder: copied out of the bundle, or obtained as in a study."""
    from unimind.bundle import copy_part
    from unimind.foundations.external import build

    out = folder / name
    out.mkdir()
    if f"foundations/{name}" in bundle.parts:
        copy_part(bundle, f"foundations/{name}", out)
    else:
        build(getattr(study.foundations, name), out)
        bundle.require_foundation(name, read_json(out / "config.json"))
    return out

"""The encoding prior on files: learned from training subjects, asked for a new subject's decoders."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from unimind.data.prepared import Order, PreparedSubject
from unimind.errors import InputError
from unimind.models.prior import EncodingPrior, LinearDecoder, PictureFeatures, picture_moments
from unimind.models.ridge import solve
from unimind.training.data import Split, budget_rows

#: Principal components of each representation of the pictures.
COMPONENTS = 64
#: How much of the decoder is ridge regression: candidates, chosen by cross-validation within the subject's own trials.
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)


class Trials(NamedTuple):
    """One row per picture: responses (n, V) averaged over repeats, image embedding (n, d), latent (n, c, h, w)."""

    responses: NDArray[np.float32]
    embedding: NDArray[np.float32]
    latent: NDArray[np.float32]


class Taught:
    """The encoding prior that some training subjects teach.

    Parameters
    ----------
    teachers : sequence of Trials
        Training trials of each training subject.
    mixed : bool
        See `EncodingPrior`.
    seed : int
    """

    def __init__(self, teachers: Sequence[Trials], mixed: bool, seed: int) -> None:
        embedding, latent = (np.concatenate([getattr(one, name) for one in teachers]) for name in ("embedding", "latent"))
        self.features = PictureFeatures([embedding, latent], COMPONENTS)
        seen = self.features([embedding, latent])
        self._moments = [picture_moments(seen, target) for target in (embedding, latent)]
        self.prior = EncodingPrior(self.features, [((one.embedding, one.latent), one.responses) for one in teachers], mixed, seed)

    def decoders(self, own: Trials) -> list[LinearDecoder]:
        """A new subject's linear decoders of image embedding and flattened latent, from its own trials."""
        return self.prior.decoders((own.embedding, own.latent), own.responses, self._moments, (own.embedding, own.latent))

    def embedding_decoder(self, own: Trials, alphas: Sequence[float], folds: int, seed: int) -> LinearDecoder:
        """The decoder of the image embedding, mixed with ridge regression as far as cross-validation finds it better for it.

        The share of ridge regression maximises the correlation of held-out pictures' predicted with their true embeddings,
        every dimension standardised by the subject's own pictures.
        """
        both = (self.decoders(own)[0], _ridge(own, alphas, folds, seed))
        n = len(own.responses)
        part = np.random.default_rng((seed, 11)).permutation(n) % min(folds, n)
        mean, deviation = own.embedding.mean(0), own.embedding.std(0).clip(1e-6)
        agreement = np.zeros(len(SHARES))
        for fold in range(part.max() + 1):
            seen, unseen = (Trials(*(array[rows] for array in own)) for rows in (part != fold, part == fold))
            if len(seen.responses) < 4:
                return both[0]
            found = (self.decoders(seen)[0], _ridge(seen, alphas, folds, seed))
            first, second = ((unseen.responses @ d.weight + d.bias - mean) / deviation for d in found)
            truth = (unseen.embedding - mean) / deviation
            agreement += [_correlation((1 - share) * first + share * second, truth).sum() for share in SHARES]
        share = SHARES[int(agreement.argmax())]
        return LinearDecoder(*((1 - share) * a + share * b for a, b in zip(*both, strict=True)))


def _correlation(first: NDArray, second: NDArray) -> NDArray:
    """Correlation of each row of one array with that of another."""
    a, b = (array - array.mean(1, keepdims=True) for array in (first, second))
    return (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1) + 1e-12)


def _ridge(own: Trials, alphas: Sequence[float], folds: int, seed: int) -> LinearDecoder:
    mean = own.responses.astype(np.float64).mean(0)
    weight, bias = solve(own.responses - mean, own.embedding, alphas, folds, seed)
    return LinearDecoder(weight, bias - mean @ weight)


def read_trials(prepared: Path, embeddings: Path, rows: Mapping[Split, NDArray] | None = None, order: Order = "anatomical") -> Trials:
    """Training and validation trials of one subject, or some rows of its file, averaged per picture; never a test trial."""
    with PreparedSubject(prepared) as data:
        own = np.sort(np.concatenate(list(rows.values()) if rows else [data.trials("train"), data.trials("validation")]))
        values, stimulus = data.read(own, order), data.stimulus[own]
    images, place, counts = np.unique(stimulus, return_inverse=True, return_counts=True)
    if len(images) < 2:
        raise InputError(f"{prepared}: {len(images)} training pictures; at least two are needed")
    responses = np.zeros((len(images), values.shape[1]), np.float32)
    np.add.at(responses, place, values)
    with h5py.File(embeddings) as file:
        if images[-1] >= len(file["embedding"]):
            count = len(file["embedding"])
            raise InputError(f"{embeddings}: holds {count} pictures, but a trial shows number {images[-1]}; embed the data set's pictures again")
        return Trials((responses / counts[:, None]).astype(np.float32), file["embedding"][images], file["latent"][images])


def teach(
    prepared: Sequence[Path], embeddings: Sequence[Path], mixed: bool, seed: int, share: int | None = None, order: Order = "anatomical"
) -> Taught:  # fmt: skip
    """The prior taught by training subjects, one prepared and one embeddings file each, from all or `share` of each one's trials.

    Raises
    ------
    InputError
        No training subject is given.
    """
    if not prepared:
        raise InputError("a prior over voxels is learned from training subjects, and none is given; give --training-prepared and --training-embeddings")
    teachers = []
    for own, targets in zip(prepared, embeddings, strict=True):
        with PreparedSubject(own) as data:
            rows = None if share is None else budget_rows(data, share, seed)
        teachers.append(read_trials(own, targets, rows, order))
    return Taught(teachers, mixed, seed)

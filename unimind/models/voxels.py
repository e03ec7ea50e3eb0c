"""Voxels as tokens: each one's vector times its response, read by queries that all subjects share (the family of Brain-IT and BrainCoDec)."""

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from unimind.errors import InputError
from unimind.models.enter import LOG_PICTURES, expect, module_name
from unimind.models.prior import FEATURES, EncodingPrior, Features, Recorded
from unimind.models.space import PictureSpace
from unimind.streams import placed

#: Attention weights (rows x queries x voxels) in memory together: 64 MB in single precision; more rows are read one part after the other,
#: and each part's weights are computed again in the backward pass. NSD's 15 724 voxels under 32 queries are 33 rows at a time.
WEIGHTS = 2**24


class VoxelAttention(nn.Module):
    """Cross-attention from learned queries to a subject's voxels; a signal of `queries` tokens side by side, whatever the number of voxels.

    With a voxel's vector u (d,) and its response y, query q (d,) weighs voxel v by softmax over voxels of
    ln(V) (q' A u_v + y_v q' B u_v) / sqrt(d), and reads the sum of weight times y_v C u_v, normalised. The factor ln(V) keeps a weight as
    sharp among many voxels as among few (BrainCoDec). No token of a voxel is ever made: memory is that of the weights, see `WEIGHTS`.

    Parameters
    ----------
    size, queries, vectors, dropout
        See `study.VoxelTokens`; d is size / queries.
    space : PictureSpace
        Of the encoding weights that vectors are made of.
    """

    def __init__(self, size: int, queries: int, vectors: Literal["encoding", "learned"], dropout: float, space: PictureSpace) -> None:
        super().__init__()
        self.size, self.vectors, self.dropout = size, vectors, nn.Dropout(dropout)
        self.width = size // queries
        self.n_features = sum(min(FEATURES, count) for count in space.components.values())
        self.queries = placed("queries", lambda: nn.Parameter(torch.randn(queries, self.width)))
        self.keys, self.driven, self.values = (placed(name, lambda: nn.Linear(self.width, self.width, bias=False)) for name in ("keys", "driven", "values"))
        self.norm = nn.LayerNorm(self.width)
        self.own = nn.ParameterDict()
        if vectors == "encoding":
            self.embed = placed("embed", lambda: nn.Linear(self.n_features + 2, self.width))
        #: Vectors of subjects as known from parts of their pictures, for the time of a training; no part of the model.
        self.contexts: dict[str, Tensor] = {}

    def add(self, subject: str, n_voxels: int) -> None:
        """Give a subject vectors: drawn at random where they are learned, else of voxels that respond to nothing."""
        name = module_name(subject)
        if self.vectors == "learned":
            self.own[name] = placed(subject, lambda: nn.Parameter(torch.randn(n_voxels, self.width) / self.width**0.5))
        else:
            self.register_buffer(f"{name}_vectors", torch.zeros(n_voxels, self.n_features + 2))

    def names(self, subject: str) -> list[str]:
        """Names of the parameters of one subject."""
        return [f"own.{module_name(subject)}"] if self.vectors == "learned" else []

    def take(self, subject: str, vectors: Tensor) -> None:
        """Set what is known of a subject's voxels (V, F + 2), see `encoding_vectors`."""
        name = f"{module_name(subject)}_vectors"
        self.register_buffer(name, vectors.to(self.queries.device))

    def remember(self, features: Features, prior: EncodingPrior) -> None:
        """Keep what tells the encoding weights of further subjects."""
        found = {"mean": features.mean, "white": features.white, "chosen": features.chosen}
        found |= {"prior_mean": prior.mean, "prior_covariance": prior.covariance, "prior_noise": np.array([prior.noise])}
        for name, values in found.items():
            self.register_buffer(f"taught_{name}", torch.from_numpy(np.ascontiguousarray(values)))

    def taught(self) -> tuple[Features, EncodingPrior]:
        """What `remember` kept."""
        mean, white, chosen, centre, covariance, noise = (
            self.get_buffer(f"taught_{name}").cpu().numpy() for name in ("mean", "white", "chosen", "prior_mean", "prior_covariance", "prior_noise")
        )
        return Features(mean, white, chosen), EncodingPrior(centre, covariance, float(noise[0]), np.zeros((len(centre), 0)))

    def vectors_of(self, subject: str) -> Tensor:
        """Vectors (V, d) of a subject's voxels; InputError for a subject without them."""
        name = module_name(subject)
        if self.vectors == "learned":
            found = self.own[name] if name in self.own else None
        else:
            found = self.contexts.get(subject, getattr(self, f"{name}_vectors", None))
        if found is None:
            raise InputError(f"{subject}: this model has no vectors of that subject's voxels; adapt it first (`unimind adapt`)")
        return found if self.vectors == "learned" else self.embed(found.to(self.queries.device))

    def forward(self, responses: Tensor, subject: str) -> Tensor:
        """(B, R, V) to (B, R, size)."""
        vectors = self.vectors_of(subject)
        expect(subject, responses.shape[-1], len(vectors))
        scale = float(np.log(max(len(vectors), 2))) / self.width**0.5
        fixed, driven = (scale * self.queries @ layer(vectors).T for layer in (self.keys, self.driven))  # (Q, V)
        values = self.values(vectors)

        def read(part: Tensor) -> Tensor:
            weights = torch.softmax(fixed + part[:, None] * driven, -1)
            return (weights * part[:, None]) @ values

        flat = self.dropout(responses).flatten(0, 1)
        at_once = max(1, WEIGHTS // fixed.numel())
        parts = flat.split(at_once)
        kept = len(parts) == 1 or not torch.is_grad_enabled()
        found = torch.cat([read(part) if kept else checkpoint(read, part, use_reentrant=False) for part in parts])
        return self.norm(found).flatten(1).unflatten(0, responses.shape[:2])


def encoding_vectors(features: Features, prior: EncodingPrior, coordinates: NDArray, responses: NDArray[np.float32], length: int) -> Tensor:
    """What a subject's trials say of its voxels, under a prior: (V, length).

    Posterior mean of the encoding weights, filled up with zeros; ln of the noise variance; ln(number of pictures) / 7, which tells how
    sure that is. In units of every voxel's standardised response.

    Parameters
    ----------
    coordinates, responses : array
        (n, K) and (n, V), one row per picture.
    """
    design = features(coordinates)
    weight, noise = prior.posterior(Recorded(design, responses))
    found = torch.zeros(responses.shape[1], length)
    found[:, : len(weight)] = torch.from_numpy(weight.T)
    found[:, -2], found[:, -1] = torch.from_numpy(np.log(noise)), float(np.log(len(design))) / LOG_PICTURES
    return found

"""The distribution of a picture's embedding given what was regressed from a response: a rectified flow (Liu et al. 2023; Lipman et al. 2023).

A regressed embedding is a mean: shrunk, and of no single picture. A generator that was trained on pictures' own embeddings is better
given one of those that such a mean may stand for. Vectors are white coordinates of the picture space and, where the network has one, the
logarithm of the embedding's length. With noise e and a picture's vector x, x_t = (1 - t) e + t x moves at x - e; what is learned is the
expected velocity v(x_t, t) given the regressed vector c. It is that of a joint Gaussian of x and c, in closed form, plus a network that
starts at zero and learns what no Gaussian knows.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from unimind.errors import InputError
from unimind.models.space import PictureSpace
from unimind.storage import load_model
from unimind.streams import placed

#: Steps of the midpoint rule from noise to a sample: with them a Gaussian's variances come out to a hundredth.
STEPS = 32
#: Least conditional variance of a white coordinate: what is surer is rounding.
SURE = 1e-3
#: Frequencies of the code of t.
FREQUENCIES = 16


class EmbeddingFlow(nn.Module):
    """Samples of embeddings given regressed ones.

    Parameters
    ----------
    space : PictureSpace
    lengths : bool
        Whether embeddings have a length of their own.
    width, depth : int
        Of the network: residual layers on (x_t, the Gaussian's expectation, t).
    dropout : float
        After every layer, in training.
    """

    def __init__(self, space: PictureSpace, lengths: bool, width: int, depth: int, dropout: float) -> None:
        super().__init__()
        self.arguments: dict[str, Any] = {"space": space.arguments, "lengths": lengths, "width": width, "depth": depth, "dropout": dropout}
        self.space, known = space, space.components["embedding"]
        self.size = known + lengths
        for name, shape in {
            "weight": (known, self.size),
            "bias": (self.size,),
            "axes": (self.size, self.size),
            "variance": (self.size,),
            "length": (2,),
        }.items():
            self.register_buffer(name, torch.zeros(shape))
        self.first = placed("first", lambda: nn.Linear(2 * self.size + 2 * FREQUENCIES, width))

        def layer() -> nn.Sequential:
            return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Dropout(dropout))

        self.layers = nn.ModuleList(placed(f"layer {number}", layer) for number in range(depth))
        self.last = nn.Linear(width, self.size)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def take_gaussian(self, map_: tuple[NDArray, NDArray], residual: NDArray) -> None:
        """Take the joint Gaussian.

        Parameters
        ----------
        map_ : arrays
            Weight (K, size) and bias (size,): the expected vector given a regressed one.
        residual : array
            Covariance (size, size) of vectors about that expectation.
        """
        values, vectors = np.linalg.eigh(residual.astype(np.float64))
        for name, value in (("weight", map_[0]), ("bias", map_[1]), ("axes", vectors), ("variance", values.clip(SURE))):
            getattr(self, name).copy_(torch.from_numpy(np.ascontiguousarray(value)))

    # --- vectors and embeddings ---

    def regressed(self, embedding: Tensor) -> Tensor:
        """White coordinates (n, K) of regressed embeddings (n, d)."""
        return self.space.of("embedding", embedding) / self.space.embedding_spread

    def vectors(self, coordinates: Tensor, length: Tensor | None) -> Tensor:
        """Vectors (n, size) of pictures, of their embeddings' coordinates (n, K) in the picture space and lengths (n,)."""
        white = coordinates / self.space.embedding_spread
        return white if length is None else torch.cat([white, ((length.log() - self.length[0]) / self.length[1])[:, None]], 1)

    def embeddings(self, vectors: Tensor) -> Tensor:
        """Embeddings (n, d) of vectors: of the length that the image encoder gives them, or, where it gives none, of length 1."""
        known = self.space.components["embedding"]
        found = self.space.target("embedding", vectors[:, :known] * self.space.embedding_spread)
        found = nn.functional.normalize(found, dim=1)
        return found * (self.length[0] + self.length[1] * vectors[:, known:]).exp() if self.arguments["lengths"] else found

    # --- the flow ---

    def expected(self, regressed: Tensor) -> Tensor:
        """The Gaussian's expectation (n, size) given regressed white coordinates (n, K)."""
        return regressed @ self.weight + self.bias

    def forward(self, x: Tensor, t: Tensor, mean: Tensor) -> Tensor:
        """Velocity (n, size) at x_t (n, size) and t (n,), given the Gaussian's expectation.

        Of the Gaussian N(m, S) it is m + (t S - (1 - t) I) ((1 - t)^2 I + t^2 S)^-1 (x_t - t m): the expectation of x - e, both
        Gaussian given x_t.
        """
        t = t[:, None]
        away = (x - t * mean) @ self.axes
        away = away * (t * self.variance - (1 - t)) / ((1 - t) ** 2 + t**2 * self.variance)
        angle = t * torch.pi * torch.arange(1, FREQUENCIES + 1, device=t.device)
        hidden = self.first(torch.cat([x, mean, angle.sin(), angle.cos()], 1))
        for layer in self.layers:
            hidden = hidden + layer(hidden)
        return mean + away @ self.axes.T + self.last(hidden)

    @torch.no_grad()
    def sample(self, embedding: Tensor, noise: Tensor) -> Tensor:
        """An embedding (n, d) for each regressed one (n, d), from normal noise (n, size); see `embeddings` for lengths."""
        mean, x = self.expected(self.regressed(embedding.float())), noise
        for step in range(STEPS):
            begin, middle = (torch.full((len(x),), place / STEPS, device=x.device) for place in (step, step + 0.5))
            half = x + self(x, begin, mean) / (2 * STEPS)
            x = x + self(half, middle, mean) / STEPS
        return self.embeddings(x)


def load_embedding_prior(directory: Path) -> EmbeddingFlow:
    """What the stage `embedding-prior` wrote, in evaluation mode; InputError where it is something else."""
    state, config = load_model(directory)
    if config.get("kind") != "embedding-prior":
        raise InputError(f"{directory}: no prior over embeddings (its config.json says {config.get('kind')}); give the folder of the stage embedding-prior")
    arguments = config["arguments"]
    prior = EmbeddingFlow(**{**arguments, "space": PictureSpace(**arguments["space"])})
    prior.load_state_dict(state)
    return prior.eval()

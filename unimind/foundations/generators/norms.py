"""Predicted targets brought to the distribution that generators know: that of real pictures' targets.

A regression to the mean predicts vectors that lie too close to the mean, and a contrastive head unit vectors; a generator
was trained on neither, and drawing that starts at a shrunk latent starts at a picture without contrast. The rule, for each prediction
on its own, so that no other test picture matters:

1. A prediction of the unit vector is multiplied by the training pictures' mean length.
2. Its deviation from the training pictures' mean is stretched or shrunk to the root mean square deviation of the training pictures:
   then the mean square of the length is theirs too, for E |m + d|^2 = |m|^2 + E |d|^2.
3. Its length is held within those that occur among the training pictures.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LENGTH_HELD = "length held within the training pictures'"
RULE = "deviation from the training pictures' mean brought to their root mean square deviation, length held within theirs"


class TargetNorms(NamedTuple):
    """How training pictures' targets lie.

    Attributes
    ----------
    mean : Tensor
        Of one picture's shape.
    deviation : float
        Root mean square distance from the mean.
    length : tuple of float
        Least, mean and greatest length.
    """

    mean: Tensor
    deviation: float
    length: tuple[float, float, float]

    @classmethod
    def of(cls, pieces: Iterable[NDArray[np.float32]]) -> "TargetNorms":
        """Of raw targets (n, ...) in pieces, such as `Targets.in_pieces("raw", rows, 256)`; one piece stands in memory at a time."""
        count, total, lengths = 0, None, []
        for piece in pieces:
            flat = piece.reshape(len(piece), -1).astype(np.float64)
            total = flat.sum(0) if total is None else total + flat.sum(0)
            lengths.append(np.linalg.norm(flat, axis=1))
            count, shape = count + len(piece), piece.shape[1:]
        if total is None or count < 2:
            raise ValueError(f"{count} targets have no distribution")
        mean, length = total / count, np.concatenate(lengths)
        deviation = float(np.sqrt(max((length**2).mean() - (mean**2).sum(), 0.0)))
        return cls(torch.from_numpy(mean.reshape(shape)).float(), deviation, (float(length.min()), float(length.mean()), float(length.max())))

    def apply(self, predicted: Tensor, unit: bool) -> Tensor:
        """Predictions (n, ...) as the generator wants them; `unit` where they predict unit vectors (the target `embedding`)."""
        x = predicted.float().flatten(1) * (self.length[1] if unit else 1.0)
        mean = self.mean.to(x.device).flatten()
        away = x - mean
        x = mean + away * (self.deviation / away.norm(dim=1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny))
        return self.within(x).view_as(predicted)

    def within(self, values: Tensor) -> Tensor:
        """Vectors (n, d), their lengths held within those of the training pictures."""
        length = values.norm(dim=1, keepdim=True)
        return values * length.clamp(self.length[0], self.length[2]) / length

    def protocol(self, rule: str = RULE) -> dict[str, Any]:
        """What is done, for the record."""
        return {"rule": rule, "deviation": self.deviation, "least_length": self.length[0], "mean_length": self.length[1], "greatest_length": self.length[2]}

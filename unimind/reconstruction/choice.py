"""A picture's samples by how likely the measured response is under each: what was seen plays no part."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unimind.models.prior import EncodingModel, EncodingPrior, Features, Recorded
from unimind.models.space import PictureSpace
from unimind.reconstruction.agreement import as_images
from unimind.training.data import PictureCoordinates, picture_space
from unimind.training.enter import read_trials


class SubjectEncoding(NamedTuple):
    """A subject's encoding model, fitted to its own training and validation trials, and the picture space it is in."""

    space: PictureSpace
    features: Features
    model: EncodingModel

    @classmethod
    def fitted(cls, prepared: Path, embeddings: Path) -> "SubjectEncoding":
        """Fitted under the Gaussian prior that the subject's own voxels teach; nothing of a test trial is read."""
        own = read_trials(prepared)
        space = picture_space([embeddings], [own.images])
        coordinates = PictureCoordinates(embeddings, own.images, space).coordinates(own.images).numpy()
        features = Features.of(coordinates, space)
        recorded = Recorded(features(coordinates), own.responses)
        prior = EncodingPrior.learned([recorded], features.white.shape[1], mixed=False)
        return cls(space, features, prior.encoding_model(recorded))

    def told(self, responses: NDArray[np.float32]) -> NDArray[np.float64]:
        """What responses (n, V), voxels as stored, say of a picture: see `EncodingModel`."""
        return self.model.told(responses)

    def likelihood(self, embedding: Tensor, pictures: NDArray[np.uint8], coder, told: NDArray[np.float64], batch: int) -> NDArray[np.float64]:
        """Log-likelihood (n, k) of what n responses told (n, F), for k pictures of each, up to a constant of each response.

        Parameters
        ----------
        embedding : Tensor (n k, d)
            Of the pictures uint8 (n k, H, W, 3).
        coder
            The study's autoencoder, on the device of `embedding`.
        batch : int
            Pictures per pass.
        """
        targets = [embedding.cpu()]
        if "latent" in self.space.components:
            parts = [pictures[first : first + batch] for first in range(0, len(pictures), batch)]
            with torch.no_grad():
                targets.append(torch.cat([coder.encode(as_images(part, embedding.device)).float().cpu() for part in parts]))
        found = self.features(self.space.coordinates(*targets).numpy())
        return self.model.log_likelihood(found.reshape(len(told), -1, found.shape[1]), told)

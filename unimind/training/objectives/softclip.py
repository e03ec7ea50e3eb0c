"""SoftCLIP with MixCo, as MindEye uses them (Scotti et al. 2023)."""

from torch import Tensor
from torch.nn.functional import log_softmax, normalize, softmax


class SoftClip:
    """Contrastive prediction with soft labels.

    L = -1/2 [sum softmax(T T' / t) log_softmax(P T' / t) + sum softmax(T T' / t) log_softmax(T P' / t)] per sample, with P the
    predictions and T the targets, both L2-normalised, and t the temperature. Where an input is a mixture of two samples
    (MixCo, Kim et al. 2020), what its prediction has to do with a target is the same mixture, in both sums: with shares w and
    the partners' targets Q, w softmax(T T' / t) + (1 - w) softmax(Q T' / t) by row, and w softmax(T T' / t) + (1 - w)
    softmax(T Q' / t) by column. For t to 0 these are BiMixCo's labels.

    Parameters
    ----------
    temperature : float
    """

    def __init__(self, temperature: float = 0.05) -> None:
        self.temperature = temperature

    def __call__(self, predicted: Tensor, target: Tensor, partner: Tensor | None = None, weight: Tensor | None = None) -> Tensor:
        """Scalar loss.

        Parameters
        ----------
        predicted, target : Tensor
            (n, d).
        partner : Tensor, optional
            (n, d), targets of the samples mixed in.
        weight : Tensor, optional
            (n, 1), share of the first sample in the mixture.
        """
        predicted, target = normalize(predicted.float(), dim=1), normalize(target.float(), dim=1)
        rows = columns = softmax(target @ target.T / self.temperature, 1)
        if partner is not None and weight is not None:
            likeness = normalize(partner.float(), dim=1) @ target.T / self.temperature
            rows = weight * rows + (1 - weight) * softmax(likeness, 1)
            columns = weight.T * columns + (1 - weight.T) * softmax(likeness.T, 1)
        logits = predicted @ target.T / self.temperature
        forward = (rows * log_softmax(logits, 1)).sum(1).mean()
        backward = (columns * log_softmax(logits.T, 1)).sum(1).mean()
        return -0.5 * (forward + backward)

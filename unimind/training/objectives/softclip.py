"""SoftCLIP with MixCo, as MindEye uses them (Scotti et al. 2023)."""

from torch import Tensor
from torch.nn.functional import log_softmax, normalize, softmax


class SoftClip:
    """Contrastive prediction with soft labels.

    L = -1/2 [sum softmax(T T' / t) log_softmax(P T' / t) + sum softmax(T T' / t) log_softmax(T P' / t)] per sample, with P the
    predictions and T the targets, both L2-normalised, and t the temperature. Where the input was a mixture of two
    samples (MixCo, Kim et al. 2020), its label is the same mixture of their soft labels.

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
        labels = softmax(target @ target.T / self.temperature, 1)
        if partner is not None and weight is not None:
            labels = weight * labels + (1 - weight) * softmax(normalize(partner.float(), dim=1) @ target.T / self.temperature, 1)
        logits = predicted @ target.T / self.temperature
        columns = labels.T / labels.T.sum(1, keepdim=True)
        forward = (labels * log_softmax(logits, 1)).sum(1).mean()
        backward = (columns * log_softmax(logits.T, 1)).sum(1).mean()
        return -0.5 * (forward + backward)

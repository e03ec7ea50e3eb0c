"""Which subject an embedding comes from: to be known (a subject token), or to be forgotten."""

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from unimind.models.heads import reverse_gradient


class SubjectClassification:
    """Cross-entropy of the subject; the head's hidden layer is the subject token of the thesis (`ConditionStage`)."""

    def __call__(self, head: nn.Module, pooled: Tensor, subject: Tensor) -> Tensor:
        """Head, pooled embeddings (n, width), subject numbers (n,); a scalar."""
        return cross_entropy(head(pooled).float(), subject)


class SubjectAdversary:
    """Cross-entropy of a discriminator behind a gradient reversal (Ganin & Lempitsky 2015).

    The discriminator learns to tell subjects apart while the encoder learns to make that impossible.
    """

    def __call__(self, head: nn.Module, pooled: Tensor, subject: Tensor) -> Tensor:
        """Discriminator, pooled embeddings (n, width), subject numbers (n,); a scalar."""
        return cross_entropy(head(reverse_gradient(pooled)).float(), subject)

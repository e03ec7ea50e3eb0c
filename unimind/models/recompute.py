"""Layers whose activations may be computed twice instead of kept."""

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Recomputing(nn.Module):
    """A network that can give up its layers' activations in training and compute them again in the backward pass."""

    gradient_checkpointing = False

    def enable_gradient_checkpointing(self) -> None:
        """Recompute the layers' activations in the backward pass of training."""
        self.gradient_checkpointing = True

    def through(self, layers: nn.ModuleList, x: Tensor) -> Tensor:
        """What one layer after another makes of x."""
        for layer in layers:
            x = checkpoint(layer, x, use_reentrant=False) if self.gradient_checkpointing and self.training else layer(x)
        return x

"""Rows of a batch that several processes share, brought together again where a loss compares them with each other."""

import torch
from torch import Tensor, distributed

from unimind.training.batches import bounds_of


class _Shared(torch.autograd.Function):
    """Rows of all processes; the gradient reaches this process's own, weighted as the loop's sum over processes undoes."""

    @staticmethod
    def forward(context, own: Tensor, rows: int) -> Tensor:
        processes, rank = distributed.get_world_size(), distributed.get_rank()
        bounds = [bounds_of(rows, index, processes) for index in range(processes)]
        start, stop = bounds[rank]
        most = max(end - begin for begin, end in bounds)
        sent = own.new_zeros(most, *own.shape[1:])
        sent[: stop - start] = own
        received = [torch.empty_like(sent) for _ in bounds]
        distributed.all_gather(received, sent)
        context.own, context.weight = slice(start, stop), rows / (stop - start)
        return torch.cat([part[: end - begin] for part, (begin, end) in zip(received, bounds, strict=True)])

    @staticmethod
    def backward(context, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient[context.own] * context.weight, None


def gathered(own: Tensor, rows: int) -> Tensor:
    """This process's rows (n, ...) among those of all processes (`rows`, ...), in the batch's order and in single precision.

    Every process then computes the same loss of all rows. The gradient goes to a process's own rows alone, as in open_clip, and
    is divided by their share of the batch, with which `loop.train` weights a process's loss before it sums gradients over processes:
    the sum is the gradient of the loss of the whole batch.
    """
    return _Shared.apply(own.float(), rows)

"""Arithmetic of the networks: operations, parameters and layer outputs of a forward pass, without building one.

So a study's cost is known within a second and without torch. Operations are counted as `torch.utils.flop_counter` counts them: two for
every multiplication and addition of matrix products, convolutions and attention, nothing else.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ForwardPass:
    """One sample through a network.

    Attributes
    ----------
    flops : float
    parameters : int
    outputs : float
        Values that its layers put out, all together: what training keeps for the backward pass, but for a factor.
    layers : int
        Layers with weights, each a kernel or more on a card.
    largest : float
        Values of the largest output.
    """

    flops: float = 0.0
    parameters: int = 0
    outputs: float = 0.0
    layers: int = 0
    largest: float = 0.0

    def __add__(self, other: "ForwardPass") -> "ForwardPass":
        return ForwardPass(
            self.flops + other.flops, self.parameters + other.parameters, self.outputs + other.outputs, self.layers + other.layers,
            max(self.largest, other.largest),
        )  # fmt: skip

    def __mul__(self, times: int) -> "ForwardPass":
        """As many of it, one after the other."""
        return ForwardPass(self.flops * times, self.parameters * times, self.outputs * times, self.layers * times, self.largest)


NOTHING = ForwardPass()


def total(parts: Iterable[ForwardPass]) -> ForwardPass:
    """Networks one after the other."""
    return sum(parts, NOTHING)


def linear(a: int, b: int, rows: float = 1, bias: bool = True) -> ForwardPass:
    """A linear layer from a to b, for so many rows (tokens, positions)."""
    return ForwardPass(2 * a * b * rows, a * b + b * bias, b * rows, 1, b * rows)


def conv(a: int, b: int, kernel: int, positions: float, groups: int = 1) -> ForwardPass:
    """A convolution of so many kernel positions, with so many output positions."""
    return ForwardPass(2 * a * b * kernel * positions / groups, a * b * kernel // groups + b, b * positions, 1, b * positions)


def norm(width: int) -> ForwardPass:
    """A normalisation: parameters alone."""
    return ForwardPass(parameters=2 * width)


def attention(queries: float, keys: float, width: int) -> ForwardPass:
    """Products of queries and keys, and of weights and values."""
    return ForwardPass(4 * queries * keys * width)


# --- bodies -------------------------------------------------------------------------------------------------------


def block(width: int, ratio: float, tokens: float) -> ForwardPass:
    """A transformer block: attention, then two linear layers."""
    hidden = int(width * ratio)
    own = linear(width, 3 * width, tokens) + attention(tokens, tokens, width) + linear(width, width, tokens)
    return own + linear(width, hidden, tokens) + linear(hidden, width, tokens) + norm(width) * 2


def vit(channels: int, size: int, body: Any, shown: float = 1.0, decoder: bool = False) -> ForwardPass:
    """`models.vit`: of the patches, a share is shown to the encoder."""
    patches = size // body.patch
    tokens = 1 + patches - int(patches * (1 - shown) + 1e-9)
    parts = [conv(channels, body.width, body.patch, patches), ForwardPass(parameters=body.width), block(body.width, body.mlp_ratio, tokens) * body.depth]
    parts += [norm(body.width)]
    if decoder:
        width = body.decoder_width
        parts += [linear(body.width, width, tokens), block(width, body.mlp_ratio, patches + 1) * body.decoder_depth]
        parts += [norm(width), linear(width, body.patch * channels, patches + 1), ForwardPass(parameters=width)]
    return total(parts)


def convmixer(channels: int, size: int, body: Any, decoder: bool = False) -> ForwardPass:
    """`models.convmixer`."""
    patches, width = size // body.patch, body.width
    beside = ForwardPass(outputs=2 * width * patches)  # GELU and norm after each convolution keep as much again
    mixing = conv(width, width, body.kernel, patches, width) + linear(width, width, patches) + norm(width) * 2 + beside
    parts = [conv(channels, width, body.patch, patches), ForwardPass(parameters=width * patches), mixing * body.depth]
    if decoder:
        back = linear(width, channels * body.patch, patches, bias=False)
        parts += [mixing * body.decoder_depth, back, ForwardPass(parameters=channels + width)]
    return total(parts)


def mlp(size: int, body: Any) -> ForwardPass:
    """`models.bodies.MlpBody`."""
    return linear(size, body.width) + linear(body.width, body.width) * (body.depth - 1)


# --- diffusers' networks ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class UNet:
    """Shape of a `UNet2DConditionModel`; `attended`: transformer layers of every level, 0 where it has none."""

    channels: tuple[int, ...]
    attended: tuple[int, ...]
    cross: int
    layers: int = 2
    inputs: int = 4
    outputs: int = 4
    scale_shift: bool = False

    def work(self, side: int, context: int) -> ForwardPass:
        """A forward pass of a latent of that side under so many context tokens."""
        first = self.channels[0]
        parts = [conv(self.inputs, first, 9, side**2), linear(first, 4 * first), linear(4 * first, 4 * first)]
        skips, width = [first], first
        for level, channels in enumerate(self.channels):
            for _ in range(self.layers):
                parts += [self._resnet(width, channels, side), self._transformer(channels, side, context, self.attended[level])]
                width = channels
                skips.append(width)
            if level < len(self.channels) - 1:
                side = -(-side // 2)
                parts.append(conv(width, width, 9, side**2))
                skips.append(width)
        last = self.attended[-1] or 1
        parts += [self._resnet(width, width, side) * 2, self._transformer(width, side, context, last)]
        for level, channels in reversed(list(enumerate(self.channels))):
            for _ in range(self.layers + 1):
                parts += [self._resnet(width + skips.pop(), channels, side), self._transformer(channels, side, context, self.attended[level])]
                width = channels
            if level:
                side *= 2
                parts.append(conv(width, width, 9, side**2))
        return total([*parts, norm(width), conv(width, self.outputs, 9, side**2)])

    def _resnet(self, a: int, b: int, side: int) -> ForwardPass:
        own = norm(a) + conv(a, b, 9, side**2) + linear(4 * self.channels[0], 2 * b if self.scale_shift else b) + norm(b) + conv(b, b, 9, side**2)
        return own if a == b else own + conv(a, b, 1, side**2)

    def _transformer(self, width: int, side: int, context: int, depth: int) -> ForwardPass:
        if not depth:
            return NOTHING
        n = side**2
        within = linear(width, width, n, bias=False) * 3 + attention(n, n, width) + linear(width, width, n)
        across = (
            linear(width, width, n, bias=False) + linear(self.cross, width, context, bias=False) * 2 + attention(n, context, width) + linear(width, width, n)
        )
        wide = linear(width, 8 * width, n) + linear(4 * width, width, n)
        return norm(width) + linear(width, width, n) * 2 + (within + across + wide + norm(width) * 3) * depth


def coder(channels: Sequence[int], side: int, latent: int, layers: int, decodes: bool) -> ForwardPass:
    """Half of a convolutional autoencoder of Stable Diffusion's form, for pictures of that side; attention at the lowest resolution alone."""
    levels = list(channels)
    low = side // 2 ** (len(levels) - 1)

    def resnet(a: int, b: int, here: int) -> ForwardPass:
        return norm(a) + conv(a, b, 9, here**2) + norm(b) + conv(b, b, 9, here**2) + (NOTHING if a == b else conv(a, b, 1, here**2))

    top = levels[-1]
    middle = resnet(top, top, low) * 2 + linear(top, top, low**2) * 4 + attention(low**2, low**2, top) + norm(top)
    parts, width = [middle], top if decodes else levels[0]
    for level in reversed(range(len(levels))) if decodes else range(len(levels)):
        here = side // 2**level
        for _ in range(layers + decodes):
            parts.append(resnet(width, levels[level], here))
            width = levels[level]
        if decodes and level:
            parts.append(conv(width, width, 9, (2 * here) ** 2))
        if not decodes and level < len(levels) - 1:
            parts.append(conv(width, width, 9, (here // 2) ** 2))
    ends = [conv(latent, top, 9, low**2), conv(levels[0], 3, 9, side**2)] if decodes else [conv(3, levels[0], 9, side**2), conv(top, latent, 9, low**2)]
    return total([*parts, norm(width), *ends])


def adapted(unet: UNet) -> int:
    """Parameters that a condition stage trains of a UNet: its cross-attention with the norm before it."""
    count, last = 0, len(unet.channels) - 1
    for level, (width, depth) in enumerate(zip(unet.channels, unet.attended, strict=True)):
        blocks = depth * (2 * unet.layers + 1) + (level == last) * (depth or 1)
        count += blocks * (2 * width * width + 2 * unet.cross * width + width + 2 * width)
    return count


def clip(width: int, depth: int, patch: int, ratio: float = 4.0, side: int = 224) -> ForwardPass:
    """The image tower of a CLIP."""
    tokens = (side // patch) ** 2 + 1
    return conv(3, width, patch**2, tokens - 1) + block(width, ratio, tokens) * depth + ForwardPass(parameters=width * tokens) + norm(width) * 2


# --- closed forms, in operations of matrix products and factorisations --------------------------------------------


def ridge(n: float, voxels: float, targets: float, penalties: int, folds: int) -> float:
    """`models.ridge` on n pictures: a factorisation and its solutions for every penalty and fold, by rows or by voxels, whichever are fewer."""
    by_row, held = voxels > n, n / folds
    size, seen = (n, n - held) if by_row else (voxels, voxels)
    choice = penalties * folds * (factorised(seen, targets) + 2 * held * seen * targets)
    further = 0 if by_row else 2 * n * voxels * (voxels + (folds - 1) * targets)  # products of every fold's rows
    return 2 * n * voxels * (size + targets) + choice + further + factorised(size, targets)


def factorised(size: float, targets: float) -> float:
    """A Cholesky decomposition, and solutions by it."""
    return size**3 / 3 + 2 * size**2 * targets


def learned(voxels: float, features: float, iterations: int) -> float:
    """Expectation maximisation of `models.prior` over so many voxels: products into the axes, of what is found there, and back."""
    return iterations * 4 * features**2 * (voxels + features)


def decoded(n: float, voxels: float, targets: float, features: float, components: float, sketch: int) -> float:
    """`models.prior`: sums over n trials, posteriors, the mixture over components, and the solution of rank r that decodes."""
    rows = min(n, sketch)
    rank = rows + features
    of_voxel = n * features + 6 * features**2 + (1 + (n <= sketch)) * rows * features + 3 * components * features
    return 2 * voxels * (of_voxel + rank**2 + 2 * rank * features + features * targets) + factorised(rank, features)

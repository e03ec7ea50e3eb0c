"""A method's model: voxels enter, a shared body makes tokens of them, heads predict the picture's targets."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from unimind.errors import InputError
from unimind.models.bodies import PatchBody, build_body
from unimind.models.enter import Adapters, ClosedForm, Context, Embedders, FixedLength, Signals, by_subject
from unimind.models.heads import TargetHead
from unimind.models.prior import LinearMap
from unimind.models.space import PictureSpace
from unimind.models.voxels import VoxelAttention
from unimind.storage import load_model
from unimind.streams import placed

Enter = FixedLength | Adapters | Embedders | VoxelAttention | ClosedForm


class EncoderOutput(NamedTuple):
    """What a model makes of a batch.

    Attributes
    ----------
    tokens : Tensor
        (B, L, width), for cross-attention.
    pooled : Tensor
        (B, width), for alignment and the time condition.
    coordinates : dict of str to Tensor
        Target -> its predicted coordinates in the picture space, (B, k).
    retrieval : Tensor or None
        (B, k), coordinates of the image embedding that pictures are told apart by: the retrieval head's, where there is one; otherwise those predicted.
    centre : Tensor
        (B or 1, K), mean coordinates of the pictures that the subject is known to be shown: the training pictures' (zero), or a closed
        form's context's.
    signal : Tensor
        (B, C, size), what had entered.
    """

    tokens: Tensor
    pooled: Tensor
    coordinates: dict[str, Tensor]
    retrieval: Tensor | None
    centre: Tensor
    signal: Tensor


class Encoder(nn.Module):
    """Enter, body, heads.

    A closed form that enters predicts the coordinates itself; heads, which start at zero, add to them what the body learns. Without a
    closed form the heads' predictions are the body's alone: nothing goes around it. What a head adds to the image embedding counts, dimension
    by dimension, as much as the subject's own pictures vary there (`Context.variety`).

    Parameters
    ----------
    enter, body : mapping
        `Method.enter` and `Method.body` as dicts.
    space : PictureSpace
    targets : sequence of str
        Which targets have a head.
    n_voxels : mapping of str to int
        Voxels of each subject, by `subject_key`; used where each subject has a way of its own.
    channels : int
        Repeats of an image given side by side, else 1.
    retrieval_head : bool
        A second prediction of the image embedding, by a head of its own: pictures are told apart by it, and none is drawn from it.
    """

    def __init__(
        self, enter: Mapping[str, Any], body: Mapping[str, Any], space: PictureSpace, targets: Sequence[str], n_voxels: Mapping[str, int], channels: int = 1,
        retrieval_head: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.arguments: dict[str, Any] = {
            "enter": dict(enter), "body": dict(body), "space": space.arguments, "targets": list(targets), "n_voxels": dict(n_voxels), "channels": channels,
            "retrieval_head": retrieval_head,
        }  # fmt: skip
        self.space, self.channels = space, channels
        self.enter = placed("enter", lambda: build_enter(enter, n_voxels, space))
        self.body = placed("body", lambda: build_body(body, channels, self.enter.size))
        self.width = self.body.width

        def head(target: str) -> TargetHead:
            return placed(f"head of {target}", lambda: TargetHead(self.width, space.components[target]))

        self.heads = nn.ModuleDict({name: head(name) for name in targets if body["kind"] != "identity"})
        self.retrieval_head = head("embedding") if retrieval_head else None
        self.targets = tuple(targets)
        self.register_buffer("mean_tokens", torch.zeros(0))
        self.register_buffer("mean_pooled", torch.zeros(0))

    @property
    def closed(self) -> bool:
        """Whether signals are entered in closed form."""
        return isinstance(self.enter, ClosedForm)

    @property
    def per_subject(self) -> bool:
        """Whether voxels enter by something of the subject's own."""
        return isinstance(self.enter, (Adapters, Embedders, VoxelAttention))

    def own_parameters(self, subject: str) -> list[str]:
        """Names of the parameters that are one subject's alone."""
        return [f"enter.{name}" for name in self.enter.names(subject)] if isinstance(self.enter, (Adapters, Embedders, VoxelAttention)) else []

    def add_subject(self, subject: str, n_voxels: int) -> None:
        """Give a subject an adapter, an embedder, or vectors of its voxels."""
        assert isinstance(self.enter, (Adapters, Embedders, VoxelAttention))
        self.enter.add(subject, n_voxels)
        self.arguments["n_voxels"][subject] = n_voxels

    def take_map(self, subject: str, found: LinearMap, context: Context) -> None:
        """Take a subject's closed form."""
        assert isinstance(self.enter, ClosedForm)
        self.enter.take(subject, found, context)
        self.arguments["n_voxels"][subject] = len(found.weight)

    def from_signal(self, signal: Tensor, cut: bool = False, noise: Tensor | None = None) -> EncoderOutput:
        """What is made of an entered signal (B, C, size).

        With `cut` every row gets the body's mean output over the training pictures. `noise` (B, K) is added to the coordinates of a
        closed form that the body sees, in units of their spread; what the closed form itself predicts has none.
        """
        given, entered = None, signal
        centre, spread = self.space.spread.new_zeros(1, self.space.size), self.space.spread[None]
        if self.closed:
            given = Signals.of(signal, self.space.size)
            entered, centre, spread = given.white(), given.mean, given.spread
            if noise is not None:
                entered = entered + nn.functional.pad(noise, (0, 1))[:, None]
        if cut:
            tokens, pooled = (mean.expand(len(signal), *mean.shape) for mean in (self.mean_tokens, self.mean_pooled))
        else:
            tokens, pooled = self.body(entered)

        def predicted(target: str, head: nn.Module | None) -> Tensor:
            parts = [self.space.part(given.coordinates, target)] if given is not None else []
            if head is not None:
                added = self.space.part(spread, target) * head(pooled)
                parts.append(self.space.scaled(added, given.variety) if given is not None and target == "embedding" else added)
            return sum(parts[1:], parts[0])

        found = {name: predicted(name, self.heads[name] if name in self.heads else None) for name in self.targets}
        retrieval = found.get("embedding") if self.retrieval_head is None else predicted("embedding", self.retrieval_head)
        return EncoderOutput(tokens, pooled, found, retrieval, centre, signal)

    def narrowed(self, signal: Tensor, dimensions: int) -> Tensor:
        """A closed form's signal (B, 1, size) with `dimensions` coordinates of each target, the first ones; the others are those of its context's mean."""
        given, kept = Signals.of(signal, self.space.size), torch.zeros(self.space.size, dtype=torch.bool, device=signal.device)
        start = self.space.components["embedding"]
        for part in (kept[:start], kept[start:]):
            part[:dimensions] = True
        return given._replace(coordinates=torch.where(kept, given.coordinates, given.mean)).joined()

    def enter_rows(self, responses: Sequence[Tensor], subjects: Sequence[str]) -> Tensor:
        """Signals of rows of any subjects: B responses (R, V) and their subjects."""
        return by_subject(responses, subjects, self.enter)

    def forward(self, responses: Tensor | Sequence[Tensor], subject: str | Sequence[str] | None, cut: bool = False) -> EncoderOutput:
        """Encode responses of one subject (B, R, V), of any subjects row by row, or, without a subject, signals that have entered (B, C, size)."""
        if subject is None:
            assert isinstance(responses, Tensor)
            return self.from_signal(responses, cut)
        if isinstance(subject, str):
            return self.from_signal(self.enter(responses, subject), cut)
        return self.from_signal(self.enter_rows(responses, subject), cut)

    def predict(self, output: EncoderOutput, target: str) -> Tensor:
        """A predicted target: the image embedding as regressed (B, d), or the latent (B, c, h, w)."""
        return self.space.target(target, output.coordinates[target])

    def retrieval(self, output: EncoderOutput) -> Tensor | None:
        """The image embedding (B, d) that pictures are told apart by; None where none is predicted."""
        return None if output.retrieval is None else self.space.target("embedding", output.retrieval)

    def remember_body(self, signals: Sequence[Tensor]) -> None:
        """Keep the body's mean output over the training pictures, given their signals in batches: what `cut` puts in its place."""
        with torch.no_grad():
            parts = [(len(signal), self.from_signal(signal)) for signal in signals]
            count = sum(n for n, _ in parts)
            self.mean_tokens, self.mean_pooled = (sum(n * getattr(out, key).mean(0) for n, out in parts) / count for key in ("tokens", "pooled"))


def build_enter(settings: Mapping[str, Any], n_voxels: Mapping[str, int], space: PictureSpace) -> Enter:
    """The way of entering that a method's `enter` section asks for.

    Parameters
    ----------
    settings : mapping
        `Method.enter` as a dict.
    n_voxels : mapping
        Voxels of each subject, by `subject_key`.
    space : PictureSpace
    """
    kind = settings["kind"]
    if kind in ("ridge", "decoded"):
        return ClosedForm(space.size)
    size, dropout = settings["size"], settings["dropout"]
    own: Adapters | Embedders | VoxelAttention
    if kind == "adapter":
        own = Adapters(size, dropout)
    elif kind == "embedder":
        own = Embedders(size, settings["pooled"], settings["bottleneck"], dropout)
    elif kind == "voxel-tokens":
        own = VoxelAttention(size, settings["queries"], settings["vectors"], dropout, space)
    else:
        return FixedLength(kind, size, dropout)
    for subject, count in n_voxels.items():
        own.add(subject, count)
    return own


def build_encoder(arguments: Mapping[str, Any]) -> Encoder:
    """An encoder from its `arguments`, as a model directory records them; weights untrained."""
    return Encoder(**{**arguments, "space": PictureSpace(**arguments["space"])})


def encoder_state(encoder: Encoder, state: Mapping[str, Tensor]) -> None:
    """Load a state dict, buffers of any length included (closed forms, means of the body)."""
    own = dict(encoder.named_buffers())
    for name, tensor in state.items():
        holder, _, key = name.rpartition(".")
        if name not in own or own[name].shape != tensor.shape:
            if name in dict(encoder.named_parameters()):
                continue
            encoder.get_submodule(holder).register_buffer(key, torch.empty_like(tensor))
    encoder.load_state_dict(dict(state))


def load_encoder(directory: Path) -> tuple[Encoder, dict[str, Any]]:
    """The encoder of a model directory (weights under `encoder.`), in evaluation mode, and the directory's configuration.

    Raises
    ------
    InputError
        The directory is missing, broken, or holds no encoder.
    """
    state, config = load_model(directory)
    if "encoder" not in config:
        raise InputError(f"{directory}: holds no fMRI encoder (its config.json has no `encoder`); give a model of the enter, align, condition or adapt stage")
    encoder = build_encoder(config["encoder"])
    encoder_state(encoder, {name.removeprefix("encoder."): tensor for name, tensor in state.items() if name.startswith("encoder.")})
    return encoder.eval(), config


def load_trunk(encoder: Encoder, state: Mapping[str, Tensor], config: Mapping[str, Any], where: str) -> None:
    """Take over a pretrained trunk (weights under `trunk.`, the decoder left out).

    Pretraining has one channel; an encoder of several repeats starts with the stem's weights shared out among them.

    Raises
    ------
    InputError
        The trunk was pretrained with other settings.
    """
    assert isinstance(encoder.body, PatchBody)
    trunk = encoder.body.trunk
    given = {name.removeprefix("trunk."): tensor for name, tensor in state.items() if name.startswith("trunk.")}
    if config.get("trunk") != {"size": encoder.enter.size, "body": encoder.arguments["body"]}:
        raise InputError(f"{where}: pretrained with other `enter.size` or `body` settings than this method's; run the stage `pretrain` again")
    if encoder.channels > 1:
        given["stem.weight"] = given["stem.weight"].repeat(1, encoder.channels, 1) / encoder.channels
    trunk.load_state_dict({name: given[name] for name in trunk.state_dict()})

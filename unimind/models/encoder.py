"""fMRI encoders behind one interface: voxels of any length in, tokens and a pooled embedding out."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from unimind.errors import InputError
from unimind.models.convmixer import ConvMixerTrunk
from unimind.models.heads import EmbeddingHead
from unimind.models.vit import ViTTrunk
from unimind.storage import load_model

TRUNKS = {"convmixer": ConvMixerTrunk, "vit": ViTTrunk}


class EncoderOutput(NamedTuple):
    """Tokens (B, L, width) for the decoder and the pooled embedding (B, width) for alignment."""

    tokens: Tensor
    pooled: Tensor


def subject_key(dataset: str, subject: str) -> str:
    """Name of a subject's parameters within an encoder: `<data set>-<subject>`."""
    return f"{dataset}-{subject}"


class FmriEncoder(nn.Module):
    """Subject's voxels -> one length -> shared trunk -> tokens and pooled embedding -> image embedding.

    The pooled embedding is a linear map of the entered signal plus the gated mean token, and the head that predicts the
    image embedding has a linear path too. So a linear decoder is never out of reach: `start_linear_path` and
    `start_adapter` let training begin at one, and the trunk, whose gate opens from zero (ReZero, Bachlechner et al. 2021),
    learns what is added to it.

    Parameters
    ----------
    n_voxels : mapping of str to int
        Voxels of each subject, by `subject_key`. Only `voxels.length: adapter` uses the names.
    voxels : mapping
        `study.Voxels` as a dict: how voxels enter.
    encoder : mapping
        `study.ConvMixer` or `study.ViT` as a dict.
    embedding_dim : int
        Length of the image embedding.
    repeats : int
        Channels: repeats of an image given side by side (`voxels.repeats: channels`), else 1.
    """

    def __init__(self, n_voxels: Mapping[str, int], voxels: Mapping[str, Any], encoder: Mapping[str, Any], embedding_dim: int, repeats: int = 1) -> None:
        super().__init__()
        self.arguments: dict[str, Any] = {
            "n_voxels": dict(n_voxels),
            "voxels": dict(voxels),
            "encoder": dict(encoder),
            "embedding_dim": embedding_dim,
            "repeats": repeats,
        }
        self.length, self.size, self.channels = voxels["length"], voxels["size"], repeats
        self.dropout = nn.Dropout(voxels.get("dropout", 0.0))
        self.adapters = nn.ModuleDict()
        if self.length == "adapter":
            for subject, count in n_voxels.items():
                self.add_subject(subject, count)
        settings = {key: value for key, value in encoder.items() if key != "kind"}
        self.trunk = TRUNKS[encoder["kind"]](repeats, self.size, **settings)
        self.width = encoder["width"]
        self.skip = nn.Linear(repeats * self.size, self.width)
        self.gate = nn.Parameter(torch.zeros(self.width))
        self.head = EmbeddingHead(self.width, embedding_dim)
        self.register_buffer("signal_weight", torch.zeros(self.size, embedding_dim))
        self.register_buffer("signal_bias", torch.zeros(self.size))

    @staticmethod
    def _name(subject: str) -> str:
        """A module name for a subject: torch reserves dots and the names of a dict's methods."""
        return f"subject-{subject.replace('.', ',')}"

    def add_subject(self, subject: str, n_voxels: int) -> nn.Linear:
        """Give a subject a new adapter, which starts as linear interpolation (or averaging) to the common length."""
        adapter = self.adapters[self._name(subject)] = nn.Linear(n_voxels, self.size)
        self.arguments["n_voxels"][subject] = n_voxels
        self.interpolate_adapter(subject)
        return adapter

    def interpolate_adapter(self, subject: str) -> None:
        """Set a subject's adapter to linear interpolation (or averaging) to the common length."""
        adapter = self.adapters[self._name(subject)]
        with torch.no_grad():
            adapter.weight.copy_(interpolate(torch.eye(adapter.in_features)[:, None], self.size)[:, 0].T)
            adapter.bias.zero_()

    def start_linear_path(self, embeddings: Tensor) -> None:
        """Let the linear path span the principal components of the training pictures' embeddings (n, embedding_dim).

        Afterwards entered signal -> skip -> linear head is an isometry of k dimensions onto the first k components, k as large
        as `width`, entered length and pictures allow.
        """
        self.head.set_targets(embeddings)
        standard = (embeddings - self.head.mean) / self.head.scale
        k = min(embeddings.shape[1], self.width, self.size, len(embeddings) - 1)
        components = torch.linalg.svd(standard, full_matrices=False).Vh[:k]
        rows = torch.linalg.qr(torch.randn(self.size, k)).Q.T
        with torch.no_grad():
            self.head.linear.weight.zero_()
            self.head.linear.bias.zero_()
            self.head.linear.weight[:, :k] = components.T
            self.skip.weight[:k] = rows.repeat(1, self.channels) / self.channels
            self.skip.bias.zero_()

    def start_adapter(self, subject: str, weight: Tensor, bias: Tensor) -> None:
        """Let a subject's adapter start so that the linear path equals a given decoder; the rest of the signal stays as it is.

        Parameters
        ----------
        subject : str
        weight, bias : Tensor
            (n_voxels, embedding_dim) and (embedding_dim,), from responses to the standardised image embedding (zero mean, unit
            variance over the training pictures).
        """
        adapter = self.adapters[self._name(subject)]
        with torch.no_grad():
            path = self.head.linear.weight @ self.skip.weight.view(self.width, self.channels, self.size).sum(1)
            inverse = torch.linalg.pinv(path, rtol=1e-3)
            adapter.weight += inverse @ (weight.T - path @ adapter.weight)
            adapter.bias += inverse @ bias

    def set_adapter(self, subject: str, weight: Tensor, bias: Tensor) -> None:
        """Set a subject's adapter: weight (n_voxels, size), bias (size,)."""
        adapter = self.adapters[self._name(subject)]
        with torch.no_grad():
            adapter.weight.copy_(weight.T)
            adapter.bias.copy_(bias)

    def expected_signal(self, embeddings: Tensor) -> Tensor:
        """What the training subjects' entered signal is for given image embeddings (n, embedding_dim), by a linear model: (n, size)."""
        return ((embeddings - self.head.mean) / self.head.scale) @ self.signal_weight.T + self.signal_bias

    def adapter_names(self, subject: str) -> list[str]:
        """Names of the parameters that belong to one subject alone."""
        prefix = f"adapters.{self._name(subject)}."
        return [name for name, _ in self.named_parameters() if name.startswith(prefix)]

    def enter(self, responses: Tensor, subject: str) -> Tensor:
        """Bring responses to the common length.

        Parameters
        ----------
        responses : Tensor
            (B, R, V).
        subject : str
            `subject_key`.

        Returns
        -------
        Tensor
            (B, R, size).

        Raises
        ------
        InputError
            A subject without an adapter, or another number of voxels than it has.
        """
        responses = self.dropout(responses)
        if self.length == "adapter":
            name = self._name(subject)
            if name not in self.adapters:
                raise InputError(f"{subject}: this model has no adapter for that subject; adapt it first (`unimind adapt`), or list it under training_subjects")
            if responses.shape[-1] != self.adapters[name].in_features:
                raise InputError(
                    f"{subject}: {responses.shape[-1]} voxels given, the model was trained with {self.adapters[name].in_features}; "
                    "prepare it with the same ROIs and run the training again"
                )
            return self.adapters[name](responses)
        return bring_to(responses, self.size, self.length)

    def from_entered(self, entered: Tensor) -> EncoderOutput:
        """Tokens and pooled embedding of an entered signal (B, R, size)."""
        tokens = self.trunk(entered)
        return EncoderOutput(tokens, self.skip(entered.flatten(1)) + self.gate * tokens.mean(1))

    def forward(self, responses: Tensor | Sequence[Tensor], subject: str | Sequence[str]) -> EncoderOutput:
        """Encode responses of one subject (B, R, V), or of any subjects, row by row: B responses (R, V) and their subjects."""
        if isinstance(subject, str):
            assert isinstance(responses, Tensor)
            return self.from_entered(self.enter(responses, subject))
        rows: dict[str, list[int]] = {}
        for row, name in enumerate(subject):
            rows.setdefault(name, []).append(row)
        entered = torch.cat([self.enter(torch.stack([responses[row] for row in own]), name) for name, own in rows.items()])
        order = torch.tensor([row for own in rows.values() for row in own], device=entered.device)
        return self.from_entered(entered[order.argsort()])

    def embed(self, pooled: Tensor, normalise: bool = False) -> Tensor:
        """Predicted image embedding (B, embedding_dim), on request of unit length."""
        predicted = self.head(pooled)
        return nn.functional.normalize(predicted.float(), dim=-1) if normalise else predicted


def bring_to(x: Tensor, size: int, length: str) -> Tensor:
    """Bring responses (B, R, V) to (B, R, size) by `wrap`, `interpolate` or `max_pool`."""
    return {"wrap": wrap, "interpolate": interpolate, "max_pool": max_pool}[length](x, size)


def wrap(x: Tensor, size: int) -> Tensor:
    """Pad by repeating from the start, or cut: (..., V) -> (..., size)."""
    times = -(-size // x.shape[-1])
    return x.repeat(*[1] * (x.ndim - 1), times)[..., :size]


def interpolate(x: Tensor, size: int) -> Tensor:
    """Linear interpolation of a shorter signal, averages of neighbours of a longer one: (B, R, V) -> (B, R, size)."""
    if x.shape[-1] > size:
        return nn.functional.adaptive_avg_pool1d(x, size)
    return nn.functional.interpolate(x, size, mode="linear", align_corners=True)


def max_pool(x: Tensor, size: int) -> Tensor:
    """Adaptive max pooling (MindBridge): (B, R, V) -> (B, R, size); a shorter signal is spread by repetition."""
    return nn.functional.adaptive_max_pool1d(x, size)


def load_encoder(directory: Path) -> tuple[FmriEncoder, dict[str, Any]]:
    """The encoder of a model directory (weights under `encoder.`), in evaluation mode, and the directory's configuration.

    Raises
    ------
    InputError
        The directory is missing, broken, or holds no encoder.
    """
    state, config = load_model(directory)
    if "encoder" not in config:
        raise InputError(f"{directory}: holds no fMRI encoder (its config.json has no `encoder`); give a model of the align, condition or adapt stage")
    encoder = FmriEncoder(**config["encoder"])
    encoder.load_state_dict({name.removeprefix("encoder."): tensor for name, tensor in state.items() if name.startswith("encoder.")})
    return encoder.eval(), config


def load_trunk(encoder: FmriEncoder, state: Mapping[str, Tensor], config: Mapping[str, Any], where: str) -> None:
    """Take over a pretrained trunk (weights under `trunk.`, the decoder left out).

    Pretraining has one channel; an encoder of several repeats starts with the stem's weights shared out among them.

    Raises
    ------
    InputError
        The trunk was pretrained with other settings.
    """
    own = encoder.trunk.state_dict()
    given = {name.removeprefix("trunk."): tensor for name, tensor in state.items() if name.startswith("trunk.")}
    if config.get("trunk") != {"size": encoder.size, "encoder": encoder.arguments["encoder"]}:
        raise InputError(f"{where}: pretrained with other `voxels.size` or `encoder` settings than this method's; run the stage `pretrain` again")
    if encoder.channels > 1:
        given["stem.weight"] = given["stem.weight"].repeat(1, encoder.channels, 1) / encoder.channels
    encoder.trunk.load_state_dict({name: given[name] for name in own})

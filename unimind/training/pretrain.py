"""Stage `pretrain`: self-supervised pretraining of an encoder's trunk on fMRI without pictures."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from unimind.data.prepared import read_unpaired
from unimind.errors import InputError
from unimind.models.bodies import TRUNKS
from unimind.models.enter import bring_to
from unimind.study import Study, Voxels
from unimind.training.loop import drawn, fingerprint, generator, stream_seed, train, write_model
from unimind.training.objectives.masked import Autoencoding, MaskedModelling, draw_masks, masked_correlation, over_voxels

#: Share of every subject's samples, the last ones, that only watch training. The last: neighbours in time are alike.
HELD_OUT = 0.1
#: Samples held out at most per subject.
LIMIT = 256


def pretrain(study: Study, method: str, prepared: list[Path], checkpoints: Path, out: Path) -> None:
    """Write a pretrained trunk.

    The samples enter at the method's common length; where the method has an adapter per subject, by interpolation, which
    is also where adapters start. Validation reports the loss on held-out samples, the correlation of the predicted with the
    true signal on their hidden patches, and the same two numbers for predicting every voxel's training mean.

    Parameters
    ----------
    prepared : list of Path
        Files that `prepare-unpaired` wrote.
    """
    settings = study.method(method)
    stage = settings.pretrain
    if stage is None or not isinstance(settings.enter, Voxels):
        raise InputError(f"methods.{method}.pretrain: the method has none, so there is nothing to train in this stage")
    if not prepared:
        raise InputError("pretrain: no prepared files given; list the study's unpaired subjects")
    length = "interpolate" if settings.enter.kind == "adapter" else settings.enter.kind
    signals, held_out, means = [], [], []
    for path in prepared:
        with read_unpaired(path) as subject:
            split = subject.n_samples - max(1, int(HELD_OUT * subject.n_samples))
            if split < 1:
                raise InputError(f"{path}: {subject.n_samples} samples; at least two are needed to pretrain")
            own = bring_to(torch.from_numpy(subject.read(slice(None), settings.enter.order))[:, None], settings.enter.size, length)
        last = own[split:][np.linspace(0, len(own) - split - 1, min(LIMIT, len(own) - split)).round().astype(int)]
        signals.append(own[:split])
        held_out.append(last)
        means.append(own[:split].mean(0, keepdim=True).expand_as(last))
    signal, unseen, mean = torch.cat(signals), torch.cat(held_out), torch.cat(means)

    torch.manual_seed(stream_seed(study.seed, "pretrain"))
    arguments = settings.body.model_dump()
    trunk = TRUNKS[arguments["kind"]](1, settings.enter.size, decoder=True, **{key: value for key, value in arguments.items() if key != "kind"})
    objective = MaskedModelling() if stage.objective == "masked" else Autoencoding()
    masks = draw_masks(len(unseen), trunk.n_patches, stage.mask, generator(study.seed, "held-out masks"))
    size = stage.training.batch_size

    def draw(step: int) -> dict[str, Tensor]:
        index = drawn(len(signal), size, step, study.seed, "pretrain")
        return {"index": index, "signal": signal[index], "mask": draw_masks(size, trunk.n_patches, stage.mask, generator(study.seed, "mask", step))}

    def losses(module: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {stage.objective: objective(module, batch["signal"], batch["mask"])}

    def validate(module: nn.Module) -> dict[str, float]:
        return held_out_quality(module, unseen, mean, masks, size, stage.objective)

    mark = fingerprint(study, prepared, __name__)
    trained = train(
        trunk, draw=draw, losses=losses, settings=stage.training, seed=study.seed, checkpoints=checkpoints, fingerprint=mark,
        label=f"{settings.label or method}: pretrain on {len(signal)} samples", n_samples=len(signal), validate=validate,
    )  # fmt: skip
    config = {
        "kind": "pretrained", "method": method, "trunk": {"size": settings.enter.size, "body": arguments}, "length": length,
        "inputs": mark, "held_out": trained.validation,
    }  # fmt: skip
    write_model(out, {f"trunk.{name}": tensor for name, tensor in trunk.state_dict().items()}, config, trained, checkpoints)


def held_out_quality(trunk: nn.Module, signal: Tensor, mean: Tensor, masks: Tensor, size: int, objective: str) -> dict[str, float]:
    """How well hidden patches of unseen samples are predicted, beside predicting the mean.

    Parameters
    ----------
    signal, mean : Tensor
        (n, 1, size), unseen samples and each one's subject's mean over the training samples.
    masks : Tensor
        bool (n, n_patches).
    size : int
        Samples at a time.
    objective : str
        `masked` or `autoencode`: what is minimised comes first.

    Returns
    -------
    dict
        `masked` and `masked_of_mean` (mean squared error on hidden patches), `masked_correlation` and
        `masked_correlation_of_mean` (mean over samples); with `autoencode` also that error over the whole signal.
    """
    device = next(trunk.parameters()).device
    squared, correlation, whole = [], [], []
    of_mean_squared, of_mean_correlation = [], []
    for part in torch.arange(len(signal)).split(size):
        truth, mask, average = signal[part].to(device), masks[part].to(device), mean[part].to(device)
        hidden = over_voxels(mask, truth)
        guess = trunk.reconstruct(truth, mask).float()
        squared.append(((guess - truth).square() * hidden).sum((1, 2)) / hidden.sum((1, 2)))
        of_mean_squared.append(((average - truth).square() * hidden).sum((1, 2)) / hidden.sum((1, 2)))
        correlation.append(masked_correlation(truth, guess, hidden))
        of_mean_correlation.append(masked_correlation(truth, average, hidden))
        if objective == "autoencode":
            whole.append((trunk.reconstruct(truth).float() - truth).square().mean((1, 2)))
    values = {"masked": squared, "masked_of_mean": of_mean_squared, "masked_correlation": correlation, "masked_correlation_of_mean": of_mean_correlation}
    if whole:
        values = {"autoencode": whole, **values}
    return {name: float(torch.cat(parts).mean()) for name, parts in values.items()}

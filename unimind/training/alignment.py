"""The alignment losses on batches of several subjects: shared by the stages align and adapt."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unimind import study as settings
from unimind.models.encoder import FmriEncoder
from unimind.models.heads import SubjectHead
from unimind.models.ridge import solve
from unimind.storage import content_hash
from unimind.training.data import SubjectTrials, Targets
from unimind.training.loop import at_places, generator, stream_seed
from unimind.training.objectives.embedding import EmbeddingDistance
from unimind.training.objectives.siamese import Siamese, cross_subject_pairs, pseudo_labels, shuffled
from unimind.training.objectives.softclip import SoftClip
from unimind.training.objectives.subject import SubjectAdversary, SubjectClassification

#: Parameter of the Beta distribution of MixCo's weights, and the share of training in which inputs are mixed (MindEye).
MIXCO, MIXED_SHARE = 0.15, 1 / 3

#: Penalties and folds of the ridge regressions that adapters start at.
ALPHAS, FOLDS = tuple(float(10**k) for k in range(-1, 7)), 5


class Aligned(nn.Module):
    """An encoder with the heads that the chosen losses need.

    Parameters
    ----------
    encoder : FmriEncoder
    subjects : list of str
        Training subjects, by `subject_key`, in the order of their numbers.
    losses : study.Losses
    """

    def __init__(self, encoder: FmriEncoder, subjects: list[str], losses: settings.Losses) -> None:
        super().__init__()
        self.encoder = encoder
        self.subject = SubjectHead(encoder.width, len(subjects)) if losses.subject > 0 and len(subjects) > 1 else None
        self.discriminator = SubjectHead(encoder.width, len(subjects)) if losses.adversarial > 0 and len(subjects) > 1 else None


@dataclass
class AlignmentLosses:
    """Weighted terms of a batch; a callable for the training loop.

    A batch has the columns `subject` (names), `responses` (R, V), `embedding`, `partner` (n, d), `weight` (n, 1) and `index` (n,).
    The k-th rows of all subjects belong together: they make the cross-subject pairs.

    Parameters
    ----------
    losses : study.Losses
        Weights; a term of weight 0 is not computed.
    margin, temperature : float
    subjects : list of str
        In the order of their numbers.
    shuffle_labels : bool
        Ablation: pseudo-labels of the wrong pairs.
    """

    losses: settings.Losses
    margin: float
    temperature: float
    subjects: list[str]
    shuffle_labels: bool = False

    @property
    def compares_rows(self) -> bool:
        """Whether a term compares the rows of a batch with each other."""
        return self.losses.compares_rows

    def __call__(self, module: Aligned, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        weights, head = self.losses, module.encoder.head
        pooled = module.encoder(batch["responses"], batch["subject"]).pooled
        own, partner, weight = batch["embedding"], batch["partner"], batch["weight"]
        seen = weight * own + (1 - weight) * partner
        terms: dict[str, Tensor] = {}
        pairs = cross_subject_pairs(batch["subject"])
        if weights.siamese > 0 and pairs:
            first, second = (torch.tensor(side, device=pooled.device) for side in zip(*pairs, strict=True))
            labels = pseudo_labels(seen[first], seen[second], head.mean)
            terms["siamese"] = weights.siamese * Siamese(self.margin)(pooled[first], pooled[second], shuffled(labels) if self.shuffle_labels else labels)
        if weights.embedding > 0 or weights.softclip > 0:
            predicted = module.encoder.embed(pooled)
        if weights.embedding > 0:
            terms["embedding"] = weights.embedding * EmbeddingDistance()(predicted, seen, head.scale)
        if weights.softclip > 0:
            standard = [(x.float() - head.mean) / head.scale for x in (predicted, own, partner)]
            terms["softclip"] = weights.softclip * SoftClip(self.temperature)(standard[0], standard[1], standard[2], weight)
        if module.subject is not None or module.discriminator is not None:
            numbers = torch.tensor([self.subjects.index(name) for name in batch["subject"]], device=pooled.device)
        if module.subject is not None:
            terms["subject"] = weights.subject * SubjectClassification()(module.subject, pooled, numbers)
        if module.discriminator is not None:
            terms["adversarial"] = weights.adversarial * SubjectAdversary()(module.discriminator, pooled, numbers)
        return terms


def draw_rows(trials: SubjectTrials, targets: Targets, places: Tensor, step: int, seed: int, mixed: bool) -> dict[str, Tensor]:
    """One subject's part of a batch: pictures without replacement within an epoch, in an order of the subject's own.

    Parameters
    ----------
    places : Tensor
        int64 (n,), places in the subject's sequence of rows, such as `turns` gives.
    step, seed : int
        Decide everything that is random.
    mixed : bool
        MixCo (Kim et al. 2020): each response and a random other one of the batch are averaged with a random weight.
    """
    rows = len(places)
    chosen = at_places(len(trials.images("train")), places, seed, trials.key)
    images, responses = trials.draw("train", chosen, step, seed)
    embedding = targets(images)
    weight, partner = torch.ones(rows, 1), embedding
    if mixed:
        order = torch.randperm(rows, generator=generator(seed, trials.key, "mix", step))
        shares = np.random.default_rng(stream_seed(seed, trials.key, "weight", step)).beta(MIXCO, MIXCO, (rows, 1))
        weight = torch.from_numpy(shares.astype(np.float32))
        responses = weight[..., None] * responses + (1 - weight[..., None]) * responses[order]
        partner = embedding[order]
    return {"responses": responses, "embedding": embedding, "partner": partner, "weight": weight, "index": torch.from_numpy(images.astype(np.int64))}


def start_at_ridge(encoder: FmriEncoder, subjects: Mapping[str, tuple[SubjectTrials, Targets]], seed: int) -> None:
    """Let every subject's adapter start at its own ridge regression to the image embedding, penalties by cross-validation.

    Ridge is fitted to the training split only, so validation stays unseen. Training then starts where a linear decoder
    ends, and keeps those weights unless validation finds better ones.
    """
    for name, (trials, targets) in subjects.items():
        images, responses = trials.all("train")
        standard = (targets(images) - encoder.head.mean) / encoder.head.scale
        encoder.start_adapter(name, *(torch.from_numpy(array) for array in ridge(responses.mean(1), standard, seed)))


def remember_signal(encoder: FmriEncoder, subjects: Mapping[str, tuple[SubjectTrials, Targets]], seed: int) -> None:
    """Store the linear model of the training subjects' entered signal given the image embedding (ridge, all subjects together)."""
    device = encoder.head.mean.device
    signals, standard = [], []
    with torch.no_grad():
        for name, (trials, targets) in subjects.items():
            images, responses = trials.all("train")
            signals.append(encoder.enter(responses.mean(1, keepdim=True).to(device), name)[:, 0].cpu())
            standard.append((targets(images) - encoder.head.mean.cpu()) / encoder.head.scale.cpu())
        weight, bias = (torch.from_numpy(array).to(device) for array in ridge(torch.cat(standard), torch.cat(signals), seed))
        encoder.signal_weight.copy_(weight.T)
        encoder.signal_bias.copy_(bias)


def start_at_signal(encoder: FmriEncoder, name: str, trials: SubjectTrials, targets: Targets, whole: bool, *, seed: int) -> None:
    """Let a new subject's adapter start at ridge regression to the signal the training subjects would have had for its pictures.

    Parameters
    ----------
    whole : bool
        From training and validation trials, or from the training trials alone.
    """
    parts = [trials.all(split) for split in (("train", "validation") if whole else ("train",)) if len(trials.images(split))]
    images, responses = np.concatenate([part[0] for part in parts]), torch.cat([part[1] for part in parts])
    device = encoder.head.mean.device
    weight, bias = ridge(responses.mean(1), encoder.expected_signal(targets(images).to(device)).cpu(), seed)
    encoder.set_adapter(name, torch.from_numpy(weight), torch.from_numpy(bias))


def ridge(inputs: Tensor, targets: Tensor, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Ridge regression with a penalty per target by cross-validation: weight (inputs, targets) and bias (targets,)."""
    mean = inputs.double().mean(0)
    weight, bias = solve((inputs - mean).numpy(), targets.numpy(), ALPHAS, FOLDS, seed)
    return weight, (bias - mean.numpy() @ weight).astype(np.float32)


def linear_path_rate(name: str) -> float:
    """Factor on the learning rate of a parameter when training starts at ridge regression: the linear path moves ten times slower than the rest."""
    return 0.1 if any(part in name for part in ("encoder.adapters.", "encoder.skip.", "encoder.head.linear.")) else 1.0


def held_out(subjects: Mapping[str, tuple[SubjectTrials, Targets]], limit: int = 512) -> dict[str, tuple[Tensor, Tensor]]:
    """Validation responses and image embeddings of every subject that has some."""
    found = {}
    for name, (trials, targets) in subjects.items():
        images, responses = trials.all("validation", limit)
        if len(images):
            found[name] = (responses, targets(images))
    return found


def validation(encoder: FmriEncoder, parts: Mapping[str, tuple[Tensor, Tensor]], size: int) -> dict[str, float]:
    """Held-out embedding distance (first: it is what is minimised) and two-way identification, averaged over subjects.

    One picture identifies nothing: without two of a subject, identification is left out.
    """
    device = encoder.head.mean.device
    distances, identified = [], []
    for name, (responses, embedding) in parts.items():
        predicted = torch.cat([encoder.embed(encoder(part.to(device), name).pooled).float() for part in responses.split(size)])
        embedding = embedding.to(device)
        distances.append(float(EmbeddingDistance()(predicted, embedding, encoder.head.scale)))
        if len(embedding) > 1:
            centre = embedding.mean(0)  # of this subject's pictures: what they share identifies none of them
            identified.append(two_way((predicted - centre) / encoder.head.scale, (embedding - centre) / encoder.head.scale))
    return {"embedding": float(np.mean(distances))} | ({"identification": float(np.mean(identified))} if identified else {})


def two_way(predicted: Tensor, truth: Tensor) -> float:
    """Share of pairs of pictures in which a prediction (n, d) correlates more with its own picture than with the other; chance .5. At least two."""
    standard = [nn.functional.normalize(x.double() - x.double().mean(1, keepdim=True), dim=1) for x in (predicted, truth)]
    similarity = standard[0] @ standard[1].T
    own = similarity.diag()[:, None]
    wins = (own > similarity).double() + 0.5 * (own == similarity).double()
    return float((wins.sum() - 0.5 * len(own)) / (len(own) * (len(own) - 1)))


def trained_config(kind: str, composition: settings.Method, encoder: FmriEncoder, **more: Any) -> dict[str, Any]:
    """Configuration of a model directory that holds an encoder."""
    return {"kind": kind, "encoder": encoder.arguments, "study": content_hash(composition.model_dump(mode="json")), **more}

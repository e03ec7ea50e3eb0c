"""The alignment losses on batches of several subjects: shared by the stages align and adapt."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from unimind import study as settings
from unimind.identification import two_way
from unimind.models.encoder import Encoder
from unimind.models.enter import Adapters, Embedders, module_name
from unimind.models.heads import SubjectHead
from unimind.models.ridge import fit_ridge
from unimind.streams import placed
from unimind.training.data import EnteredSignals, PictureCoordinates, SubjectTrials, encoded
from unimind.training.gathering import gathered
from unimind.training.loop import at_places, generator, stream_seed
from unimind.training.objectives.coordinates import coordinate_distance
from unimind.training.objectives.cycle import Cycle, Reconstruction
from unimind.training.objectives.siamese import Siamese, cross_subject_pairs, pseudo_labels, shuffled
from unimind.training.objectives.softclip import SoftClip
from unimind.training.objectives.subject import SubjectAdversary, SubjectClassification

#: Parameter of the Beta distribution of MixCo's weights (MindEye).
MIXCO = 0.15

#: Of the cosines that validation names pictures by; the one that suits predictions best counts, so that sure ones are not preferred to right ones.
TEMPERATURES = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 100.0)

#: Penalties and folds of the ridge regressions that adapters start at.
ALPHAS, FOLDS = tuple(float(10**k) for k in range(-1, 7)), 5


class Aligned(nn.Module):
    """An encoder with the heads that the chosen losses need.

    Parameters
    ----------
    encoder : Encoder
    subjects : list of str
        Training subjects, by `subject_key`, in the order of their numbers.
    losses : study.Losses
    """

    def __init__(self, encoder: Encoder, subjects: list[str], losses: settings.Losses) -> None:
        super().__init__()
        self.encoder = encoder

        def head() -> SubjectHead:
            return SubjectHead(encoder.width, len(subjects))

        self.subject = placed("subject", head) if losses.subject > 0 and len(subjects) > 1 else None
        self.discriminator = placed("discriminator", head) if losses.adversarial > 0 and len(subjects) > 1 else None
        builds = isinstance(encoder.enter, Embedders) and losses.reconstruction + losses.cycle > 0
        self.builders = nn.ModuleDict({module_name(name): placed(f"builder of {name}", encoder.enter.builder) for name in subjects} if builds else {})


@dataclass
class AlignmentLosses:
    """Weighted terms of a batch; a callable for the training loop.

    A batch has the columns `subject` (names), `responses` (R, V) or entered signals, `coordinates`, `partner` (n, K), `weight` (n, 1) and
    `index` (n,); with the cycle loss also `other`, another subject, and where subjects
    enter by a part of their pictures `enters`, the name of the part. The k-th rows of all subjects belong together: they make the cross-subject pairs.

    Parameters
    ----------
    losses : study.Losses
        Weights; a term of weight 0 is not computed.
    margin, temperature : float
    subjects : list of str
        In the order of their numbers.
    shuffle_labels : bool
        Ablation: pseudo-labels of the wrong pairs.
    noise : float
        Added to what a body sees of a closed form's signals, in units of the context's spread.
    """

    losses: settings.Losses
    margin: float
    temperature: float
    subjects: list[str]
    shuffle_labels: bool = False
    noise: float = 0.0

    @property
    def sharing(self) -> dict[str, Any]:
        """What `loop.train` is told of rows that are compared with each other."""
        return {"compares_rows": self.losses.compares_rows, "gathers": ("subject", "coordinates", "partner", "weight")}

    def __call__(self, module: Aligned, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        weights, space = self.losses, module.encoder.space
        output = encoded(module.encoder, batch, self.noise * batch["noise"] if self.noise > 0 else None)
        pooled, seen = output.pooled, _seen(batch)
        terms: dict[str, Tensor] = {}
        compared = batch.get("whole", batch)  # rows that are compared with each other: other processes' too

        def among_all(rows: Tensor) -> Tensor:
            return gathered(rows, len(compared["coordinates"])) if "whole" in batch else rows

        pairs = cross_subject_pairs(compared["subject"])
        if weights.siamese > 0 and pairs:
            first, second = (torch.tensor(side, device=pooled.device) for side in zip(*pairs, strict=True))
            one, other = (space.target("embedding", space.part(_seen(compared)[side], "embedding")) for side in (first, second))
            labels, every = pseudo_labels(one, other, space.embedding_mean), among_all(pooled)
            terms["siamese"] = weights.siamese * Siamese(self.margin)(every[first], every[second], shuffled(labels) if self.shuffle_labels else labels)
        for name in ("embedding", "latent"):
            if getattr(weights, name) > 0:
                distance = coordinate_distance(output.coordinates[name], space.part(seen, name), space.part(space.spread[None], name))
                terms[name] = getattr(weights, name) * distance
        if weights.softclip > 0:
            assert output.retrieval is not None
            centre = among_all(space.part(output.centre, "embedding").expand(len(pooled), -1))
            found = among_all(output.retrieval.float()) - centre
            truth, other = (space.part(compared[side], "embedding") - centre for side in ("coordinates", "partner"))
            terms["softclip"] = weights.softclip * SoftClip(self.temperature)(found, truth, other, compared["weight"])
        if module.subject is not None or module.discriminator is not None:
            numbers = torch.tensor([self.subjects.index(name) for name in batch["subject"]], device=pooled.device)
        if module.subject is not None:
            terms["subject"] = weights.subject * SubjectClassification()(module.subject, pooled, numbers)
        if module.discriminator is not None:
            terms["adversarial"] = weights.adversarial * SubjectAdversary()(module.discriminator, pooled, numbers)
        terms |= self._built(module, output.signal, batch)
        return terms

    def _built(self, module: Aligned, signal: Tensor, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Terms of signals built back: means over the rows whose subjects have builders, of which a part of a batch has more or fewer than its share."""
        builders = {name: module.builders[module_name(name)] for name in self.subjects if module_name(name) in module.builders}
        subjects, enter = batch["subject"], module.encoder.enter
        everybody = batch.get("whole", batch)["subject"]
        rows, among = ([row for row, name in enumerate(part) if name in builders] for part in (subjects, everybody))
        if not among or not isinstance(enter, Embedders):
            return {}
        own, terms = [subjects[row] for row in rows], {}
        share = len(rows) / len(subjects) * len(everybody) / len(among)
        if self.losses.reconstruction > 0:
            found = Reconstruction()(enter, builders, signal[rows], [batch["responses"][row] for row in rows], own) if rows else signal.new_zeros(())
            terms["reconstruction"] = self.losses.reconstruction * share * found
        if self.losses.cycle > 0 and len(builders) > 1:
            found = Cycle()(enter, builders, signal[rows], [batch["other"][row] for row in rows]) if rows else signal.new_zeros(())
            terms["cycle"] = self.losses.cycle * share * found
        return terms


def _seen(batch: Mapping[str, Any]) -> Tensor:
    """Coordinates of what was seen: of a mixture of two pictures, the same mixture."""
    return batch["weight"] * batch["coordinates"] + (1 - batch["weight"]) * batch["partner"]


def with_others(batch: dict[str, Any], subjects: list[str], step: int, seed: int) -> dict[str, Any]:
    """A batch with, for each row, another subject: `other`."""
    turn = int(torch.randint(1, len(subjects), (), generator=generator(seed, "other", step))) if len(subjects) > 1 else 0
    return batch | {"other": [subjects[(subjects.index(name) + turn) % len(subjects)] for name in batch["subject"]]}


def draw_rows(
    trials: SubjectTrials | EnteredSignals, targets: PictureCoordinates, places: Tensor, step: int, seed: int, mixed: bool, among: Tensor | None = None
) -> dict[str, Tensor]:
    """One subject's part of a batch: pictures without replacement within an epoch, in an order of the subject's own.

    Parameters
    ----------
    places : Tensor
        int64 (n,), places in the subject's sequence of rows, such as `turns` gives.
    step, seed : int
        Decide everything that is random.
    mixed : bool
        MixCo (Kim et al. 2020): each response and a random other one of the batch are averaged with a random weight.
    among : Tensor, optional
        Positions of the training pictures to draw from; by default all.
    """
    rows = len(places)
    if among is None:
        chosen = at_places(len(trials.images("train")), places, seed, trials.key)
    else:
        chosen = among[at_places(len(among), places, seed, trials.key)]
    images, responses = trials.draw("train", chosen, step, seed)
    coordinates = targets.coordinates(images)
    weight, partner = torch.ones(rows, 1), coordinates
    if mixed:
        order = torch.randperm(rows, generator=generator(seed, trials.key, "mix", step))
        shares = np.random.default_rng(stream_seed(seed, trials.key, "weight", step)).beta(MIXCO, MIXCO, (rows, 1))
        weight = torch.from_numpy(shares.astype(np.float32))
        responses = weight[..., None] * responses + (1 - weight[..., None]) * responses[order]
        partner = coordinates[order]
    columns = {"responses": responses, "coordinates": coordinates, "partner": partner, "weight": weight, "index": torch.from_numpy(images.astype(np.int64))}
    if isinstance(trials, EnteredSignals):
        columns["noise"] = torch.randn(coordinates.shape, generator=generator(seed, trials.key, "noise", step))
    return columns


def remember_signal(encoder: Encoder, subjects: Mapping[str, tuple[Any, PictureCoordinates]], seed: int) -> None:
    """Store the linear model of the training subjects' entered signal given a picture's coordinates (ridge, all subjects together)."""
    assert isinstance(encoder.enter, Adapters)
    device = encoder.space.embedding_mean.device
    signals, coordinates = [], []
    with torch.no_grad():
        for name, (trials, targets) in subjects.items():
            images, responses = trials.all("train")
            signals.append(encoder.enter(responses.mean(1, keepdim=True).to(device), name)[:, 0].cpu())
            coordinates.append(targets.coordinates(images))
        weight, bias = ridge_map(torch.cat(coordinates), torch.cat(signals), seed)
        encoder.enter.remember(torch.from_numpy(weight).to(device), torch.from_numpy(bias).to(device))


def start_at_signal(encoder: Encoder, name: str, trials: SubjectTrials, targets: PictureCoordinates, whole: bool, *, seed: int) -> None:
    """Let a new subject's adapter start at ridge regression to the signal the training subjects would have had for its pictures.

    Parameters
    ----------
    whole : bool
        From training and validation trials, or from the training trials alone.
    """
    assert isinstance(encoder.enter, Adapters)
    parts = [trials.all(split) for split in (("train", "validation") if whole else ("train",)) if len(trials.images(split))]
    images, responses = np.concatenate([part[0] for part in parts]), torch.cat([part[1] for part in parts])
    expected = encoder.enter.expected(targets.coordinates(images).to(encoder.enter.signal_bias.device)).cpu()
    weight, bias = ridge_map(responses.mean(1), expected, seed)
    encoder.enter.set(name, torch.from_numpy(weight), torch.from_numpy(bias))


def ridge_map(inputs: Tensor, targets: Tensor, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Ridge regression with a penalty per target by cross-validation: weight (inputs, targets) and bias (targets,)."""
    found = fit_ridge(inputs.numpy(), targets.numpy(), ALPHAS, FOLDS, seed)
    return found.weight, found.bias


def held_out(subjects: Mapping[str, tuple[SubjectTrials | EnteredSignals, PictureCoordinates]], limit: int = 512) -> dict[str, tuple[Tensor, NDArray]]:
    """Validation responses, or signals at all sizes of contexts, and their stimulus indices, of every subject that has some."""
    found = {}
    for name, (trials, _) in subjects.items():
        images, responses = trials.all("validation", limit) if isinstance(trials, SubjectTrials) else trials.drawn_validation(limit)
        if len(images):
            found[name] = (responses, images)
    return found


def validation(
    encoder: Encoder, parts: Mapping[str, tuple[Tensor, NDArray]], subjects: Mapping[str, tuple[Any, PictureCoordinates]], size: int
) -> dict[str, float]:
    """How well held-out pictures are told apart, averaged over subjects.

    First, what is minimised: `retrieval`, the cross-entropy of naming the right one of the subject's held-out pictures by the cosine of
    predicted (`EncoderOutput.retrieval`) and true coordinates, about the mean of the pictures shown (`EncoderOutput.centre`), at the
    temperature that suits it best: ln n for n pictures that cannot be told apart. Like identification it does not depend on the
    predictions' length, which contrastive losses are free to change; unlike it, it is smooth for few pictures. Then the distance that is
    trained, and two-way identification.
    One picture is told from no other: only the distance is left. All are of the image embedding or, where none is predicted, of the
    latent.
    """
    space, target = encoder.space, encoder.targets[0]
    device = space.embedding_mean.device
    retrieved, distances, identified = [], [], []
    for name, (responses, images) in parts.items():
        found = [encoder(part.to(device), None if encoder.closed else name) for part in responses.split(size)]
        own = torch.cat([out.coordinates[target] for out in found]).float()
        shown = space.part(torch.cat([out.centre.expand(len(out.pooled), -1) for out in found]), target)
        pictures, place = np.unique(images, return_inverse=True)
        candidates = space.part(subjects[name][1].coordinates(pictures).to(device), target)
        right = torch.from_numpy(place).to(device)
        distances.append(float(coordinate_distance(own, candidates[right], space.part(space.spread[None], target))))
        if len(pictures) > 1:
            middle = shown.mean(0)
            own = own if found[0].retrieval is None else torch.cat([out.retrieval for out in found]).float()
            cosine = torch.nn.functional.normalize(own - shown, dim=1) @ torch.nn.functional.normalize(candidates - middle, dim=1).T
            retrieved.append(min(float(torch.nn.functional.cross_entropy(cosine / temperature, right)) for temperature in TEMPERATURES))
            identified.append(told_apart(own - shown, candidates[right] - shown))
    values = {target: float(np.mean(distances))}
    return {"retrieval": float(np.mean(retrieved)), **values, "identification": float(np.mean(identified))} if retrieved else values


def told_apart(predicted: Tensor, truth: Tensor) -> float:
    """Two-way identification of pictures (n, d) among each other by the correlation of predictions (n, d) with them; chance .5. At least two."""
    centred = [x.double() - x.double().mean(1, keepdim=True) for x in (predicted, truth)]
    standard = [x / x.norm(dim=1, keepdim=True) for x in centred]
    return float(two_way((standard[0] @ standard[1].T).T.cpu().numpy()).mean())


def trained_config(kind: str, encoder: Encoder, **more: Any) -> dict[str, Any]:
    """Configuration of a model directory that holds an encoder."""
    return {"kind": kind, "encoder": encoder.arguments, **more}

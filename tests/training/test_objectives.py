"""Every loss against its formula by hand, and the defects a loss can have: blind to its labels, or without a gradient."""

import numpy as np
import pytest
import torch
from torch import nn

from unimind.models.convmixer import ConvMixerTrunk
from unimind.models.heads import SubjectHead, reverse_gradient
from unimind.training.loop import generator
from unimind.training.objectives.coordinates import coordinate_distance
from unimind.training.objectives.denoising import draw_noise
from unimind.training.objectives.masked import Autoencoding, MaskedModelling, draw_masks, masked_correlation, over_voxels
from unimind.training.objectives.siamese import Siamese, cross_subject_pairs, pseudo_labels, shuffled
from unimind.training.objectives.softclip import SoftClip


@pytest.fixture
def pair():
    torch.manual_seed(0)
    return torch.randn(6, 5, requires_grad=True), torch.randn(6, 5)


def test_siamese_is_its_formula(pair):
    first, second = pair
    similarity = torch.rand(6)
    expected = []
    for a, b, s in zip(first.detach().numpy(), second.numpy(), similarity.numpy(), strict=True):
        d = np.linalg.norm(a / np.linalg.norm(a) - b / np.linalg.norm(b))
        expected.append(s * d**2 + (1 - s) * max(1.3 - d, 0) ** 2)
    assert Siamese(1.3)(first, second, similarity).item() == pytest.approx(np.mean(expected), rel=1e-5)


def test_value_and_gradient_of_siamese_change_with_the_pseudo_label(pair):
    first, second = pair
    values, gradients = [], []
    for label in (0.0, 0.5, 1.0):
        loss = Siamese(1.5)(first, second, torch.full((6,), label))
        values.append(loss.item())
        gradients.append(torch.autograd.grad(loss, first)[0])
    assert len({round(value, 4) for value in values}) == 3
    assert (gradients[0] - gradients[1]).abs().max() > 1e-2 and (gradients[1] - gradients[2]).abs().max() > 1e-2
    assert (gradients[0] * gradients[2]).sum() < 0  # unlike pictures push apart, like ones pull together


@pytest.mark.parametrize("label", [0.2, 0.7])
def test_siamese_is_smallest_where_distance_is_what_the_label_says(label):
    angles = torch.linspace(0.01, 3.1, 2000)
    distances = 2 * torch.sin(angles / 2)
    first, second = torch.stack([angles.cos(), angles.sin()], 1), torch.tensor([[1.0, 0.0]])
    values = torch.stack([Siamese(1.0)(row[None], second, torch.tensor([label])) for row in first])
    assert distances[values.argmin()].item() == pytest.approx(1 - label, abs=0.01)


def test_siamese_has_a_finite_gradient_for_equal_embeddings():
    same = torch.ones(2, 3, requires_grad=True)
    Siamese()(same, torch.ones(2, 3), torch.zeros(2)).backward()
    assert torch.isfinite(same.grad).all()


def test_pairs_are_of_different_subjects():
    """The k-th row of each subject with the k-th of each other."""
    subjects = ["a", "b", "a", "c", "b", "a"]
    assert sorted(map(sorted, cross_subject_pairs(subjects))) == [[0, 1], [0, 3], [1, 3], [2, 4]]
    assert cross_subject_pairs(["a", "a"]) == []


def test_pseudo_labels_are_centred_cosines():
    random = np.random.default_rng(0)
    first, second = random.normal(size=(2, 9, 4)) + 5
    expected = [max(0, np.dot(a - 5, b - 5) / np.linalg.norm(a - 5) / np.linalg.norm(b - 5)) for a, b in zip(first, second, strict=True)]
    found = pseudo_labels(torch.tensor(first), torch.tensor(second), torch.full((4,), 5.0))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6, atol=1e-8)


def test_shuffled_labels_belong_to_other_pairs():
    labels = torch.arange(5.0)
    assert sorted(shuffled(labels).tolist()) == labels.tolist() and not (shuffled(labels) == labels).any()


def test_the_distance_of_coordinates_is_one_for_the_mean_and_zero_for_the_truth():
    target = torch.randn(500, 7) * torch.arange(1, 8) + 3
    spread = target.std(0, correction=0)[None]
    assert coordinate_distance(target.mean(0).expand_as(target), target, spread).item() == pytest.approx(1, rel=1e-5)
    assert coordinate_distance(target, target, spread).item() == 0
    predicted = target + torch.randn(500, 7)
    explained = 1 - ((predicted - target) ** 2).mean(0).sum() / target.var(0, correction=0).sum()
    assert coordinate_distance(predicted, target, spread).item() == pytest.approx(1 - explained.item(), rel=1e-4)


def distribution(one, others):
    """How one vector is shared out among others: softmax of their cosines over 0.1."""
    values = np.exp([np.dot(one, other) / np.linalg.norm(one) / np.linalg.norm(other) / 0.1 for other in others])
    return values / values.sum()


def test_softclip_is_its_formula(pair):
    """MindEye's: the targets' likenesses are the labels of both directions."""
    predicted, target = (x.detach().double().numpy() for x in pair)
    terms = [
        distribution(t, target) @ (np.log(distribution(p, target)) + np.log(distribution(t, predicted))) / 2 for p, t in zip(predicted, target, strict=True)
    ]
    assert SoftClip(0.1)(*pair).item() == pytest.approx(-np.mean(terms), rel=1e-5)


def test_softclip_with_mixed_inputs_is_its_formula(pair):
    predicted, target = (x.detach().double().numpy() for x in pair)
    partner, share = np.roll(target, 1, 0), np.linspace(0.1, 0.9, len(target))
    total = 0.0
    for row in range(len(target)):
        of_prediction = share[row] * distribution(target[row], target) + (1 - share[row]) * distribution(partner[row], target)
        of_target = share * distribution(target[row], target) + (1 - share) * distribution(target[row], partner)
        total -= (of_prediction @ np.log(distribution(predicted[row], target)) + of_target @ np.log(distribution(target[row], predicted))) / 2
    found = SoftClip(0.1)(*pair, torch.tensor(partner), torch.tensor(share)[:, None])
    assert found.item() == pytest.approx(total / len(target), rel=1e-5)


def test_softclip_with_mixed_inputs_lies_between_the_two_labels(pair):
    predicted, target = pair
    partner = target.roll(1, 0)
    values = [SoftClip(0.1)(predicted, target, partner, torch.full((6, 1), weight)).item() for weight in (1.0, 0.5, 0.0)]
    assert values[0] == pytest.approx(SoftClip(0.1)(predicted, target).item(), rel=1e-6)
    assert len({round(value, 5) for value in values}) == 3


def test_masks_hide_the_same_share_of_every_row():
    masks = draw_masks(20, 16, 0.75, torch.Generator().manual_seed(0))
    assert (masks.sum(1) == 12).all() and len(set(map(tuple, masks.tolist()))) > 10
    assert (draw_masks(3, 4, 0.99, torch.Generator()).sum(1) == 3).all()


def test_masked_modelling_counts_hidden_voxels_only():
    signal = torch.randn(4, 1, 32)
    mask = draw_masks(4, 8, 0.5, torch.Generator().manual_seed(0))

    class Perfect(nn.Module):
        def reconstruct(self, x, mask=None):
            return torch.where(over_voxels(mask, x), x + 2, x + 100)

    assert MaskedModelling()(Perfect(), signal, mask).item() == pytest.approx(4, rel=1e-5)


def test_a_masked_encoder_cannot_copy():
    """What a hidden patch holds does not reach its own reconstruction."""
    torch.manual_seed(0)
    trunk = ConvMixerTrunk(1, 64, width=8, depth=2, patch=8, kernel=3, decoder_depth=1, decoder=True)
    mask = draw_masks(1, 8, 0.5, torch.Generator().manual_seed(0))
    signal = torch.randn(1, 1, 64)
    changed = torch.where(over_voxels(mask, signal), torch.randn(1, 1, 64), signal)
    assert torch.equal(trunk.reconstruct(signal, mask), trunk.reconstruct(changed, mask))
    assert Autoencoding()(trunk, signal).item() > 0


def test_masked_correlation_is_numpys():
    truth, guess, hidden = torch.randn(5, 1, 40), torch.randn(5, 1, 40), torch.rand(5, 1, 40) > 0.4
    expected = [np.corrcoef(t[h], g[h])[0, 1] for t, g, h in zip(truth, guess, hidden, strict=True)]
    np.testing.assert_allclose(masked_correlation(truth, guess, hidden), expected, rtol=1e-6)
    assert (masked_correlation(truth, torch.ones_like(truth), hidden) == 0).all()


def test_reversed_gradient():
    x = torch.randn(3, 4, requires_grad=True)
    head = SubjectHead(4, 2)
    ordinary = torch.autograd.grad(head(x).square().sum(), x)[0]
    reversed_ = torch.autograd.grad(head(reverse_gradient(x)).square().sum(), x)[0]
    torch.testing.assert_close(reversed_, -ordinary)


@pytest.mark.parametrize("power", [1.0, 3.0])
def test_timesteps_follow_their_density(power):
    drawn = draw_noise(torch.zeros(20000, 1, 1, 1), 1000, 0.25, generator(0), power)
    below = [(drawn["timestep"] < limit).float().mean().item() for limit in (250, 500, 750, 1000)]
    np.testing.assert_allclose(below, np.array([0.25, 0.5, 0.75, 1.0]) ** power, atol=0.01)
    assert drawn["timestep"].min() >= 0 and abs(drawn["kept"].float().mean().item() - 0.75) < 0.01

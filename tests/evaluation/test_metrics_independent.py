"""Every measure against a computation that shares no code with ours."""

from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation_fakes import scenes
from independent_table import HOW, resized, rows

from unimind.evaluation import metrics as m
from unimind.evaluation.measures import MEASURES, PANEL
from unimind.evaluation.pictures import resize
from unimind.study_reference import measures_table


@pytest.fixture(params=[48, 300], ids=["smaller than 256", "larger than 256"])
def pair(request):
    """Two sets of four pictures, the second a noisy copy of the first: (4, 3, n, n) in [0, 1]."""
    truth = torch.from_numpy(scenes(4, request.param)).permute(0, 3, 1, 2).float() / 255
    noise = torch.randn(truth.shape, generator=torch.Generator().manual_seed(0))
    return truth, (truth + 0.2 * noise).clamp(0, 1)


def brought_to(images: torch.Tensor, *sides: int) -> np.ndarray:
    """Resized by Pillow, not by us: (n, side, side, 3)."""
    return resized(images.permute(0, 2, 3, 1).numpy(), *sides).astype(float)


def large(images: torch.Tensor) -> np.ndarray:
    return brought_to(images, 256, 425)


@pytest.mark.parametrize(("size", "side"), [(48, 256), (48, 425), (300, 256), (425, 256), (256, 425), (256, 224), (256, 342)])
def test_pictures_are_resized_as_pillow_and_torchvision_do(size, side):
    from torchvision.transforms.v2 import functional

    images = torch.from_numpy(scenes(2, size)).permute(0, 3, 1, 2).float() / 255
    ours = resize(images, side)
    np.testing.assert_allclose(ours.permute(0, 2, 3, 1), brought_to(images, side), atol=2e-5)
    theirs = functional.resize(images, [side, side], interpolation=functional.InterpolationMode.BILINEAR, antialias=True)
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_the_table_names_every_measure_of_the_panel():
    assert set(HOW) == set(PANEL)


def test_every_measure_has_a_function():
    for name, measure in MEASURES.items():
        assert callable(getattr(m.LowLevel if measure.kind == "pixels" else m, measure.computed_by)), name


def test_the_documentations_table_of_measures_is_the_registry():
    """`make reference` brings it up to date."""
    assert measures_table() in (Path(__file__).parents[2] / "docs/metrics.md").read_text()


@pytest.mark.slow
def test_the_whole_panel_is_what_other_software_makes_of_the_same_networks():
    """PictureSet in, measures out, the networks' weights random: `independent_table.py` prints what is compared here."""
    seen = set()
    for name, ours, theirs in rows():
        seen.add(name)
        scale = np.abs(theirs).max()
        if name == "nway_top1":  # theirs are shares of random draws
            tolerance = 0.04
        elif name in ("alexnet2", "alexnet5", "inception", "clip"):  # rounding may turn one of the 10 comparisons of an image
            tolerance = 0.11
        else:  # deep networks of random weights multiply rounding
            tolerance = (1e-4 if name in ("mse", "pixcorr", "ssim", "lpips") else 1e-3) * scale
        np.testing.assert_allclose(ours, theirs, atol=tolerance, err_msg=name)
    assert seen == set(PANEL)


def test_mse(pair):
    a, b = (brought_to(x, 256) for x in pair)
    np.testing.assert_allclose(m.mse(*pair), ((a - b) ** 2).mean((1, 2, 3)), rtol=1e-5)


def test_pixcorr_is_numpys_correlation(pair):
    expected = [np.corrcoef(x.ravel(), y.ravel())[0, 1] for x, y in zip(large(pair[0]), large(pair[1]), strict=True)]
    np.testing.assert_allclose(m.pixcorr(*pair), expected, atol=1e-5)


def test_ssim_is_scikit_images(pair):
    from skimage.color import rgb2gray
    from skimage.metrics import structural_similarity

    expected = [
        structural_similarity(rgb2gray(x), rgb2gray(y), gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1.0)
        for x, y in zip(large(pair[0]), large(pair[1]), strict=True)
    ]
    np.testing.assert_allclose(m.ssim(*pair), expected, atol=2e-5)


def test_a_constant_picture_has_no_pixel_correlation(pair):
    flat = torch.full_like(pair[0], 0.4)
    np.testing.assert_array_equal(m.pixcorr(pair[0], flat), 0)
    assert torch.isfinite(m.ssim(pair[0], flat)).all()


def test_two_way_is_the_double_loop():
    random = np.random.default_rng(0)
    truth = random.normal(size=(9, 30))
    pictures = truth + random.normal(size=(9, 30)) * 6
    r = np.corrcoef(truth, pictures)[:9, 9:]
    expected = [np.mean([r[i, j] < r[j, j] for i in range(9) if i != j]) for j in range(9)]
    ours = m.two_way(m.correlations(torch.from_numpy(truth), torch.from_numpy(pictures)))
    np.testing.assert_allclose(ours, expected)
    assert not np.allclose(ours, m.two_way(r.T)), "the transpose is another measure"


def test_ties_are_failures_and_a_constant_picture_beats_nothing():
    truth = torch.randn(6, 20, generator=torch.Generator().manual_seed(1))
    np.testing.assert_array_equal(m.two_way(np.ones((6, 6))), 0)
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(m.two_way(m.correlations(truth, torch.ones(6, 20))), 0)


def test_one_picture_for_all_is_at_chance():
    random = np.random.default_rng(2)
    r = m.correlations(torch.from_numpy(random.normal(size=(11, 20))), torch.from_numpy(np.tile(random.normal(size=20), (11, 1))))
    assert m.two_way(r).mean() == pytest.approx(0.5)


def test_correlation_distance_is_scipys():
    from scipy.spatial.distance import correlation

    random = np.random.default_rng(3)
    a, b = random.normal(size=(5, 40)), random.normal(size=(5, 40))
    ours = m.correlation_distance(m.correlations(torch.from_numpy(a), torch.from_numpy(b)))
    np.testing.assert_allclose(ours, [correlation(x, y) for x, y in zip(a, b, strict=True)], atol=1e-6)


def test_nway_is_the_limit_of_minds_vis_draws():
    """As MinD-Vis defines it: in 1000 trials, the truth's class is put beside 49 other random ones and must have the largest probability."""
    from torchmetrics.functional import accuracy

    random, torch_random = np.random.default_rng(4), torch.Generator().manual_seed(4)
    truth, logits = torch.randn(6, 300, generator=torch_random), torch.randn(6, 300, generator=torch_random)
    logits[torch.arange(6), truth.argmax(1)] += torch.tensor([0, 1, 1.5, 2, 2.5, 9])
    drawn = []
    for given, picture in zip(truth.softmax(1), logits.softmax(1), strict=True):
        own = int(given.argmax())
        others = [k for k in range(300) if k != own]
        picked = torch.stack([picture[[own, *random.choice(others, 49, replace=False)]] for _ in range(1000)])
        drawn.append(accuracy(picked, torch.zeros(1000, dtype=torch.long), task="multiclass", num_classes=50, top_k=1).item())
    np.testing.assert_allclose(m.nway_top1(truth.numpy(), logits.numpy()), drawn, atol=0.05)


def test_nway_chance():
    random = np.random.default_rng(5)
    assert m.nway_top1(random.normal(size=(4000, 100)), random.normal(size=(4000, 100))).mean() == pytest.approx(0.02, abs=0.006)


def test_retrieval_by_hand():
    random = np.random.default_rng(6)
    truth = random.normal(size=(40, 8))
    predicted = truth + random.normal(size=(40, 8))
    cosine = np.array([[t @ p / np.linalg.norm(t) / np.linalg.norm(p) for p in predicted] for t in truth])
    forward, backward = m.retrieval(truth, predicted)
    np.testing.assert_array_equal(forward, cosine.argmax(1) == np.arange(40))
    np.testing.assert_array_equal(backward, cosine.argmax(0) == np.arange(40))
    assert m.retrieval(truth, predicted, pool=10)[0][~np.isnan(m.retrieval(truth, predicted, pool=10)[0])].mean() > forward.mean()


def test_inception_score_is_torchmetrics():
    from torchmetrics.image.inception import InceptionScore

    class Logits(torch.nn.Module):
        def forward(self, x):
            return x.flatten(1).double()

    logits = torch.randn(100, 3, 4, 4, generator=torch.Generator().manual_seed(2)) * 2
    theirs = InceptionScore(feature=Logits(), splits=10, normalize=True)
    theirs.features = [logits.flatten(1).double()]
    torch.manual_seed(0)
    order = torch.randperm(100)
    torch.manual_seed(0)
    mean, deviation = theirs.compute()
    ours, error = m.inception_score(logits.flatten(1).numpy()[order])
    assert ours == pytest.approx(mean.item(), rel=1e-5)
    assert error == pytest.approx(deviation.item() / np.sqrt(10), rel=1e-4)


@pytest.mark.parametrize(("n", "k", "d"), [(30, 25, 64), (90, 80, 6)])
def test_fid_is_the_covariance_formula(n, k, d):
    from scipy.linalg import sqrtm

    random = np.random.default_rng(7)
    a, b = random.normal(size=(n, d)), random.normal(1, 2, size=(k, d))
    root = sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    assert m.fid(a, b) == pytest.approx(expected, rel=1e-4)
    assert m.fid(a, a) == pytest.approx(0, abs=1e-8)


def test_fid_is_torchmetrics():
    from torchmetrics.image.fid import _compute_fid

    random = np.random.default_rng(8)
    a, b = torch.from_numpy(random.normal(size=(80, 12))), torch.from_numpy(random.normal(0.5, 1.5, size=(80, 12)))
    theirs = _compute_fid(a.mean(0), torch.cov(a.T), b.mean(0), torch.cov(b.T))
    assert m.fid(a.numpy(), b.numpy()) == pytest.approx(theirs.item(), rel=1e-6)

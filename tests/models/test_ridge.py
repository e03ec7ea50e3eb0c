"""Ridge regression against himalaya's, its penalties and its devices."""

import warnings

import numpy as np
import pytest
import torch
from himalaya.backend import set_backend
from himalaya.kernel_ridge import KernelRidgeCV
from sklearn.model_selection import KFold
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from unimind.errors import InputError
from unimind.models import ridge as module
from unimind.models.ridge import components_together, fit_ridge
from unimind.models.space import PictureSpace

ALPHAS = [0.1, 10.0, 1000.0, 1e5]


def example(n, voxels, targets=7):
    """Inputs of which some say much of the targets and others little, off centre."""
    random = np.random.default_rng(n)
    x = (random.normal(size=(n, voxels)) * random.uniform(0.1, 3, voxels) + 2).astype(np.float32)
    y = x[:, :4] @ random.normal(size=(4, targets)) + random.normal(size=(n, targets)) * 10.0 ** np.linspace(-1, 2, targets)
    return x, y.astype(np.float32)


def himalayas(x, y, alphas, folds, seed, local=True):
    """Weight and bias, and the penalties chosen."""
    set_backend("numpy")
    mean, bias = x.mean(0, dtype=float), y.mean(0, dtype=float)
    cv = KFold(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that another form would be quicker
        fit = KernelRidgeCV(alphas=alphas, cv=cv, solver_params={"local_alpha": local}).fit(x - mean, y - bias)
    weight = (x - mean).T @ fit.dual_coef_
    return weight, bias - mean @ weight, fit.best_alphas_


@pytest.mark.parametrize(("n", "voxels"), [(60, 150), (120, 40)], ids=["more voxels", "more pictures"])
@pytest.mark.parametrize("block", [16, 4096])
def test_ridge_is_himalayas(n, voxels, block, monkeypatch):
    """Both forms, inputs in one block or several; the targets ask for different penalties."""
    monkeypatch.setattr(module, "BLOCK", block)
    x, y = example(n, voxels)
    weight, bias, chosen = himalayas(x, y, ALPHAS, 4, 3)
    assert len(set(chosen)) > 1
    found = fit_ridge(x, y, ALPHAS, 4, 3)
    assert found.weight.dtype == found.bias.dtype == np.float32
    np.testing.assert_allclose(found.weight, weight, rtol=1e-5, atol=1e-6 * np.abs(weight).max())
    np.testing.assert_allclose(found.bias, bias, rtol=1e-5, atol=1e-5 * np.abs(y).max())


def test_targets_together_have_one_penalty():
    """Those of a run as himalaya's with one for all of them; runs are of one target of the picture space."""
    x, y = example(60, 150, 40)
    together = components_together(PictureSpace(40, (1, 2, 3), {"embedding": 34, "latent": 6}))
    assert together == [slice(0, 16), slice(16, 32), slice(32, 34), slice(34, 40)]
    found, penalties = fit_ridge(x, y, ALPHAS, 4, 3, together=together), []
    for part in together:
        weight, _, own = himalayas(x, y[:, part], ALPHAS, 4, 3, local=False)
        penalties.append(*set(np.ravel(own)))
        np.testing.assert_allclose(found.weight[:, part], weight, rtol=1e-5, atol=1e-6 * np.abs(weight).max())
    assert len(set(penalties)) > 1


def test_a_penalty_that_leaves_no_root_is_not_chosen_and_alone_refused():
    x, y = example(60, 20)
    x = np.concatenate([x, x], 1) * 1e4  # every input twice: without a penalty there is no one solution
    kept = fit_ridge(x, y, [0.0, 100.0], 4)
    np.testing.assert_array_equal(kept.weight, fit_ridge(x, y, [100.0], 4).weight)
    with pytest.raises(InputError, match="penalties 0 is large enough"):
        fit_ridge(x, y, [0.0], 4)


class Products(TorchDispatchMode):
    """Notes on which devices products and decompositions are computed."""

    def __init__(self):
        super().__init__()
        self.devices = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in ("mm", "addmm", "addmm_", "linalg_cholesky_ex", "cholesky_solve"):
            self.devices.setdefault(name, set()).update(one.device.type for one in args if isinstance(one, torch.Tensor))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("voxels", [150, 20])
def test_on_a_card_nothing_is_computed_elsewhere(voxels, monkeypatch):
    """On a card of tensors without contents, which refuse to meet those of another device: only what was asked back comes to the processor."""
    x, y = example(60, voxels)
    back = []

    def without_contents(values):
        back.append((values.device.type, tuple(values.shape)))
        return np.zeros(values.shape)

    monkeypatch.setattr(module, "_to_numpy", without_contents)
    with Products() as computed, FakeTensorMode(allow_non_fake_inputs=True):
        fit_ridge(x, y, ALPHAS, 4, device=torch.device("cuda:0"))
    assert back == [("cuda", (len(ALPHAS), 7)), ("cuda", (voxels, 7))]
    assert {"mm", "linalg_cholesky_ex", "cholesky_solve"} <= set(computed.devices)
    assert all(devices == {"cuda"} for devices in computed.devices.values()), computed.devices

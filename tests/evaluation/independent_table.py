"""Print every measure beside an independent computation of it: `python tests/evaluation/independent_table.py`."""

import numpy as np
import torch
from evaluation_fakes import scenes

from unimind.evaluation import metrics as m
from unimind.evaluation.pictures import resize


def main() -> None:
    from scipy.linalg import sqrtm
    from scipy.spatial.distance import correlation
    from skimage.color import rgb2gray
    from skimage.metrics import structural_similarity

    truth = torch.from_numpy(scenes(6, 64)).permute(0, 3, 1, 2).float() / 255
    pictures = (truth + 0.2 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    small = [resize(x, 256).double().numpy() for x in (truth, pictures)]
    large = [resize(resize(x, 256), 425).permute(0, 2, 3, 1).double().numpy() for x in (truth, pictures)]
    pairs = list(zip(*large, strict=True))
    window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
    rows = [
        ("mse", "numpy, float64", m.mse(truth, pictures), ((small[0] - small[1]) ** 2).mean((1, 2, 3))),
        ("pixcorr", "numpy.corrcoef", m.pixcorr(truth, pictures), [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in pairs]),
        ("ssim", "scikit-image", m.ssim(truth, pictures), [structural_similarity(rgb2gray(a), rgb2gray(b), **window) for a, b in pairs]),
    ]
    random = np.random.default_rng(0)
    a, b = random.normal(size=(60, 40)), random.normal(size=(60, 40))
    b = a + 6 * b
    r = m.correlations(torch.from_numpy(a), torch.from_numpy(b))
    full = np.corrcoef(a, b)[:60, 60:]
    loop = [np.mean([full[i, j] < full[j, j] for i in range(60) if i != j]) for j in range(60)]
    rows.append(("two-way (AlexNet, Inception, CLIP, SqueezeNet, identification)", "double loop over numpy.corrcoef", m.two_way(r), loop))
    rows.append(("correlation distance (EffNet-B, SwAV)", "scipy", m.correlation_distance(r), [correlation(x, y) for x, y in zip(a, b, strict=True)]))
    cosine = (a / np.linalg.norm(a, axis=1, keepdims=True)) @ (b / np.linalg.norm(b, axis=1, keepdims=True)).T
    forward, backward = m.retrieval(a, b)
    rows.append(("retrieval_forward", "numpy argmax", forward, cosine.argmax(1) == np.arange(60)))
    rows.append(("retrieval_backward", "numpy argmax", backward, cosine.argmax(0) == np.arange(60)))
    root = sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    frechet = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    rows.append(("fid", "covariances and scipy's sqrtm", [m.fid(a, b)], [frechet]))
    p = np.exp(a) / np.exp(a).sum(1, keepdims=True)
    scores = [np.exp((q * np.log(q / q.mean(0))).sum(1).mean()) for q in np.split(p, 10)]
    rows.append(("inception_score", "numpy, from the definition", [m.inception_score(a)[0]], [np.mean(scores)]))
    own = a.argmax(1)
    draws = [[b[j, own[j]] > b[j, random.choice(np.delete(np.arange(40), own[j]), 9, replace=False)].max() for _ in range(2000)] for j in range(60)]
    rows.append(("nway_top1 (10 of 40 classes)", "2000 random draws", [m.nway_top1(a, b, 10).mean()], [np.mean(draws)]))
    print("| measure | independent computation | ours | theirs | largest difference |\n|---|---|---|---|---|")
    for name, how, ours, theirs in rows + _networks(truth, pictures):
        x, y = np.asarray(ours, float), np.asarray(theirs, float)
        print(f"| {name} | {how} | {x.mean():.6f} | {y.mean():.6f} | {np.abs(x - y).max():.1e} |")


def _networks(truth: torch.Tensor, pictures: torch.Tensor) -> list[tuple]:
    """LPIPS with the package called directly, on random backbones (the heads are the published ones)."""
    import tempfile
    from pathlib import Path

    import lpips as package
    import torchvision.models

    from unimind.evaluation import networks

    rows = []
    for kind, architecture in (("alex", "alexnet"), ("squeeze", "squeezenet1_1"), ("vgg", "vgg16")):
        torch.manual_seed(0)
        state = getattr(torchvision.models, architecture)(weights=None).state_dict()
        theirs = package.LPIPS(net=kind, pnet_rand=True, verbose=False).eval()
        theirs.net.load_state_dict({key: state["features." + key.split(".", 1)[1]] for key in theirs.net.state_dict()})
        with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
            torch.save(state, Path(folder) / "weights.pth")
            ours = networks.lpips(kind, Path(folder) / "weights.pth", "-")
            value = m.squared_distance(ours(truth)[0], ours(pictures)[0])
            expected = theirs(resize(truth, 256) * 2 - 1, resize(pictures, 256) * 2 - 1).flatten()
        rows.append((f"lpips ({kind})", "the lpips package", value, expected))
    return rows


if __name__ == "__main__":
    main()

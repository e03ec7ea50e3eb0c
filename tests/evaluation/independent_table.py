"""Print every measure of the panel beside an independent computation of it: `python tests/evaluation/independent_table.py`.

Nothing of `unimind` is used on the independent side: pictures are resized by Pillow, networks run by torchvision, open_clip
and lpips themselves, and formulas written out in NumPy, SciPy and scikit-image. The architectures are real and their
weights random, but for the two largest, in whose places stand small networks of the same classes; LPIPS' heads are the published ones.
"""

import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from PIL import Image

from unimind.data.drawn import FORM, combinations, render
from unimind.evaluation import metrics as m
from unimind.evaluation import networks
from unimind.evaluation.measures import PANEL
from unimind.evaluation.panel import Panel, Whole, measure
from unimind.evaluation.pictures import PictureSet

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
HOW = {
    "mse": "Pillow, numpy in float64", "pixcorr": "Pillow, numpy.corrcoef", "ssim": "Pillow, scikit-image", "lpips": "Pillow, the lpips package (AlexNet)",
    "inception_score": "the network of 2015 written out, the definition in scipy", "fid": "the network of 2015 written out, scipy's sqrtm",
    "inception_score_torchvision": "torchvision, the definition in scipy", "fid_torchvision": "torchvision, covariances and scipy's sqrtm",
    "alexnet2": "torchvision's features.4, double loop over numpy.corrcoef", "alexnet5": "torchvision's features.11, double loop over numpy.corrcoef",
    "inception": "torchvision's avgpool, double loop over numpy.corrcoef", "clip": "open_clip's encode_image (a small ViT), double loop over numpy.corrcoef",
    "effnet": "torchvision's avgpool, scipy's correlation distance", "swav": "torchvision's avgpool, scipy's correlation distance",
    "nway_top1": "Pillow (bicubic), torchvision (a small ViT), 4000 random draws per picture", "retrieval_forward": "numpy argmax over images' rows",
    "retrieval_backward": "numpy argmax over predictions' columns",
}  # fmt: skip


def moved(numbers: np.ndarray) -> np.ndarray:
    """Numbers of drawn pictures with the same objects, colours, textures and background, elsewhere."""
    parts = list(np.unravel_index(numbers, FORM))
    parts[-3], parts[-2] = (parts[-3] + 1) % FORM[-3], (parts[-2] + 1) % FORM[-2]
    return np.ravel_multi_index(parts, FORM)


def noisy(images: np.ndarray, deviation: float = 40) -> np.ndarray:
    return np.clip(images + np.random.default_rng(0).normal(0, deviation, images.shape), 0, 255).astype(np.uint8)


def resized(images: np.ndarray, *sides: int, by: Image.Resampling = Image.Resampling.BILINEAR) -> np.ndarray:
    """Float pictures (n, H, W, 3) brought to every side in turn by Pillow: antialiased, in single precision."""
    for side in sides:
        if images.shape[1:3] == (side, side):
            continue
        planes = np.moveaxis(images, -1, 1).reshape(-1, *images.shape[1:3]).astype(np.float32)
        planes = np.stack([np.asarray(Image.fromarray(plane, "F").resize((side, side), by)) for plane in planes])
        images = np.clip(np.moveaxis(planes.reshape(-1, 3, side, side), 1, -1), 0, 1)
    return images


@contextmanager
def random_weights(wanted: Collection[str] = tuple(networks.WEIGHTS_OF)) -> Iterator[tuple[Path, dict[str, torch.nn.Module]]]:
    """A folder of weights for the networks of the wanted measures, and those networks."""
    import open_clip
    import torchvision.models as tv
    from safetensors.torch import save_file

    manifest = {name: row | {"sha256": ""} for name, row in networks.manifest().items()}
    create = open_clip.create_model

    def vit(weights: None = None, image_size: int = 518) -> tv.VisionTransformer:
        model = tv.VisionTransformer(image_size=image_size, patch_size=74, num_layers=2, num_heads=2, hidden_dim=64, mlp_dim=128)
        torch.nn.init.normal_(model.heads.head.weight, std=0.1)
        return model

    def clip(name: str = "", pretrained: None = None) -> torch.nn.Module:
        return create("ViT-S-32-alt", pretrained=None)

    def inception() -> tv.Inception3:
        model = tv.inception_v3(weights=None, transform_input=True, init_weights=False)
        torch.nn.init.normal_(model.fc.weight, std=0.005)
        return settled(model, 299)

    def of_2015() -> tv.Inception3:
        model = tv.inception_v3(weights=None, num_classes=1008, aux_logits=False, transform_input=False, init_weights=False)
        torch.nn.init.normal_(model.fc.weight, std=0.005)
        return settled(model, 299)

    builders: dict[str, Callable[[], torch.nn.Module]] = {
        "alexnet": lambda: tv.alexnet(weights=None), "effnet": lambda: settled(tv.efficientnet_b1(weights=None), 96),
        "swav": lambda: settled(tv.resnet50(weights=None), 96), "vit_h_14": vit, "inception": inception, "inception_2015": of_2015, "clip": clip,
    }  # fmt: skip
    torch.manual_seed(0)
    models = {name: builders[name]().eval() for name in dict.fromkeys(networks.WEIGHTS_OF[measure] for measure in wanted)}
    with tempfile.TemporaryDirectory() as folder:
        for name, model in models.items():
            file = Path(folder) / manifest[name]["file"]
            state = {key: value.contiguous() for key, value in model.state_dict().items()}
            save_file(state, file) if file.suffix == ".safetensors" else torch.save(state, file)
        with (
            mock.patch.object(networks, "manifest", lambda: manifest),
            mock.patch("torchvision.models.vit_h_14", vit),
            mock.patch("open_clip.create_model", clip),
        ):
            yield Path(folder), models


def settled(model: torch.nn.Module, side: int) -> torch.nn.Module:
    """The network with its normalisation layers at the statistics of some pictures, so that features differ between pictures."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    pictures = noisy(render(combinations("foundations", 6, 4), side).images) / 255
    with torch.no_grad():
        model.train()(torch.from_numpy((pictures - MEAN) / STD).float().permute(0, 3, 1, 2))
    return model


def hooked(model: torch.nn.Module, layers: dict[str, str], images: np.ndarray, mean: list[float] = MEAN, std: list[float] = STD) -> dict[str, np.ndarray]:
    """What comes out of layers (result name: layer name; "" is the network) for pictures (n, H, W, 3): (n, d) each."""
    found: dict[str, np.ndarray] = {}
    handles = [
        model.get_submodule(layer).register_forward_hook(lambda _, __, out, name=name: found.__setitem__(name, out.flatten(1).numpy()))
        for name, layer in layers.items()
    ]
    x = torch.from_numpy(((images - mean) / std).astype(np.float32)).permute(0, 3, 1, 2)
    with torch.inference_mode():
        model(x)
    for handle in handles:
        handle.remove()
    return found


def bordered(x: torch.Tensor) -> torch.Tensor:
    """Means of 3 x 3 neighbourhoods, of what lies inside."""
    kernel = torch.ones(x.shape[1], 1, 3, 3)
    total, count = (torch.nn.functional.conv2d(values, kernel, padding=1, groups=x.shape[1]) for values in (x, torch.ones_like(x)))
    return total / count


def network_of_2015(model: torch.nn.Module, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pooled features and logits without bias of TensorFlow's Inception of 2015, block by block, for pictures (n, H, W, 3) at 299."""

    def a(b, x):
        large, small = b.branch5x5_2(b.branch5x5_1(x)), b.branch3x3dbl_3(b.branch3x3dbl_2(b.branch3x3dbl_1(x)))
        return torch.cat([b.branch1x1(x), large, small, b.branch_pool(bordered(x))], 1)

    def c(b, x):
        once, twice = b.branch7x7_1(x), b.branch7x7dbl_1(x)
        for layer in (b.branch7x7_2, b.branch7x7_3):
            once = layer(once)
        for layer in (b.branch7x7dbl_2, b.branch7x7dbl_3, b.branch7x7dbl_4, b.branch7x7dbl_5):
            twice = layer(twice)
        return torch.cat([b.branch1x1(x), once, twice, b.branch_pool(bordered(x))], 1)

    def e(b, x, pool):
        once, twice = b.branch3x3_1(x), b.branch3x3dbl_2(b.branch3x3dbl_1(x))
        parts = [b.branch1x1(x), b.branch3x3_2a(once), b.branch3x3_2b(once), b.branch3x3dbl_3a(twice), b.branch3x3dbl_3b(twice)]
        return torch.cat([*parts, b.branch_pool(pool(x))], 1)

    n = model
    with torch.inference_mode():
        x = torch.from_numpy((images * 2 - 1).astype(np.float32)).permute(0, 3, 1, 2)
        x = n.maxpool1(n.Conv2d_2b_3x3(n.Conv2d_2a_3x3(n.Conv2d_1a_3x3(x))))
        x = n.maxpool2(n.Conv2d_4a_3x3(n.Conv2d_3b_1x1(x)))
        x = n.Mixed_6a(a(n.Mixed_5d, a(n.Mixed_5c, a(n.Mixed_5b, x))))
        for block in (n.Mixed_6b, n.Mixed_6c, n.Mixed_6d, n.Mixed_6e):
            x = c(block, x)
        x = e(n.Mixed_7b, n.Mixed_7a(x), bordered)
        x = e(n.Mixed_7c, x, torch.nn.MaxPool2d(3, 1, 1)).mean((2, 3))
        return x.numpy(), (x @ n.fc.weight.T).numpy()


def double_loop(truth: np.ndarray, pictures: np.ndarray) -> list[float]:
    n = len(truth)
    r = np.corrcoef(truth.astype(float), pictures.astype(float))[:n, n:]
    return [float(np.mean([r[i, j] < r[j, j] for i in range(n) if i != j])) for j in range(n)]


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """From the covariances, in coordinates of the few dimensions that so few pictures span: the distance does not depend on them."""
    from scipy.linalg import orth, sqrtm

    span = orth(np.concatenate([a, b]).T.astype(float))
    a, b = a @ span, b @ span
    first, second = np.cov(a.T), np.cov(b.T)
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(first + second - 2 * sqrtm(first @ second).real))


def score_of(logits: np.ndarray, parts: int = 10) -> float:
    from scipy.special import rel_entr, softmax

    p = softmax(logits.astype(float), axis=1)
    return float(np.mean([np.exp(rel_entr(q, q.mean(0)).sum(1).mean()) for q in np.array_split(p, parts)]))


def drawn_classes(truth: np.ndarray, logits: np.ndarray, ways: int = 50, draws: int = 4000) -> list[float]:
    random = np.random.default_rng(0)
    shares = []
    for true, given in zip(truth, logits, strict=True):
        own = int(true.argmax())
        others = np.array([random.choice(len(given) - 1, ways - 1, replace=False) for _ in range(draws)])
        others += others >= own
        shares.append(float(np.mean(given[own] > given[others].max(1))))
    return shares


def theirs(truth: np.ndarray, pictures: np.ndarray, models: dict[str, torch.nn.Module]) -> dict[str, object]:
    """Every measure of the panel but retrieval, of pictures (n, H, W, 3) in [0, 1]."""
    import lpips
    from scipy.spatial.distance import correlation
    from skimage.color import rgb2gray
    from skimage.metrics import structural_similarity

    sides = {side: [resized(x, 256, side) for x in (truth, pictures)] for side in (224, 255, 256, 299, 342, 425)}
    window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
    large = list(zip(*sides[425], strict=True))
    package = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False).eval()
    state = models["alexnet"].state_dict()
    package.net.load_state_dict({key: state["features." + key.split(".", 1)[1]] for key in package.net.state_dict()})
    with torch.inference_mode():
        distance = package(*(torch.from_numpy(x * 2 - 1).float().permute(0, 3, 1, 2) for x in sides[256])).flatten()

    def pair(name: str, side: int, layers: dict[str, str], *statistics: list[float]) -> list[dict[str, np.ndarray]]:
        return [hooked(models[name], layers, x, *statistics) for x in sides[side]]

    alexnet = pair("alexnet", 256, {"alexnet2": "features.4", "alexnet5": "features.11"})
    inception, pooled = pair("inception", 342, {"it": "avgpool"}), pair("inception", 299, {"it": "avgpool", "logits": ""})
    effnet, swav = pair("effnet", 255, {"it": "avgpool"}), pair("swav", 224, {"it": "avgpool"})
    of_2015 = [network_of_2015(models["inception_2015"], x) for x in sides[299]]
    sides[518] = [resized(resized(x, 256), 518, by=Image.Resampling.BICUBIC) for x in (truth, pictures)]
    vit, clip = pair("vit_h_14", 518, {"it": ""}), pair("clip", 224, {"it": "visual"}, CLIP_MEAN, CLIP_STD)
    return {
        "mse": [float(np.mean((a.astype(float) - b) ** 2)) for a, b in zip(*sides[256], strict=True)],
        "pixcorr": [float(np.corrcoef(a.ravel().astype(float), b.ravel().astype(float))[0, 1]) for a, b in large],
        "ssim": [structural_similarity(rgb2gray(a.astype(float)), rgb2gray(b.astype(float)), **window) for a, b in large],
        "lpips": distance.numpy(),
        "inception_score": score_of(of_2015[1][1]),
        "fid": frechet(of_2015[0][0], of_2015[1][0]),
        "inception_score_torchvision": score_of(pooled[1]["logits"]),
        "fid_torchvision": frechet(pooled[0]["it"], pooled[1]["it"]),
        **{name: double_loop(alexnet[0][name], alexnet[1][name]) for name in ("alexnet2", "alexnet5")},
        "inception": double_loop(inception[0]["it"], inception[1]["it"]),
        "clip": double_loop(clip[0]["it"], clip[1]["it"]),
        "effnet": [correlation(a, b) for a, b in zip(effnet[0]["it"].astype(float), effnet[1]["it"].astype(float), strict=True)],
        "swav": [correlation(a, b) for a, b in zip(swav[0]["it"].astype(float), swav[1]["it"].astype(float), strict=True)],
        "nway_top1": drawn_classes(vit[0]["it"], vit[1]["it"]),
    }


def rows(n: int = 11) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """(measure, ours, theirs) of n drawn pictures and noisy mixtures with their neighbours; one value per image where there is one."""
    truth = render(combinations("foundations", 5, n), 96).images
    pictures = noisy(0.4 * truth + 0.6 * np.roll(truth, 1, 0))
    with random_weights() as (folder, models):
        wanted = [name for name in PANEL if not name.startswith("retrieval")]
        panel = Panel.of(wanted, folder, None)
        assert not panel.absent, panel.absent
        ours = measure(panel, PictureSet(truth), PictureSet(pictures), {"reconstruction": np.arange(n)}, 5)["reconstruction"]
        expected = theirs(truth / 255, pictures / 255, models)
    for name in wanted:
        value = ours[name]
        yield name, np.atleast_1d(value.value if isinstance(value, Whole) else value), np.atleast_1d(np.asarray(expected[name], float))
    random = np.random.default_rng(1)
    embedding = random.normal(size=(60, 8))
    predicted = embedding + random.normal(size=(60, 8))
    cosine = np.array([[t @ p / np.linalg.norm(t) / np.linalg.norm(p) for p in predicted] for t in embedding])
    forward, backward = m.retrieval(embedding, predicted)
    yield "retrieval_forward", forward, np.array([row.argmax() == i for i, row in enumerate(cosine)], float)
    yield "retrieval_backward", backward, np.array([column.argmax() == j for j, column in enumerate(cosine.T)], float)


def main() -> None:
    torch.set_num_threads(1)
    print("| measure | independent computation | ours | theirs | largest difference of one image | relative |\n|---|---|---|---|---|---|")
    for name, ours, expected in rows():
        apart = np.abs(ours - expected).max()
        print(f"| {name} | {HOW[name]} | {ours.mean():.6f} | {expected.mean():.6f} | {apart:.1e} | {apart / np.abs(expected).max():.1e} |", flush=True)


if __name__ == "__main__":
    main()

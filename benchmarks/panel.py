"""Time and memory of the panel, against the same panel as the field's notebooks compute it.

    python benchmarks/panel.py --pairs 1000 --side 256 --methods 4 --subjects 4

The notebooks' way: every network sees all pictures at once, once per measure, and the truths again for every method and
subject; SSIM and PixCorr in a Python loop. Weights are random: they change neither time nor memory. Each way runs in a process of
its own; `--cells` of the methods x subjects are run, and the time scaled to all of them.
"""

import argparse
import functools
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

GROUPS = {
    "low": ["mse", "pixcorr", "ssim"], "alexnet": ["lpips", "alexnet2", "alexnet5"],
    "inception": ["inception", "inception_score_torchvision", "fid_torchvision"], "effnet": ["effnet"], "swav": ["swav"], "clip": ["clip"],
}  # fmt: skip
ARCHITECTURES = {"alexnet": "alexnet", "inception": "inception_v3", "effnet": "efficientnet_b1", "swav": "resnet50"}


def write_weights(folder: Path, groups: list[str]) -> None:
    """Random weights under the manifest's file names."""
    import torch
    import torchvision.models

    from unimind.evaluation.networks import manifest

    torch.manual_seed(0)
    for name in groups:
        if name in ARCHITECTURES:
            options = {"init_weights": False} if name == "inception" else {}
            torch.save(getattr(torchvision.models, ARCHITECTURES[name])(weights=None, **options).state_dict(), folder / manifest()[name]["file"])
        elif name == "clip":
            import open_clip
            from safetensors.torch import save_file

            state = open_clip.create_model("ViT-L-14-quickgelu", pretrained=None).state_dict()
            save_file({key: value.contiguous() for key, value in state.items()}, folder / manifest()[name]["file"])


def pictures(n: int, side: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


def ours(weights: Path, groups: list[str], n: int, side: int, cells: int, batch_size: int) -> dict[str, float]:
    """Seconds for the truths, once, and per cell."""
    from unimind.evaluation import networks
    from unimind.evaluation.panel import Panel, measure, truth_features
    from unimind.evaluation.pictures import PictureSet

    rows = {name: row | {"sha256": ""} for name, row in networks.manifest().items()}
    networks.manifest = functools.cache(lambda: rows)
    wanted = [name for group in groups for name in GROUPS[group]]
    truths = PictureSet(pictures(n, side, 0))
    start = time.perf_counter()
    panel = Panel.of(wanted, weights, None)
    found = truth_features(panel, truths, batch_size)
    while found:  # to disk and back, as the stages `features` and `score` do
        name, features = found.popitem()
        np.savez(weights / f"{name}.npz", allow_pickle=False, **features)
    del features
    once = time.perf_counter() - start

    def stored(network: networks.Network) -> dict[str, np.ndarray]:
        with np.load(weights / f"{network.name}.npz") as file:
            return dict(file)

    start = time.perf_counter()
    for cell in range(cells):
        measured = measure(panel, truths, PictureSet(pictures(n, side, cell + 1)), {"reconstruction": np.arange(n)}, batch_size, stored)
        assert set(measured["reconstruction"]) - {"similarity"} == set(wanted)
    return {"once": once, "per_cell": (time.perf_counter() - start) / cells}


def notebooks(weights: Path, groups: list[str], n: int, side: int, cells: int, batch_size: int) -> dict[str, float]:
    """Seconds per cell; nothing is shared between cells."""
    import lpips
    import torch
    import torchvision.models
    from skimage.color import rgb2gray
    from skimage.metrics import structural_similarity
    from torchvision.models.feature_extraction import create_feature_extractor
    from torchvision.transforms.functional import normalize, resize

    truth = torch.from_numpy(pictures(n, side, 0)).permute(0, 3, 1, 2).float() / 255
    nodes = {
        "alexnet": [("features.4", 256), ("features.11", 256)], "inception": [("avgpool", 342), ("avgpool", 299), ("fc", 299)],
        "effnet": [("avgpool", 255)], "swav": [("avgpool", 224)],
    }  # fmt: skip

    def prepared(x: torch.Tensor, size: int) -> torch.Tensor:
        return normalize(resize(x, [size, size]), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])

    def two_way(a: torch.Tensor, b: torch.Tensor) -> float:
        r = np.corrcoef(a.numpy(), b.numpy())[:n, n:]
        return float((r < np.diag(r)).sum(0).mean() / (n - 1))

    start = time.perf_counter()
    with torch.inference_mode():
        for cell in range(cells):
            guess = torch.from_numpy(pictures(n, side, cell + 1)).permute(0, 3, 1, 2).float() / 255
            if "low" in groups:
                a, b = (resize(x, [425, 425]).permute(0, 2, 3, 1).numpy() for x in (truth, guess))
                for x, y in zip(a, b, strict=True):
                    np.corrcoef(x.ravel(), y.ravel())
                    structural_similarity(rgb2gray(x), rgb2gray(y), gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1.0)
                del a, b
            if "alexnet" in groups:
                lpips.LPIPS(net="alex", pnet_rand=True, verbose=False).eval()(truth * 2 - 1, guess * 2 - 1)
            for name in set(groups) & set(nodes):
                options = {"init_weights": False} if name == "inception" else {}
                model = getattr(torchvision.models, ARCHITECTURES[name])(weights=None, **options).eval()
                for node, size in nodes[name]:
                    network = create_feature_extractor(model, {node: "out"})
                    features = [network(prepared(x, size))["out"].flatten(1) for x in (truth, guess)]
                    two_way(*features)
            if "clip" in groups:
                import open_clip

                network = open_clip.create_model("ViT-L-14-quickgelu", pretrained=None).eval()
                two_way(*[network.encode_image(prepared(x, 224)) for x in (truth, guess)])
    return {"once": 0.0, "per_cell": (time.perf_counter() - start) / cells}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option, default in (("pairs", 1000), ("side", 256), ("methods", 4), ("subjects", 4), ("cells", 1), ("batch-size", 64)):
        parser.add_argument(f"--{option}", type=int, default=default)
    parser.add_argument("--groups", nargs="+", choices=list(GROUPS), default=[name for name in GROUPS if name != "clip"])
    parser.add_argument("--way", choices=["ours", "notebooks"], help=argparse.SUPPRESS)
    parser.add_argument("--weights", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.way:
        result = globals()[given.way](given.weights, given.groups, given.pairs, given.side, given.cells, given.batch_size)
        print(json.dumps({**result, "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6}))
        return
    total = given.methods * given.subjects
    seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        write_weights(Path(folder), given.groups)
        print(f"{given.pairs} pairs at {given.side} x {given.side}, {', '.join(given.groups)}; {given.cells} of {total} cells run\n")
        print("| way | truths, s | per method and subject, s | all, s | peak memory, GB |\n|---|---|---|---|---|")
        for way in ("ours", "notebooks"):
            command = [sys.executable, __file__, *sys.argv[1:], "--way", way, "--weights", folder]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found = json.loads(done.stdout.splitlines()[-1])
            seconds[way] = found["once"] + total * found["per_cell"]
            print(f"| {way} | {found['once']:.1f} | {found['per_cell']:.1f} | {seconds[way]:.0f} | {found['peak_gb']:.2f} |", flush=True)
    print(f"\nours is {seconds['notebooks'] / seconds['ours']:.1f} times as fast")


if __name__ == "__main__":
    main()

"""What a target of token sequences costs: written by the stage `embed`, read by rows in random order.

    python benchmarks/tokens.py                            # 3700 pictures, a tenth of NSD's for four subjects, 256 x 1664 each
    python benchmarks/tokens.py --pictures 370 --tokens 257 --width 1280

The image encoder is a stand-in whose tokens are random numbers: only writing and reading are measured, and the memory beside the networks.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

import h5py
import numpy as np
import torch
from torch import Tensor

from unimind.foundations import embed as stage
from unimind.foundations.targets import Targets
from unimind.stages import STAGES
from unimind.study import parse_study

STUDY = {
    "name": "tokens",
    "picture_size": 32,
    "datasets": {"d": {"source": "simulated", "training_subjects": ["subj01"]}},
    "foundations": {
        "embedding": {"kind": "clip-vision"}, "autoencoder": {"kind": "hub"},
        "diffusion": {"kind": "ip-adapter", "target": "tokens", "weights": "models/ip-adapter-plus_sd15.safetensors"},
    },
    "methods": {"ridge": {"scope": "subject", "enter": {"kind": "ridge"}, "sampling": {"strength": 0}}},
    "evaluation": {"batch_size": 16},
}  # fmt: skip
#: Pictures whose tokens a training or a generator asks for at once.
READ = 64


class Random:
    """An image encoder that draws its tokens."""

    name = "random"

    def __init__(self, tokens: int, width: int) -> None:
        self.shape = (tokens, width)

    def to(self, device: torch.device) -> "Random":
        return self

    def raw(self, images: Tensor) -> Tensor:
        return torch.randn(len(images), 1280)

    def raw_and_tokens(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.raw(images), torch.randn(len(images), *self.shape)


def peak() -> float:
    """Largest resident size of this process, GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=3700)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--width", type=int, default=1664)
    parser.add_argument("--folder", type=Path, help="where the file is written and removed; by default the system's temporary folder")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        with h5py.File(folder / "stimuli.h5", "w") as file:
            file.create_dataset("images", (given.pictures, 32, 32, 3), np.uint8)
        (folder / "model.safetensors").write_bytes(b"")
        before = peak()
        begun = time.process_time()
        study = STAGES["embed"].view(parse_study(STUDY))
        with patch.object(stage, "load_embedding", lambda directory: Random(given.tokens, given.width)):
            stage.embed(study, folder / "stimuli.h5", folder, None, folder / "e.h5")
        seconds, size = time.process_time() - begun, (folder / "e.h5").stat().st_size
        print(
            f"{given.pictures} pictures of {given.tokens} x {given.width}: {size / 1e9:.2f} GB on disk, written in {seconds:.0f} CPU-seconds, drawing included"
        )
        print(f"peak memory {before:.2f} GB before, {peak():.2f} GB after writing")
        rows = np.random.default_rng(0).permutation(given.pictures)
        begun = time.process_time()
        with Targets(folder / "e.h5") as targets:
            for start in range(0, len(rows), READ):
                targets.read("tokens", rows[start : start + READ])
        print(f"read in random order, {READ} at a time: {time.process_time() - begun:.0f} CPU-seconds; peak memory {peak():.2f} GB")


if __name__ == "__main__":
    main()

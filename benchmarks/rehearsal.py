"""A rehearsal at NSD's true size: the stages of a study on data of that size, and whether each keeps within the memory that its job asks for.

    python benchmarks/rehearsal.py                          # about 40 CPU-minutes and 5 GB of disk, on a card where there is one
    python benchmarks/rehearsal.py --stages teach enter     # only these, and what they need
    python benchmarks/rehearsal.py --shrink 20              # all sizes divided, to see that it runs

One subject's data are simulated: 30 000 trials of 15 724 voxels in a prepared file, written a block of trials at a time; the pictures,
embeddings and latents of those it was shown, in files of all 73 000 (the others are holes); and a tiny CLIP, autoencoder, UNet and AlexNet
with random weights. The other training subjects are the same files again. Each stage runs in a process of its own, in its true batches:
nothing is smaller but the networks, the number of training steps and of sampling steps. Beside what is measured stands the plan, of true size.
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apart import measured

if TYPE_CHECKING:
    from unimind.report.cost import Cost

#: NSD: trials, voxels of subject 1's nsdgeneral, pictures of all subjects, test pictures (three trials each), training subjects of eight.
SIZES = {"trials": 30000, "voxels": 15724, "pictures": 73000, "tested": 982}
REPEATS, SUBJECTS, HELD_OUT = 3, 7, 0.1
#: Of the image embedding (ViT-H/14), and Stable Diffusion's latents of pictures of 256 pixels.
DIM, LATENT, SIDE = 1024, (4, 32, 32), 256
#: Features that the simulated responses are linear in.
FEATURES = 200
STEPS = 50
NETWORK = {
    "enter": {"kind": "decoded"}, "body": {"kind": "mlp", "width": 1024, "depth": 2, "dropout": 0.3},
    "align": {"losses": {"siamese": 0.0, "softclip": 0.6}, "temperature": 0.1, "noise": 0.4,
              "training": {"steps": STEPS, "batch_size": 256, "learning_rate": 1e-3, "validate_every": STEPS}},
}  # fmt: skip
SAMPLING = {"sampler": "dpm-solver++", "steps": 2, "guidance": 1.0, "samples": 5, "strength": 0.85}
METRICS = ["pixcorr", "ssim", "alexnet2", "alexnet5", "study_clip", "identification", "embedding_error"]
STAGES = ("teach", "enter", "align", "reconstruct", "reconstruct-controls", "features", "score")


def study_of(folder: Path) -> dict[str, Any]:
    """The study, as plain types."""
    return {
        "name": "rehearsal", "picture_size": SIDE,
        "datasets": {"nsd": {"source": "nsd", "training_subjects": [f"subj{k + 1:02d}" for k in range(SUBJECTS)]}},
        "methods": {
            "unimind": NETWORK | {"sampling": SAMPLING},
            "prior": {"enter": {"kind": "decoded", "mixed": False}, "sampling": SAMPLING},
            "ridge": {"scope": "subject", "enter": {"kind": "ridge"}, "sampling": SAMPLING},
        },
        "foundations": {
            "embedding": {"kind": "study-clip", "dim": DIM}, "autoencoder": {"kind": "study", "latent_channels": LATENT[0], "downsampling": SIDE // LATENT[1]},
            "diffusion": {"kind": "study"},
        },
        "evaluation": {"metrics": METRICS, "weights": str(folder / "weights"), "squeezenet": None},
    }  # fmt: skip


def write(folder: Path, sizes: dict[str, int]) -> None:
    """Everything that the stages read."""
    import h5py
    import numpy as np

    from unimind.data.prepared import write_prepared

    random = np.random.default_rng(0)
    shown, tested = sizes["trials"] // REPEATS, sizes["tested"]
    stimulus = np.sort(np.append(np.arange(tested), random.choice(np.arange(tested, sizes["pictures"]), shown - tested, replace=False)))
    seen = random.standard_normal((shown, FEATURES), np.float32) / np.sqrt(1 + np.arange(FEATURES, dtype=np.float32))
    axes, unfold, weights = (random.standard_normal((FEATURES, size), np.float32) for size in (DIM, int(np.prod(LATENT)), sizes["voxels"]))
    weights /= np.sqrt(1 + np.arange(FEATURES, dtype=np.float32))[:, None]

    with h5py.File(folder / "embeddings.h5", "w") as file:
        embedding = file.create_dataset("embedding", (sizes["pictures"], DIM), np.float32, chunks=(1, DIM))
        latent = file.create_dataset("latent", (sizes["pictures"], *LATENT), np.float32, chunks=(1, *LATENT))
        for row, own in zip(stimulus, seen, strict=True):
            vector = own @ axes + 3
            embedding[row], latent[row] = vector / np.linalg.norm(vector), (own @ unfold).reshape(LATENT) / 10
    with h5py.File(folder / "stimuli.h5", "w") as file:
        images = file.create_dataset("images", (sizes["pictures"], SIDE, SIDE, 3), np.uint8, chunks=(1, SIDE, SIDE, 3), compression="lzf")
        for row in stimulus:
            images[row] = random.integers(0, 256, (16, 16, 3), np.uint8).repeat(SIDE // 16, 0).repeat(SIDE // 16, 1)
        file["id"], file["sha256"] = ([form.format(k) for k in range(sizes["pictures"])] for form in ("{}", "{:064d}"))
        file["test"] = np.arange(sizes["pictures"]) < tested

    order = random.permutation(np.repeat(np.arange(shown), REPEATS))
    split = np.where(random.random(shown) < HELD_OUT, 1, 0)
    split[:tested] = 2
    blocks = (seen[rows] @ weights + 2 * random.standard_normal((len(rows), sizes["voxels"]), np.float32) for rows in np.array_split(order, 40))
    write_prepared(
        folder / "subj01.h5", blocks, stimulus=stimulus[order], session=np.arange(len(order)) * 40 // len(order), split=split[order],
        stimuli=sizes["pictures"], dataset="nsd", subject="subj01", n_voxels=sizes["voxels"],
    )  # fmt: skip
    write_networks(folder)


def write_networks(folder: Path) -> None:
    """Foundations and a measuring network, small and with random weights."""
    import torch
    from panel import write_weights

    from unimind.foundations.diffusion import Diffusion
    from unimind.foundations.study_autoencoder import SpaceToDepthAutoencoder
    from unimind.foundations.study_clip import StudyClip
    from unimind.storage import save_model
    from unimind.training.foundations.diffusion import SCHEDULER

    torch.manual_seed(0)
    unet = {
        "sample_size": LATENT[1], "in_channels": 2 * LATENT[0] + 2, "out_channels": LATENT[0], "block_out_channels": [8, 16], "layers_per_block": 1,
        "down_block_types": ["DownBlock2D", "DownBlock2D"], "up_block_types": ["UpBlock2D", "UpBlock2D"], "cross_attention_dim": 16,
        "attention_head_dim": 4, "norm_num_groups": 8, "resnet_time_scale_shift": "scale_shift",
    }  # fmt: skip
    conditioner = {"dim": DIM, "context_dim": 16, "tokens": 2, "time_dim": 32}
    clip, coder = StudyClip(DIM, 64, width=4), SpaceToDepthAutoencoder(LATENT[0], SIDE // LATENT[1], 8)
    diffusion = Diffusion("tiny", unet, SCHEDULER, LATENT, conditioner, coordinates=True, sketch={"width": 8, "hidden": 32})
    for name, kind, model in (("embedding", "study-clip", clip), ("autoencoder", "study", coder), ("diffusion", "study", diffusion)):
        (folder / name).mkdir()
        save_model(folder / name, model.state_dict(), {"kind": kind, "name": f"tiny {name}", "arguments": model.arguments})
    (folder / "weights").mkdir()
    write_weights(folder / "weights", ["alexnet"])


#: What a stage's process runs: the stage, with random weights taken for the manifest's.
RUN = """
import functools, sys
from unimind.cli import main
from unimind.evaluation import networks
rows = {name: row | {"sha256": ""} for name, row in networks.manifest().items()}
networks.manifest = functools.cache(lambda: rows)
if main(sys.argv[1:]):
    sys.exit(1)
"""


def calls(folder: Path) -> list[tuple[str, str, list[str]]]:
    """(stage, what it does, its arguments), in order."""
    study, prepared, embeddings, stimuli = (str(folder / name) for name in ("study.json", "subj01.h5", "embeddings.h5", "stimuli.h5"))
    foundations = [word for name in ("diffusion", "autoencoder", "embedding") for word in (f"--{name}", str(folder / name))]
    subject = ["--dataset", "nsd", "--subject", "subj01"]
    own = ["--prepared", prepared, "--embeddings", embeddings]
    group = ["--group", "nsd", "--embeddings", *[embeddings] * SUBJECTS]
    found = []
    for method in ("unimind", "prior"):
        out = ["--method", method, *group, "--prepared", *[prepared] * SUBJECTS, "--out", str(folder / f"taught-{method}")]
        found.append(("teach", f"{method}, {SUBJECTS} subjects", out))
    for method in ("unimind", "prior", "ridge"):
        taught = [] if method == "ridge" else ["--taught", str(folder / f"taught-{method}")]
        found.append(("enter", method, ["--method", method, *subject, *own, *taught, "--out", str(folder / f"entered-{method}")]))
    entered = str(folder / "entered-unimind")
    places = ["--entered", *[entered] * SUBJECTS, "--checkpoints", str(folder / "checkpoints"), "--out", str(folder / "aligned")]
    found.append(("align", f"unimind, {STEPS} steps of 256", ["--method", "unimind", *group, *places]))
    model = ["--model", str(folder / "aligned"), "--entered", entered]
    places = ["--stimuli", stimuli, "--out", str(folder / "reconstructed.h5"), "--grid", str(folder / "grid.png")]
    found.append(("reconstruct", "unimind, 982 pictures x 5 samples, twice", ["--method", "unimind", *subject, *own, *model, *foundations, *places]))
    places = ["--stimuli", stimuli, "--embeddings", embeddings, *foundations, "--out", str(folder / "controls.h5")]
    found.append(("reconstruct-controls", "982 pictures, 5 samples of the ceiling", places))
    found.append(("features", "AlexNet, CLIP", ["--stimuli", stimuli, "--embedding", str(folder / "embedding"), "--out", str(folder / "features.h5")]))
    places = ["--reconstructions", str(folder / "reconstructed.h5"), "--controls", str(folder / "controls.h5"), "--features", str(folder / "features.h5")]
    places += ["--stimuli", stimuli, *own, "--embedding", str(folder / "embedding"), "--out", str(folder / "metrics")]
    found.append(("score", "unimind: low level, AlexNet, CLIP, embedding", [*subject, *places]))
    return [(stage, what, [stage, "--study", study, *words]) for stage, what, words in found]


def planned(folder: Path, stage: str, what: str) -> "Cost":
    """What `unimind plan` says of a stage's job for subject 1, or for all of them."""
    from unimind.report.cost import costs
    from unimind.study import parse_study

    method = what.partition(",")[0].partition(":")[0]
    found = [cost for cost in costs(parse_study(study_of(folder))) if cost.job.stage == stage and cost.job.names.get("subject", "subj01") == "subj01"]
    return next(cost for cost in found if cost.job.names.get("method", method) == method)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where data and results are written and stay; by default a temporary one, removed at the end")
    parser.add_argument("--shrink", type=float, default=1.0, help="divides trials, voxels and pictures")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES), help="those measured; what is missing in --folder for them must be there")
    given = parser.parse_args()
    folder = given.folder or Path(tempfile.mkdtemp(prefix="rehearsal-"))
    try:
        sizes = {name: max(30, round(size / given.shrink)) for name, size in SIZES.items()}
        rows = []
        if not (folder / "study.json").exists():
            folder.mkdir(parents=True, exist_ok=True)
            place = str(Path(__file__).resolve().parent)
            script = f"import sys; sys.path.insert(0, {place!r}); import rehearsal, pathlib; rehearsal.write(pathlib.Path({str(folder)!r}), {sizes!r})"
            rows.append(("data written", "", None, measured([], script)))
            (folder / "study.json").write_text(json.dumps(study_of(folder)))
        for stage, what, words in calls(folder):
            if stage in given.stages:
                rows.append((stage, what, planned(folder, stage, what), measured(words, RUN)))  # type: ignore[arg-type]
                print(f"{stage}, {what}: {rows[-1][-1]['peak'] / 1e9:.2f} GB, {rows[-1][-1]['cpu']:.0f} CPU s", file=sys.stderr)
    finally:
        if given.folder is None:
            shutil.rmtree(folder)
    size = "" if given.shrink == 1 else f", divided by {given.shrink:g}"
    print(f"{SIZES['trials']} trials x {SIZES['voxels']} voxels, {SIZES['pictures']} pictures, {SIZES['tested']} of them tested{size}\n")
    print("| stage | | memory planned and asked for [GB] | peak [GB] | CPU [s] | wall [s] | read, planned [GB] | read | written, planned [GB] | written |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for stage, what, plan, took in rows:
        planned_bytes = {"read": None, "written": None} if plan is None else {"read": plan.read, "written": plan.written}
        read, written = (" | ".join("-" if value is None else f"{value / 1e9:.2f}" for value in (planned_bytes[key], took[key])) for key in planned_bytes)
        memory = f"{'-' if plan is None else f'{plan.host / 1e9:.0f}'} | {took['peak'] / 1e9:.2f}"
        print(f"| {stage} | {what} | {memory} | {took['cpu']:.0f} | {took['seconds']:.0f} | {read} | {written} |")
    if beyond := [f"{stage} ({what})" for stage, what, plan, took in rows if plan is not None and took["peak"] > plan.host]:
        sys.exit(f"more memory than their jobs ask for: {', '.join(beyond)}")


if __name__ == "__main__":
    main()

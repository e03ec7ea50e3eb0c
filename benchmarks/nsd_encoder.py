"""What a cross-subject encoder costs at NSD's size: closed forms and one shared network, against one epoch of two networks on voxels.

    python benchmarks/nsd_encoder.py [--subjects 4] [--pictures 9000] [--steps 2000] [--folder FOLDER]     # about 20 CPU-minutes

Writes prepared files of NSD's voxel counts (responses are linear in the pictures' features, with noise; values do not matter for time
and memory) and runs the stages teach, enter and align of the method `unimind` on them, each in a process of its own. Beside it: one
epoch of MinD-Vis's ViT (wrap) and of an adapter per subject with an MLP, as MindEye2 enters voxels, timed on one of their steps.
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from apart import measured

#: Voxels of nsdgeneral of subjects 1, 2, 5 and 7, and of 3, 4, 6 and 8.
VOXELS = {"subj01": 15724, "subj02": 14278, "subj05": 13039, "subj07": 12682, "subj03": 15226, "subj04": 13153, "subj06": 17907, "subj08": 14386}
DIM, LATENT, FEATURES = 1024, (4, 32, 32), 200
HELD_OUT = 0.1
UNIMIND: dict[str, Any] = {
    "enter": {"kind": "decoded"}, "body": {"kind": "mlp", "width": 1024, "depth": 2, "dropout": 0.3},
    "align": {"losses": {"siamese": 0.0, "softclip": 0.6}, "retrieval_head": True, "temperature": 0.1, "noise": 0.4},
    "sampling": {"strength": 0.5},
}  # fmt: skip
VIT = {"kind": "vit", "width": 1024, "depth": 24, "heads": 16, "patch": 16}
ON_VOXELS = {
    "ViT (MinD-Vis's size)": ({"kind": "wrap", "size": 15728, "repeats": "mean"}, VIT, 1),
    "adapter and MLP (MindEye2-like)": ({"kind": "adapter", "size": 4096, "repeats": "mean"}, {"kind": "mlp", "width": 4096, "depth": 4, "dropout": 0.15}, 24),
}


def study_of(subjects: list[str], steps: int) -> dict:
    """The study, as plain types."""
    training = {"steps": steps, "batch_size": 256, "learning_rate": 1e-3, "validate_every": steps}
    methods = {"unimind": UNIMIND | {"align": UNIMIND["align"] | {"training": training}}}
    return {
        "name": "nsd-encoder", "datasets": {"nsd": {"source": "nsd", "training_subjects": subjects}}, "methods": methods,
        "foundations": {"diffusion": {"kind": "study"}}, "threads": 2,
    }  # fmt: skip


def write(folder: Path, subjects: list[str], pictures: int) -> None:
    """Prepared and embeddings files; responses are made and written a block of trials at a time."""
    import h5py
    import numpy as np

    from unimind.data.prepared import write_prepared

    random = np.random.default_rng(0)
    axes, unfold = random.normal(size=(FEATURES, DIM)).astype(np.float32), random.normal(size=(FEATURES, int(np.prod(LATENT)))).astype(np.float32)
    for subject in subjects:
        seen = random.normal(size=(pictures, FEATURES)).astype(np.float32) / np.sqrt(1 + np.arange(FEATURES, dtype=np.float32))
        with h5py.File(folder / f"{subject}.embeddings.h5", "w") as file:
            embedding = seen @ axes + 3
            file["embedding"] = embedding / np.linalg.norm(embedding, axis=1, keepdims=True)
            latent = file.create_dataset("latent", (pictures, *LATENT), np.float32, chunks=(1, *LATENT))
            for rows in np.array_split(np.arange(pictures), 20):
                latent[rows] = (seen[rows] @ unfold).reshape(-1, *LATENT) / 10
        count = VOXELS[subject]
        weights = random.normal(size=(FEATURES, count)).astype(np.float32) / np.sqrt(1 + np.arange(FEATURES, dtype=np.float32))[:, None]
        blocks = ((seen[rows] @ weights + 2 * random.normal(size=(len(rows), count))).astype(np.float32) for rows in np.array_split(np.arange(pictures), 40))
        split = np.where(np.arange(pictures) % round(1 / HELD_OUT) == 0, 1, 0)
        split[-50:] = 2
        write_prepared(folder / f"{subject}.h5", blocks, stimulus=np.arange(pictures), session=np.zeros(pictures, int), split=split, stimuli=pictures,
                       dataset="nsd", subject=subject, n_voxels=count)  # fmt: skip


def on_voxels(name: str, subjects: list[str]) -> dict[str, Any]:
    """One training step of a network on voxels, after one that allocates, in a process of its own."""
    enter, body, batch = ON_VOXELS[name]
    vit = {"mlp_ratio": 1.0, "decoder_width": 512, "decoder_depth": 8} if body["kind"] == "vit" else {}
    counts = {subject: VOXELS[subject] for subject in subjects}
    script = f"""
import json, time, torch
from unimind.models.encoder import Encoder
from unimind.models.enter import Adapters
from unimind.models.space import PictureSpace
space = PictureSpace({DIM}, {LATENT!r}, {{"embedding": 512, "latent": 128}})
enter, body, counts = {enter | {"order": "stored", "dropout": 0.0}!r}, {vit | body!r}, {counts!r}
encoder = Encoder(enter, body, space, ("embedding", "latent"), counts)
optimiser = torch.optim.AdamW(encoder.parameters())
subject = next(iter(counts))
def step():
    optimiser.zero_grad()
    out = encoder(torch.randn({batch}, 1, counts[subject]), subject)
    sum(part.square().mean() for part in out.coordinates.values()).backward()
    optimiser.step()
step()
begun, cpu = time.monotonic(), time.process_time()
step()
took = [time.monotonic() - begun, time.process_time() - cpu]
own = sum(p.numel() for p in encoder.enter.maps.parameters()) if isinstance(encoder.enter, Adapters) else 0
print(json.dumps([*took, sum(p.numel() for p in encoder.parameters()) - own, own // len(counts)]))
"""
    found = measured([], script)
    seconds, cpu, shared, own = json.loads(found["said"].splitlines()[-1])
    return found | {"seconds": seconds, "cpu": cpu, "shared": shared, "own": own, "batch": batch}


def parameters(directory: Path) -> int:
    return json.loads((directory / "efficiency.json").read_text())["parameters"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subjects", type=int, default=4)
    parser.add_argument("--pictures", type=int, default=9000)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--folder", type=Path, help="where everything is written and stays; by default a temporary one")
    given = parser.parse_args()
    folder = given.folder or Path(tempfile.mkdtemp(prefix="nsd-encoder-"))
    try:
        folder.mkdir(exist_ok=True, parents=True)
        compare(folder, list(VOXELS)[: given.subjects], given.pictures, given.steps)
    finally:
        if given.folder is None:
            shutil.rmtree(folder)


def compare(folder: Path, subjects: list[str], pictures: int, steps: int) -> None:
    """Run everything, and print the tables."""
    place, words = str(Path(__file__).resolve().parent), f"pathlib.Path({str(folder)!r}), {subjects!r}, {pictures}"
    measured([], f"import sys; sys.path.insert(0, {place!r}); import nsd_encoder, pathlib; nsd_encoder.write({words})")
    study = folder / "study.json"
    study.write_text(json.dumps(study_of(subjects, steps)))
    prepared, embeddings = [str(folder / f"{s}.h5") for s in subjects], [str(folder / f"{s}.embeddings.h5") for s in subjects]
    entered, taught, aligned = [str(folder / f"entered-{s}") for s in subjects], str(folder / "taught"), str(folder / "aligned")
    method, files = ["--study", str(study), "--method", "unimind"], ["--prepared", *prepared, "--embeddings", *embeddings]
    rows: list[tuple[str, dict[str, Any], float]] = []

    def stage(what: str, *arguments: str, times: float = 1) -> None:
        rows.append((what, measured([arguments[0], *method, *arguments[1:]]), times))
        print(f"{what}: {rows[-1][1]['cpu']:.0f} CPU s", file=sys.stderr)

    stage(f"teach, {len(subjects)} subjects", "teach", "--group", "nsd", *files, "--out", taught)
    for subject, own, targets, out in zip(subjects, prepared, embeddings, entered, strict=True):
        places = ["--dataset", "nsd", "--subject", subject, "--prepared", own, "--embeddings", targets, "--taught", taught, "--out", out]
        stage(f"enter {subject}, {VOXELS[subject]:,} voxels", "enter", *places)
    places = ["--embeddings", *embeddings, "--entered", *entered, "--checkpoints", str(folder / "checkpoints"), "--out", aligned]
    stage(f"align, {steps} steps of 256", "align", "--group", "nsd", *places)
    trained, counts = len(subjects) * pictures * (1 - HELD_OUT), []
    for name in ON_VOXELS:
        found = on_voxels(name, subjects)
        rows.append((f"{name}: one epoch of {trained:.0f} pictures, from one step of {found['batch']}", found, trained / found["batch"]))
        counts.append((name, found["shared"], found["own"]))
    of_each = sum(map(parameters, map(Path, entered))) // len(subjects)
    print(f"{len(subjects)} subjects x {pictures} pictures\n\n| | wall [s] | CPU [s] | peak memory [GB] |\n|---|---|---|---|")
    for what, took, times in rows:
        print(f"| {what} | {took['seconds'] * times:.0f} | {took['cpu'] * times:.0f} | {took['peak'] / 1e9:.1f} |")
    print("\n| | parameters shared | per subject |\n|---|---|---|")
    for name, shared, each in [("unimind", parameters(Path(aligned)), of_each), *counts]:
        print(f"| {name} | {shared:,} | {each:,} |")


if __name__ == "__main__":
    main()

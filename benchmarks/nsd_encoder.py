"""What a cross-subject encoder costs at NSD's size: closed forms and one shared network, against one epoch of two networks on voxels.

    python benchmarks/nsd_encoder.py [--subjects 4] [--pictures 9000] [--steps 2000] [--folder FOLDER]

Writes prepared files of NSD's voxel counts (responses are linear in the pictures' features, with noise; values do not matter for time
and memory) and runs the stages teach, enter and align of the method `unimind` on them, each in a process of its own. Beside it: one
epoch of MinD-Vis's ViT (wrap) and of an adapter per subject with an MLP, as MindEye2 enters voxels, timed on one of their steps.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np

#: Voxels of nsdgeneral of subjects 1, 2, 5 and 7, and of 3, 4, 6 and 8.
VOXELS = {"subj01": 15724, "subj02": 14278, "subj05": 13039, "subj07": 12682, "subj03": 15226, "subj04": 13153, "subj06": 17907, "subj08": 14386}
DIM, LATENT, FEATURES = 1024, (4, 32, 32), 200
UNIMIND: dict[str, Any] = {
    "enter": {"kind": "decoded"}, "body": {"kind": "mlp", "width": 1024, "depth": 2, "dropout": 0.3},
    "align": {"losses": {"siamese": 0.0, "softclip": 0.6}, "temperature": 0.1, "noise": 0.4},
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
        split = np.where(np.arange(pictures) % 10 == 0, 1, 0)
        split[-50:] = 2
        write_prepared(folder / f"{subject}.h5", blocks, stimulus=np.arange(pictures), session=np.zeros(pictures, int), split=split, stimuli=pictures,
                       dataset="nsd", subject=subject, n_voxels=count)  # fmt: skip


def run(folder: Path, name: str, *arguments: str) -> dict:
    """One stage in a process of its own: seconds, CPU seconds and peak memory."""
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    code = (
        "import resource, sys; from unimind.cli import main; status = main(sys.argv[1:]); "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss); sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"stage": name, "seconds": time.monotonic() - begun, "cpu": cpu, "gb": int(done.stdout.split()[-1]) / 1e6}


def on_voxels(name: str, subjects: list[str]) -> dict:
    """One training step of a network on voxels, in a process of its own: seconds, CPU seconds, peak memory, parameters."""
    code = f"""
import json, resource, time, torch
from unimind.models.encoder import Encoder
from unimind.models.space import PictureSpace
enter, body, batch = {ON_VOXELS[name]!r}
counts = {{subject: count for subject, count in {VOXELS!r}.items() if subject in {subjects!r}}}
space = PictureSpace({DIM}, {LATENT!r}, {{"embedding": 512, "latent": 128}})
encoder = Encoder(enter | {{"order": "stored", "dropout": 0.0}}, {{"mlp_ratio": 1.0, "decoder_width": 512, "decoder_depth": 8}} | body
                  if body["kind"] == "vit" else body, space, ("embedding", "latent"), counts)
optimiser = torch.optim.AdamW(encoder.parameters())
subject = next(iter(counts))
def step():
    out = encoder(torch.randn(batch, 1, counts[subject]), subject)
    sum(part.square().mean() for part in out.coordinates.values()).backward()
    optimiser.step()
step()
begun, cpu = time.monotonic(), time.process_time()
step()
print(json.dumps(dict(batch=batch, seconds=time.monotonic() - begun, cpu=time.process_time() - cpu, parameters=sum(p.numel() for p in encoder.parameters()),
                      gb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subjects", type=int, default=4)
    parser.add_argument("--pictures", type=int, default=9000)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    folder = given.folder or Path(tempfile.mkdtemp())
    folder.mkdir(exist_ok=True, parents=True)
    subjects = list(VOXELS)[: given.subjects]
    write(folder, subjects, given.pictures)
    study = folder / "study.json"
    study.write_text(json.dumps(study_of(subjects, given.steps)))
    prepared, embeddings = [str(folder / f"{s}.h5") for s in subjects], [str(folder / f"{s}.embeddings.h5") for s in subjects]
    method = ["--study", str(study), "--method", "unimind"]
    places = ["--prepared", *prepared, "--embeddings", *embeddings, "--out", str(folder / "taught")]
    rows = [run(folder, f"teach, {len(subjects)} subjects", "teach", *method, "--group", "nsd", *places)]
    for subject, own, targets in zip(subjects, prepared, embeddings, strict=True):
        places = ["--prepared", own, "--embeddings", targets, "--taught", str(folder / "taught"), "--out", str(folder / f"entered-{subject}")]
        rows.append(run(folder, f"enter {subject}", "enter", *method, "--dataset", "nsd", "--subject", subject, *places))
    entered = [str(folder / f"entered-{s}") for s in subjects]
    places = ["--embeddings", *embeddings, "--entered", *entered, "--checkpoints", str(folder / "checkpoints"), "--out", str(folder / "aligned")]
    rows.append(run(folder, f"align, {given.steps} steps of 256", "align", *method, "--group", "nsd", *places))
    for name in ON_VOXELS:
        found = on_voxels(name, subjects)
        steps = given.subjects * given.pictures * 0.9 / found["batch"]
        rows.append(found | {"stage": f"{name}: one epoch, from one step", "seconds": found["seconds"] * steps, "cpu": found["cpu"] * steps})
    print("| stage | wall [s] | CPU [s] | peak memory [GB] |\n|---|---|---|---|")
    for row in rows:
        print(f"| {row['stage']} | {row['seconds']:.0f} | {row['cpu']:.0f} | {row['gb']:.1f} |")
    print(f"unimind, shared: {json.loads((folder / 'aligned/efficiency.json').read_text())['parameters']:,} parameters")
    for row in rows:
        if "parameters" in row:
            print(f"{row['stage'].split(':')[0]}: {row['parameters']:,} parameters")
    if given.folder is None:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()

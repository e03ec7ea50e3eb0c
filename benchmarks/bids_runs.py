"""Time and memory of single-trial betas from full-size fMRIPrep runs: 300 volumes of 90 x 104 x 72, least squares separate.

    python benchmarks/bids_runs.py --runs 2

Runs are read twice, once for voxels that cannot be used and once for their betas; both are linear in the number of runs.
"""

import argparse
import json
import os
import resource
import tempfile
import time
from pathlib import Path

import nibabel
import numpy as np
from PIL import Image

from unimind.data.sources import open_source
from unimind.study import parse_study

GRID, VOLUMES, TRIALS, STEP, VOXELS = (90, 104, 72), 300, 75, 1.6, 20_000


def write(root: Path, runs: int) -> None:
    """A laboratory of so many runs, in one session."""
    random = np.random.default_rng(0)
    func, raw = root / "derivatives/fmriprep/sub-01/ses-01/func", root / "sub-01/ses-01/func"
    for folder in (func, raw, root / "pictures"):
        folder.mkdir(parents=True)
    for k in range(TRIALS):
        Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(root / f"pictures/{k:03d}.png")
    mask = np.zeros(GRID, np.uint8)
    mask.reshape(-1)[np.sort(random.permutation(mask.size)[:VOXELS])] = 1
    nibabel.save(nibabel.Nifti1Image(mask, np.eye(4)), root / "mask.nii.gz")
    noise = random.integers(0, 8, (*GRID, 10), dtype=np.int16)
    for run in range(1, runs + 1):
        image = nibabel.Nifti1Image(np.tile(noise, VOLUMES // 10) + 1000, np.eye(4))
        image.header.set_zooms((1, 1, 1, STEP))
        stem = f"sub-01_ses-01_task-images_run-{run}"
        nibabel.save(image, func / f"{stem}_space-T1w_desc-preproc_bold.nii.gz")
        (func / f"{stem}_space-T1w_desc-preproc_bold.json").write_text(json.dumps({"RepetitionTime": STEP}))
        order = random.permutation(TRIALS)
        rows = [f"{4 + 6 * k}\t1\t{picture:03d}.png" for k, picture in enumerate(order)]
        (raw / f"{stem}_events.tsv").write_text("\n".join(["onset\tduration\tstim_file", *rows]) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        if (child := os.fork()) == 0:  # writing takes more memory than reading does
            write(root, given.runs)
            os._exit(0)
        os.waitpid(child, 0)
        section = {
            "source": "bids", "root": folder, "training_subjects": ["01"], "derivatives": "derivatives/fmriprep", "images": "pictures",
            "rois": {"all": {"file": "mask.nii.gz"}}, "estimate": {"kind": "lss", "confounds": []},
        }  # fmt: skip
        method = {"enter": {"kind": "ridge"}, "scope": "subject"}
        study = parse_study({"name": "s", "datasets": {"lab": section}, "methods": {"m": method}, "foundations": {"diffusion": {"kind": "study"}}})
        begun, spent = time.perf_counter(), time.process_time()
        raw = open_source(study, "lab").subject("01")
        trials = sum(len(block) for block in raw.trials.responses())
        wall, cpu = time.perf_counter() - begun, time.process_time() - spent
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{given.runs} runs: {trials} betas of {raw.n_voxels} voxels, {cpu:.0f} s of CPU ({wall:.0f} s), at most {peak:.2f} GiB")
    print(f"20 runs, extrapolated: {20 * cpu / given.runs:.0f} s of CPU")


if __name__ == "__main__":
    main()

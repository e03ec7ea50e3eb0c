"""How fast, and in how much memory, NSD's betas become responses: `python benchmarks/nsd_extraction.py`.

Makes one session of NSD's size in both of its forms, then extracts nsdgeneral's voxels from 1 and from 4 sessions (the same
file under four names), each in a process of its own, and compares with a bare sequential read of the same bytes.
"""

import argparse
import gzip
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import nibabel
import numpy as np

from unimind.data.normalise import session_zscores
from unimind.data.prepared import write_prepared
from unimind.data.sources.nsd import read_betas

SHAPE, TRIALS, VOXELS = (81, 104, 83), 750, 15724  # subj01
ENDINGS = {"nifti": "nii.gz", "hdf5": "hdf5"}


def anatomy(shape: tuple[int, int, int], voxels: int) -> tuple[np.ndarray, np.ndarray]:
    """A brain of about a third of the grid, and its `voxels` most posterior voxels."""
    centred = [np.linspace(-1, 1, n) for n in shape]
    radius = np.sqrt(sum(axis**2 for axis in np.meshgrid(*centred, indexing="ij", sparse=True)))
    brain = radius < 0.87
    behind = np.where(brain, np.arange(shape[1])[None, :, None], shape[1])
    roi = np.zeros(shape, bool)
    roi.ravel()[np.argsort(behind, axis=None, kind="stable")[:voxels]] = True
    return brain, roi


def make(folder: Path, shape: tuple[int, int, int], trials: int, brain: np.ndarray) -> None:
    """One session of int16 betas as NIfTI (X, Y, Z, trials) and as HDF5 (trials, Z, Y, X), a voxel a chunk; sessions 2 to 4 are links to it."""
    random = np.random.default_rng(0)
    betas = np.zeros((trials, *shape[::-1]), np.int16)
    inside = brain.T
    for trial in betas:
        trial[inside] = random.normal(0, 600, inside.sum())
    header = nibabel.Nifti1Image(np.zeros((*shape, 1), np.int16), np.eye(4)).header
    header.set_data_shape((*shape, trials))
    header["vox_offset"] = 352
    with gzip.open(folder / "betas_session01.nii.gz", "wb", compresslevel=1) as stream:
        header.write_to(stream)
        stream.write(bytes(352 - stream.tell()))
        for trial in betas:
            stream.write(trial.data)
    with h5py.File(folder / "betas_session01.hdf5", "w") as file:
        stored = file.create_dataset("betas", betas.shape, np.int16, chunks=(trials, 1, 1, 1))
        for z in range(shape[2]):
            stored[:, z] = betas[:, z]
    for ending in ENDINGS.values():
        for number in (2, 3, 4):
            os.link(folder / f"betas_session01.{ending}", folder / f"betas_session{number:02d}.{ending}")


def bare_read(path: Path) -> float:
    """Seconds to read a file front to back, 1 MiB at a time; the best of three, so from the page cache where it fits."""
    times = []
    for _ in range(3):
        begun = time.perf_counter()
        with open(path, "rb", buffering=0) as stream:
            while stream.read(2**20):
                pass
        times.append(time.perf_counter() - begun)
    return min(times)


def gunzip(path: Path) -> float:
    begun = time.perf_counter()
    with gzip.open(path) as stream:
        while stream.read(2**20):
            pass
    return time.perf_counter() - begun


def extract(folder: Path, form: str, sessions: int) -> dict[str, float]:
    """Extract, then z-score and write as `prepare` does; seconds spent extracting and in all, and peak memory in MB."""
    roi = np.load(folder / "roi.npy")
    trials = int((folder / "trials").read_text())
    reading = 0.0

    def responses():
        nonlocal reading
        for number in range(1, sessions + 1):
            begun = time.perf_counter()
            betas = read_betas(folder / f"betas_session{number:02d}.{ENDINGS[form]}", roi)
            reading += time.perf_counter() - begun
            yield betas

    before = peak_memory()
    begun = time.perf_counter()
    session = np.repeat(np.arange(sessions), trials)
    picture = np.arange(len(session)) // 3
    split = np.where(picture % 10 == 0, 2, 0)
    scaled = session_zscores(responses, session, split == 0, "benchmark")
    write_prepared(
        folder / "prepared.h5", scaled, n_voxels=int(roi.sum()), stimulus=picture, session=session, split=split, stimuli=int(picture.max()) + 1,
        dataset="nsd", subject="subj01",
    )  # fmt: skip
    return {"extraction": reading, "total": time.perf_counter() - begun, "peak": peak_memory(), "before": before}


def peak_memory() -> float:
    """Peak resident memory of this process in MB; on Linux without what a forked process inherits from its parent."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.findall(r"VmHWM:\s+(\d+) kB", status.read_text())[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", type=int, default=1, help="divide every side of the grid by this, for a trial")
    parser.add_argument("--folder", type=Path, help="where to put about 2.5 GB for a while; by default a temporary folder")
    parser.add_argument("--extract", nargs=2, metavar=("FORM", "SESSIONS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.extract:
        print(json.dumps(extract(arguments.folder, arguments.extract[0], int(arguments.extract[1]))))
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        shape = tuple(n // arguments.scale for n in SHAPE)
        brain, roi = anatomy(shape, VOXELS // arguments.scale**3)
        np.save(folder / "roi.npy", roi)
        (folder / "trials").write_text(str(TRIALS))
        make(folder, shape, TRIALS, brain)
        print(f"one session of {TRIALS} x {shape}, {roi.sum()} voxels kept; seconds; the files are in the page cache where memory allows")
        for form, ending in ENDINGS.items():
            path = folder / f"betas_session01.{ending}"
            bare = bare_read(path)
            unpacking = f", {gunzip(path):.2f} to unpack" if form == "nifti" else ""
            print(f"{form}: {path.stat().st_size / 2**20:.0f} MiB, bare sequential read {bare:.2f}{unpacking}")
            for sessions in (1, 4):
                command = [sys.executable, __file__, "--folder", str(folder), "--extract", form, str(sessions)]
                found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                print(
                    f"  {sessions} sessions: extraction {found['extraction']:.2f} ({found['extraction'] / (sessions * bare):.2f} x the bare read), "
                    f"with z-scoring and writing {found['total']:.2f}; peak memory {found['peak']:.0f} MB ({found['before']:.0f} MB before any data)"
                )


if __name__ == "__main__":
    main()

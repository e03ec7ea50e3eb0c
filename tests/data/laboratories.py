"""Made-up laboratories with planted signals, in true layouts: BIDS betas with trial tables, fMRIPrep runs with events, GLMsingle's results, MOSAIC."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import nibabel
import numpy as np
from PIL import Image

SIZE = 24
GRID = (16, 12, 8)
AFFINE = np.array([[-2.0, 0, 0, 16], [0, 2, 0, -12], [0, 0, 2, -8], [0, 0, 0, 1]])
LABELS = {"V1": [1, 2], "V2": [3]}


def pictures_of(random: np.random.Generator, count: int) -> np.ndarray:
    """Smooth colours with a grating: uint8 (count, SIZE, SIZE, 3)."""
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE
    found = []
    for _ in range(count):
        blobs = Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        angle, phase = random.uniform(0, np.pi), random.uniform(0, 2 * np.pi)
        wave = np.sin(2 * np.pi * 4 * (np.cos(angle) * x + np.sin(angle) * y) + phase)
        found.append(np.clip(np.asarray(blobs, float) + random.uniform(0, 40) * wave[..., None], 0, 255).astype(np.uint8))
    return np.stack(found)


def signals(random: np.random.Generator, pictures: np.ndarray, voxels: int) -> np.ndarray:
    """What each voxel makes of each picture, with a non-linear part: (n_pictures, voxels), variance 1."""
    small = pictures.reshape(len(pictures), 6, 4, 6, 4, 3).mean((2, 4)).reshape(len(pictures), -1) / 255
    seen = np.tanh((small - small.mean(0)) @ random.normal(size=(small.shape[1], voxels)))
    return (seen - seen.mean(0)) / seen.std(0)


@dataclass
class Betas:
    """A laboratory with single-trial betas in BIDS.

    Attributes
    ----------
    shown : dict of subject to list of arrays
        Picture of every trial, per session, in order of presentation.
    measured : dict of subject to array
        Responses of the atlas's voxels, in order of presentation, (n_trials, n_voxels), in C order of the volume.
    """

    root: Path
    seed: int = 0
    subjects: tuple[str, ...] = ("01",)
    sessions: int = 3
    runs: int = 4
    trials: int = 18  # of a run
    count: int = 72
    noise: float = 1.3
    names: list[str] = field(default_factory=list)
    shown: dict = field(default_factory=dict)
    measured: dict = field(default_factory=dict)
    atlas: np.ndarray = field(default_factory=lambda: np.empty(0))

    def write(self) -> "Betas":
        random = np.random.default_rng(self.seed)
        pixels = pictures_of(random, self.count)
        self.pixels = pixels
        self.names = [f"img_{k:03d}.png" for k in range(self.count)]
        (self.root / "stimuli").mkdir(parents=True, exist_ok=True)
        for name, picture in zip(self.names, pixels, strict=True):
            Image.fromarray(picture).save(self.root / "stimuli" / name, compress_level=1)
        self.atlas = np.zeros(GRID, np.int16)
        self.atlas[1:6, 2:6, 2:6], self.atlas[6:8, 2:7, 2:6], self.atlas[8:10, 3:8, 3:7] = 1, 3, 2  # mostly on one side
        for subject in self.subjects:
            self._subject(random, subject, pixels)
        return self

    def order(self, random: np.random.Generator) -> np.ndarray:
        total = self.sessions * self.runs * self.trials
        return random.permutation(np.resize(np.arange(self.count), total))

    def _subject(self, random: np.random.Generator, subject: str, pixels: np.ndarray) -> None:
        inside = self.atlas > 0
        signal = signals(random, pixels, int(inside.sum()))
        per = self.runs * self.trials
        self.shown[subject] = np.split(self.order(random), self.sessions)
        measured = []
        folder = self.root / f"derivatives/glmsingle/sub-{subject}"
        for session, shown in enumerate(self.shown[subject], 1):
            volume = random.normal(size=(*GRID, per)).astype(np.float32)
            volume[:, -1] = 0  # outside the brain
            betas = signal[shown] + self.noise * random.normal(size=(per, signal.shape[1])) + random.normal(size=signal.shape[1])
            volume[inside] = betas.T
            measured.append(betas)
            place = folder / f"ses-{session:02d}/func"
            place.mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(volume, AFFINE), self.betas(subject, session))
            self.table(subject, session, [self.names[k] for k in shown])
        self.measured[subject] = np.concatenate(measured).astype(np.float32)
        masks = self.root / "derivatives/masks"
        masks.mkdir(exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(self.atlas, AFFINE), masks / f"sub-{subject}_dseg.nii.gz")

    def betas(self, subject: str, session: int) -> Path:
        stem = f"sub-{subject}_ses-{session:02d}_task-images_space-T1w_stat-effect_desc-SingletrialBetas_statmap"
        return self.root / f"derivatives/glmsingle/sub-{subject}/ses-{session:02d}/func/{stem}.nii.gz"

    def table(self, subject: str, session: int, labels: list[str], index: np.ndarray | None = None) -> None:
        """Write the trial table of a session."""
        index = np.arange(len(labels)) if index is None else index
        rows = [f"ses-{session:02d}\t{k // self.trials + 1}\t{place}\t{label}" for k, (place, label) in enumerate(zip(index, labels, strict=True))]
        path = self.betas(subject, session).with_name(f"sub-{subject}_ses-{session:02d}_task-images_desc-SingletrialBetas_trials.tsv")
        path.write_text("\n".join(["session\trun\tbeta_index\tlabel", *rows]) + "\n")

    # what goes wrong in laboratories

    def off_by_one(self, subject: str, sessions: list[int]) -> None:
        for session in sessions:
            shown = [self.names[k] for k in self.shown[subject][session - 1]]
            self.table(subject, session, shown, np.roll(np.arange(len(shown)), -1))

    def swapped(self, subject: str, a: int, b: int) -> None:
        for session, other in ((a, b), (b, a)):
            self.table(subject, session, [self.names[k] for k in self.shown[subject][other - 1]])

    def run_again(self, subject: str, session: int, run: int) -> None:
        """The betas of a run are those of the run before."""
        path = self.betas(subject, session)
        volume = np.asarray(nibabel.load(path).dataobj).copy()
        begin = (run - 1) * self.trials
        volume[..., begin : begin + self.trials] = volume[..., begin - self.trials : begin]
        nibabel.save(nibabel.Nifti1Image(volume, AFFINE), path)

    def sorted_table(self, subject: str, sessions: list[int]) -> None:
        for session in sessions:
            self.table(subject, session, sorted(self.names[k] for k in self.shown[subject][session - 1]))

    def flipped(self, subject: str) -> None:
        nibabel.save(nibabel.Nifti1Image(self.atlas[::-1].copy(), AFFINE), self.root / f"derivatives/masks/sub-{subject}_dseg.nii.gz")


TR = 1.5


@dataclass
class Runs:
    """A laboratory with fMRIPrep's time series, events and confounds; responses follow the SPM or Glover response of nilearn's own definition."""

    root: Path
    seed: int = 0
    form: str = "volume"
    sessions: int = 2
    runs: int = 2
    trials: int = 24
    volumes: int = 170
    count: int = 48
    apart: float = 9.0  # seconds
    grid: tuple[int, ...] = (10, 9, 6)
    noise: float = 1.0
    task: str = "images"

    def write(self) -> "Runs":
        from nilearn.glm.first_level import glover_hrf

        random = np.random.default_rng(self.seed)
        self.pixels = pictures_of(random, self.count)
        (self.root / "stimuli").mkdir(parents=True, exist_ok=True)
        self.names = [f"pic{k:03d}.png" for k in range(self.count)]
        for name, picture in zip(self.names, self.pixels, strict=True):
            Image.fromarray(picture).save(self.root / "stimuli" / name, compress_level=1)
        self.mask = np.zeros(self.grid, np.uint8)
        self.mask[2:7, 2:7, 1:5] = 1
        if self.form == "gifti":
            self.mask = np.zeros(200, np.uint8)
            self.mask[20:90] = self.mask[120:160] = 1
        signal = signals(random, self.pixels, int(self.mask.sum()))
        order = np.split(random.permutation(np.resize(np.arange(self.count), self.sessions * self.runs * self.trials)), self.sessions * self.runs)
        self.shown, self.onsets, fine = order, [], 0.05
        response = glover_hrf(TR, round(TR / fine))
        for k, shown in enumerate(order):
            session, run = k // self.runs + 1, k % self.runs + 1
            onset = np.round(6 + self.apart * np.arange(self.trials) + random.uniform(0, 1.2, self.trials), 3)
            self.onsets.append(onset)
            stick = np.zeros((round((self.volumes + 30) * TR / fine), signal.shape[1]))
            for at, picture in zip(onset, shown, strict=True):
                stick[round(at / fine) : round((at + 1) / fine)] += signal[picture] / (1 / fine)
            course = np.stack([np.convolve(column, response)[: len(stick)] for column in stick.T], axis=1)[:: round(TR / fine)][: self.volumes]
            motion = random.normal(size=(self.volumes, 6)).cumsum(0) * 0.02
            series = 100 + 60 * course + motion @ random.normal(size=(6, signal.shape[1])) + np.linspace(0, 3, self.volumes)[:, None]
            series += self.noise * random.normal(size=series.shape)
            self._run(random, f"sub-01_ses-{session:02d}_task-{self.task}_run-{run}", session, series, motion)
            raw = self.root / f"sub-01/ses-{session:02d}/func"
            raw.mkdir(parents=True, exist_ok=True)
            rows = [f"{at}\t1\tpicture\tstimuli/{self.names[picture]}" for at, picture in zip(onset, shown, strict=True)]
            rows += [f"{at + 2:.3f}\t0\tpress\tn/a" for at in onset[::3]]
            text = "\n".join(["onset\tduration\ttrial_type\tstim_file", *sorted(rows, key=lambda row: float(row.split("\t")[0]))])
            (raw / f"sub-01_ses-{session:02d}_task-{self.task}_run-{run}_events.tsv").write_text(text + "\n")
        masks = self.root / "derivatives/masks"
        masks.mkdir(exist_ok=True)
        if self.form == "volume":
            nibabel.save(nibabel.Nifti1Image(self.mask, AFFINE), masks / "sub-01_visual.nii.gz")
        else:
            for side, part in zip("LR", np.split(self.mask, 2), strict=True):
                labels = nibabel.gifti.GiftiDataArray(part.astype(np.int32))
                nibabel.save(nibabel.gifti.GiftiImage(darrays=[labels]), masks / f"sub-01_hemi-{side}_visual.label.gii")
        return self

    def _run(self, random: np.random.Generator, stem: str, session: int, series: np.ndarray, motion: np.ndarray) -> None:
        func = self.root / f"derivatives/fmriprep/sub-01/ses-{session:02d}/func"
        func.mkdir(parents=True, exist_ok=True)
        if self.form == "volume":
            volume = (100 + random.normal(size=(*self.grid, self.volumes))).astype(np.float32)
            volume[self.mask > 0] = series.T
            image = nibabel.Nifti1Image(volume, AFFINE)
            image.header.set_zooms((2, 2, 2, TR))
            image.header.set_xyzt_units("mm", "sec")
            nibabel.save(image, func / f"{stem}_space-T1w_desc-preproc_bold.nii.gz")
            (func / f"{stem}_space-T1w_desc-preproc_bold.json").write_text(json.dumps({"RepetitionTime": TR, "StartTime": TR / 2}))
        else:
            whole = np.full((self.volumes, 200), 100, np.float32) + random.normal(size=(self.volumes, 200)).astype(np.float32)
            whole[:, self.mask > 0] = series
            for side, part in zip("LR", np.split(whole, 2, axis=1), strict=True):
                arrays = [nibabel.gifti.GiftiDataArray(np.ascontiguousarray(row, np.float32)) for row in part]
                nibabel.save(nibabel.gifti.GiftiImage(darrays=arrays), func / f"{stem}_hemi-{side}_space-fsaverage6_bold.func.gii")
                (func / f"{stem}_hemi-{side}_space-fsaverage6_bold.json").write_text(json.dumps({"RepetitionTime": TR, "StartTime": TR / 2}))
        names = ["trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z"]
        rows = ["\t".join([*names, "trans_x_derivative1"])]
        steps = ["n/a", *np.diff(motion[:, 0]).tolist()]
        rows += ["\t".join([*(repr(float(value)) for value in row), str(step)]) for row, step in zip(motion, steps, strict=True)]
        (func / f"{stem}_desc-confounds_timeseries.tsv").write_text("\n".join(rows) + "\n")


def write_glmsingle(root: Path, ending: str, seed: int = 0, count: int = 72, sessions: int = 3, noise: float = 1.3) -> dict:
    """GLMsingle's results, a folder a session, as its Python version saves them. Returns pixels, names, and by trial pictures, sessions and responses."""
    random = np.random.default_rng(seed)
    pixels = pictures_of(random, count)
    names = [f"img_{k:03d}.png" for k in range(count)]
    (root / "pictures").mkdir(parents=True)
    for name, picture in zip(names, pixels, strict=True):
        Image.fromarray(picture).save(root / "pictures" / name)
    mask = np.zeros(GRID, np.uint8)
    mask[3:8, 2:7, 2:6] = 1
    signal = signals(random, pixels, int(mask.sum()))
    shown = random.permutation(np.repeat(np.arange(count), sessions))
    responses = (signal[shown] + noise * random.normal(size=(len(shown), signal.shape[1]))).astype(np.float32)
    session = np.repeat(np.arange(1, sessions + 1), count)
    (root / "s1").mkdir()
    nibabel.save(nibabel.Nifti1Image(mask, AFFINE), root / "s1/visual.nii.gz")
    for number in range(1, sessions + 1):
        here = session == number
        betas = random.normal(size=(*GRID, int(here.sum()))).astype(np.float32)
        betas[mask > 0] = responses[here].T
        held = {"HRFindex": np.zeros(GRID), "R2": np.zeros(GRID, np.float32), "betasmd": betas, "noisepool": mask == 0, "pcnum": 5, "FRACvalue": np.ones(GRID)}
        path = root / f"s1/ses-{number:02d}/TYPED_FITHRF_GLMDENOISE_RR{ending}"
        path.parent.mkdir()
        if ending == ".npy":
            np.save(path, held, allow_pickle=True)
        else:
            with h5py.File(path, "w") as file:
                for name, values in held.items():
                    file[name] = values
    rows = [f"{number}\t{names[picture]}" for number, picture in zip(session, shown, strict=True)]
    (root / "s1/trials.tsv").write_text("\n".join(["session\tpicture", *rows]) + "\n")
    return {"pixels": pixels, "names": names, "shown": shown, "session": session, "responses": responses}


def write_mosaic(root: Path, subjects=("sub-01_NSD",), seed: int = 0, count: int = 40, tests: int = 20, repeats: int = 3) -> dict:
    """MOSAIC's files with responses planted in V1; some grayordinates missing in some trials. Returns pixels, and responses by subject and trial."""
    from unimind.data.sources.hcp import glasser

    random = np.random.default_rng(seed)
    pixels = pictures_of(random, count)
    names = [f"coco_{k:03d}.jpg" for k in range(count)]
    (root / "pictures").mkdir(parents=True)
    for name, picture in zip(names, pixels, strict=True):
        Image.fromarray(picture).save(root / "pictures" / name, "PNG")
    labels, areas = glasser()
    where = np.flatnonzero(np.isin(labels, areas["V1"]))[::8]
    signal = signals(random, pixels, len(where))
    written: dict = {"pixels": pixels, "names": names, "where": where, "responses": {}}
    for subject in subjects:
        with h5py.File(root / f"{subject}.hdf5", "w") as file:
            group = file.create_group("betas", track_order=True)
            for phase, chosen in (("test", range(tests)), ("train", range(tests, count))):
                for picture in chosen:
                    for repeat in range(repeats):
                        response = random.normal(size=91282).astype(np.float32)
                        response[where] = signal[picture] + random.normal(size=len(where))
                        gone = np.array([where[3]]) if picture == tests and not repeat else np.array([], int)
                        response[gone] = np.nan
                        data = group.create_dataset(f"{subject}_stimulus-{names[picture][:-4]}_phase-{phase}_rep-{repeat}", data=response)
                        data.attrs["nan_indices"], data.attrs["phase"], data.attrs["repetition"] = gone, phase, repeat
                        data.attrs["presented_stimulus_filename"] = names[picture]
                        written["responses"][subject, picture, repeat] = response
            ceilings = file.create_group("noiseceilings")
            for phase in ("test", "train"):
                data = ceilings.create_dataset(f"{subject}_phase-{phase}_n-1_noiseceiling", data=np.full(91282, 40.0 if phase == "test" else 20.0))
                data.attrs["n"], data.attrs["phase"] = "1", phase
            file.attrs["visual_angle"] = 8.4
    (root / "splits.json").write_text(json.dumps({"train": names[tests + 5 :], "test": names[:tests], "artificial": names[tests : tests + 2]}))
    return written

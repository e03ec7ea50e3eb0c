"""LAION-fMRI: the source `bids` with its files, its access, its pictures and its shipped splits known."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unimind.data.pixels import Forms
from unimind.data.sources.arrayfile import missing
from unimind.data.sources.base import AGAIN, DROP, TEST, TRAIN, RemoteFile, reading
from unimind.data.sources.bids import BidsSource, KeptVoxels
from unimind.data.sources.pictures import Pictures
from unimind.errors import InputError
from unimind.study import BidsData, LaionFmriData, Study

BUCKET = "s3://laion-fmri"
SUBJECTS = ("sub-01", "sub-03", "sub-05", "sub-06", "sub-07")
DERIVATIVES = "derivatives/glmsingle-tedana"
#: The splits are shipped with the data set's package, not with its files.
SPLITS = "https://raw.githubusercontent.com/ViCCo-Group/LAION-fMRI/main/laion_fmri/splits/data"
PICTURES, NAMES = "stimuli/task-images_stimuli.h5", "stimuli/task-images_metadata.csv"
#: The noise ceiling for means of four repeats, in percent; the one-trial ceiling follows from it.
CEILING, REPEATS = "Noiseceiling4rep", 4
#: Grey of the screen, which transparent pictures were shown on.
GROUND = 127.5


class LaionSource(BidsSource):
    """Reader of LAION-fMRI's betas, ROIs, pictures and splits."""

    def _section(self, study: Study) -> BidsData:
        section = study.datasets[self.dataset]
        assert isinstance(section, LaionFmriData)
        self.laion = section
        unknown = [name for name in section.subjects if name not in SUBJECTS]
        if unknown:
            raise InputError(f"datasets.{self.dataset}: {', '.join(unknown)} is no subject of LAION-fMRI; they are called {', '.join(SUBJECTS)}")
        rois = {name: {"file": f"derivatives/atlases/sub-{{subject}}/rois/{name}.nii.gz"} for name in section.rois}
        known: dict[str, Any] = {"source": "bids", "derivatives": DERIVATIVES, "task": "images", "space": "T1w", "picture": "label", "images": PICTURES}
        return BidsData.model_validate({**{key: getattr(section, key) for key in ("training_subjects", "new_subjects", "roi_labels")}, **known, "rois": rois})

    def files(self, subject: str | None) -> list[RemoteFile]:
        """See `Source.files`."""
        pools = ["shared"] if self.laion.pool == "shared" else [subject] if subject else self.subjects
        found = [RemoteFile(self._split_file(pool), f"{SPLITS}/{pool}/{self.laion.split}.json") for pool in dict.fromkeys([*pools])]
        found += [RemoteFile(PICTURES), RemoteFile(NAMES)]
        if subject is not None:
            paths = [path for number in range(1, self.laion.sessions + 1) for path in self._session_files(subject, number)]
            paths += [self._ceiling_file(subject), *(f"derivatives/atlases/{subject}/rois/{name}.nii.gz" for name in self.laion.rois)]
            found += [RemoteFile(path, f"{BUCKET}/{path}") for path in paths]
        return found

    def _session_files(self, subject: str, number: int) -> tuple[str, str]:
        stem = f"{DERIVATIVES}/{subject}/ses-{number:02d}/func/{subject}_ses-{number:02d}_task-images"
        return f"{stem}_space-T1w_stat-effect_desc-SingletrialBetas_statmap.nii.gz", f"{stem}_desc-SingletrialBetas_trials.tsv"

    def _ceiling_file(self, subject: str) -> str:
        return f"{DERIVATIVES}/{subject}/{subject}_task-images_space-T1w_desc-{CEILING}_statmap.nii.gz"

    def _split_file(self, pool: str) -> str:
        return f"splits/{pool}/{self.laion.split}.json"

    def _find_parts(self, subject: str) -> list[Any]:
        return [part for part in super()._find_parts(subject) if part.session <= self.laion.sessions]

    # --- splits --------------------------------------------------------------------------------------------------

    def _lists(self, subject: str) -> tuple[set[int], set[int]]:
        """Training and test pictures of the shipped split, as indices."""
        path = self.root / self._split_file("shared" if self.laion.pool == "shared" else subject)
        if not path.exists():
            raise missing(path)
        with reading(path, "a readable split of LAION-fMRI", AGAIN):
            variant = json.loads(path.read_text(encoding="utf-8"))["variants"][0]
            train, test = list(variant["train_ids"]), list(variant["test_ids"])
        if self.laion.ood_types is not None:
            test = [name for name in test if name.removeprefix("shared_4rep_OOD_").split("_")[0] in self.laion.ood_types]
        return {self.pictures.find(name, str(path)) for name in train}, {self.pictures.find(name, str(path)) for name in test}

    def _test_pictures(self, subjects: list[str]) -> set[int]:
        return set().union(*(self._lists(subject)[1] for subject in subjects))

    def _split(self, subject: str, shown: NDArray[np.integer]) -> NDArray[np.integer]:
        train, test = self._lists(subject)
        return np.where(np.isin(shown, list(test)), TEST, np.where(np.isin(shown, list(train)), TRAIN, DROP))

    def _protocol(self) -> dict[str, Any]:
        return super()._protocol() | {"split": {"shipped": self.laion.split, "pool": self.laion.pool, "ood_types": self.laion.ood_types}}

    # --- pictures and noise ceiling ------------------------------------------------------------------------------

    def _read_pictures(self) -> Pictures:
        return _EncodedPictures.open_encoded(self.root / PICTURES, self.root / NAMES)

    def _noise_ceiling(self, subject: str, voxels: KeptVoxels) -> NDArray[np.float32]:
        """Explainable share of one trial's variance, from NC(n) = s / (s + 1/n) with s the ratio of signal to noise variance (Allen et al. 2022)."""
        path = self.root / self._ceiling_file(subject)
        share = np.clip(np.nan_to_num(np.asarray(self._values(path), np.float64)[voxels.where]) / 100, 0, 1 - 1e-6)
        ratio = share / (1 - share) / REPEATS
        return (ratio / (1 + ratio)).astype(np.float32)


class _EncodedPictures(Pictures):
    """Encoded pictures in the rows of an HDF5 data set, named by a table; all are different, as published."""

    @classmethod
    def open_encoded(cls, path: Path, table: Path) -> "_EncodedPictures":
        import h5py
        import pandas as pd
        from PIL import Image

        for needed in (path, table):
            if not needed.exists():
                raise missing(needed)
        with reading(table, "a table of pictures with a column image_name", AGAIN):
            names = pd.read_csv(table, dtype=str, keep_default_na=False)["image_name"].tolist()
        with reading(path, "a readable file of pictures", AGAIN):
            images = h5py.File(path, "r")["images"]
            count = len(images)
        if count != len(names):
            raise InputError(f"{path}: {count} pictures, but {table.name} names {len(names)}; get both again")
        row = {name: index for index, name in enumerate(names)}

        def load(name: str) -> NDArray[np.uint8]:
            with reading(path, f"readable at {name}", AGAIN), Image.open(io.BytesIO(bytes(images[row[name]]))) as picture:
                pixels = np.asarray(picture.convert("RGBA"), np.float64)
            opacity = pixels[..., 3:] / 255
            return np.round(pixels[..., :3] * opacity + GROUND * (1 - opacity)).astype(np.uint8)

        return cls(names, load, str(path), Forms())

    @property
    def first(self) -> NDArray[np.integer]:  # type: ignore[override]
        """Each is its own first."""
        return np.arange(len(self.names))

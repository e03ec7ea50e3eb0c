"""BOLD5000 (Chang et al. 2019), release 2: GLMsingle betas per ROI, presentation lists, pictures."""

import functools
import io
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from unimind.data.pixels import decode_picture
from unimind.data.sources.base import AGAIN, RawSubject, RemoteFile, Stimulus, StimulusSet, Trials, reading
from unimind.data.sources.pictures import PICTURE_ENDINGS, natural, open_zip, unzip
from unimind.errors import InputError
from unimind.study import Bold5000Data, Study

BETAS, STIMULI = "BOLD5000_GLMsingle_ROI_betas", "BOLD5000_Stimuli"
#: Either archive may stand unpacked below the root, under the name without `.zip`.
ADDRESSES = {
    BETAS: f"figshare://14456124/{BETAS}.zip",
    STIMULI: f"https://www.dropbox.com/s/5ie18t4rjjvsl47/{STIMULI}.zip?dl=1",
}
VERSION = "TYPED-FITHRF-GLMDENOISE-RR"
SUBJECTS = ("CSI1", "CSI2", "CSI3", "CSI4")
HEMISPHERES = ("LH", "RH")
_SPELLINGS = {"LOC": ("LOC", "LO"), "RSC": ("RSC", "RRSC")}  # ROI names differ between subjects' files


class Bold5000Source:
    """Reader of the release's two archives, packed or unpacked."""

    def __init__(self, study: Study, dataset: str, root: Path) -> None:
        section = study.datasets[dataset]
        assert isinstance(section, Bold5000Data)
        self.section, self.dataset, self.root = section, dataset, Path(root)

    def files(self, subject: str | None) -> list[RemoteFile]:
        """The archives, or the needed files of their unpacked folders where those stand below the root."""
        if subject is not None and subject not in SUBJECTS:
            raise InputError(f"datasets.{self.dataset}: {subject} is no subject of BOLD5000; they are called {', '.join(SUBJECTS)}")
        files = [] if subject is None else self._files(BETAS, rf"{subject}_GLMbetas-{VERSION}_allses_\w+\.npy$")
        wanted = r"\.(jpe?g|png|txt)$" if subject is None else rf"Stimuli_Presentation_Lists/{subject}/.*\.txt$"
        return files + self._files(STIMULI, wanted)

    def _files(self, archive: str, pattern: str) -> list[RemoteFile]:
        folder = self.root / archive
        if folder.is_dir():
            found = [path for path in folder.rglob("*") if path.is_file() and re.search(pattern, path.as_posix(), re.IGNORECASE)]
            return [RemoteFile(path.relative_to(self.root).as_posix()) for path in sorted(found)] or [RemoteFile(f"{archive}/{pattern}")]
        return [RemoteFile(f"{archive}.zip", ADDRESSES[archive])]

    @functools.cached_property
    def _betas(self) -> "_Tree":
        return _Tree.open(self.root, BETAS, self.dataset)

    @functools.cached_property
    def _stimuli(self) -> "_Tree":
        return _Tree.open(self.root, STIMULI, self.dataset)

    # --- pictures ------------------------------------------------------------------------------------------------

    @functools.cached_property
    def _pictures(self) -> dict[str, str]:
        """Name of a picture as presentation lists give it -> its place in the archive, in natural order."""
        found = self._stimuli.find(r"/Presented_Stimuli/.*")
        pictures = {PurePosixPath(name).name: name for name in found if PurePosixPath(name).suffix.lower() in PICTURE_ENDINGS}
        if not pictures:
            raise InputError(f"{self._stimuli.where}: has no pictures under Scene_Stimuli/Presented_Stimuli; get BOLD5000_Stimuli.zip again")
        return {name: pictures[name] for name in sorted(pictures, key=natural)}

    @functools.cached_property
    def _repeated(self) -> set[str]:
        """The pictures shown repeatedly: the test images."""
        found = self._stimuli.find(r"repeated_stimuli_113_list\.txt$")
        if not found:
            raise InputError(f"{self._stimuli.where}: has no repeated_stimuli_113_list.txt, which says the test images; get BOLD5000_Stimuli.zip again")
        names = _lines(self._stimuli.read(found[0]))
        unknown = [name for name in names if name not in self._pictures]
        if unknown:
            raise InputError(f"{self._stimuli.where}: repeated picture {unknown[0]} is not among its pictures ({len(unknown)} of {len(names)})")
        return set(names)

    def stimuli(self, subject: str | None, size: int) -> StimulusSet:
        """Every presented picture; the 113 repeated ones are test images."""
        repeated = self._repeated

        def items() -> Iterator[Stimulus]:
            for name, place in self._pictures.items():
                yield Stimulus.from_pixels(name, decode_picture(self._stimuli.read(place), f"{self._stimuli.where}: {place}"), name in repeated, size)

        return StimulusSet(count=len(self._pictures), items=items())

    # --- trials --------------------------------------------------------------------------------------------------

    def _shown(self, subject: str) -> tuple[NDArray[np.integer], list[str]]:
        """Session and picture of every trial, from the presentation lists in the order of sessions and runs."""
        lists = []
        for name in self._stimuli.find(rf"/Stimuli_Presentation_Lists/{subject}/.*\.txt$"):
            numbers = re.search(r"sess?0*(\d+).*?run0*(\d+)\.txt$", name, re.IGNORECASE)
            if numbers:
                lists.append((int(numbers[1]), int(numbers[2]), name))
        if not lists:
            raise InputError(f"{self._stimuli.where}: has no presentation lists of {subject} under Stimuli_Presentation_Lists/{subject}")
        session: list[int] = []
        pictures: list[str] = []
        for number, _, name in sorted(lists):
            shown = _lines(self._stimuli.read(name))
            unknown = [picture for picture in shown if picture not in self._pictures]
            if unknown:
                raise InputError(f"{self._stimuli.where}: {name} names picture {unknown[0]}, which is not among the presented pictures")
            session += [number] * len(shown)
            pictures += shown
        return np.array(session), pictures

    def _roi_arrays(self, subject: str) -> list[tuple[str, NDArray]]:
        """(ROI, betas (n_trials, n_voxels)) of both hemispheres."""
        arrays: list[tuple[str, NDArray]] = []
        for roi in self.section.rois:
            for hemisphere in HEMISPHERES:
                names = "|".join(_SPELLINGS.get(roi, (roi,)))
                found = self._betas.find(rf"/{subject}_GLMbetas-{VERSION}_allses_{hemisphere}({names})\.npy$")
                if not found:
                    raise InputError(f"{self._betas.where}: has no betas of {subject}, {hemisphere}{roi}; get {BETAS}.zip again")
                content = self._betas.read(found[0])
                with reading(f"{self._betas.where}: {found[0]}", "a readable array", AGAIN):
                    arrays.append((roi, np.load(io.BytesIO(content), allow_pickle=False)))
        return arrays

    def subject(self, subject: str) -> RawSubject:
        """All trials of a subject, as the ROI files hold them: percent signal change."""
        session, pictures = self._shown(subject)
        arrays = self._roi_arrays(subject)
        for roi, array in arrays:
            if array.ndim != 2 or len(array) != len(pictures):
                raise InputError(f"{self._betas.where}: {subject} {roi} has betas of shape {array.shape}, but {len(pictures)} trials were presented")
        responses = np.concatenate([array.astype(np.float32) for _, array in arrays], axis=1)
        names = [str(roi) for roi in self.section.rois]
        return RawSubject(
            n_voxels=responses.shape[1],
            trials=Trials(session, pictures, lambda: (responses[session == number] for number in dict.fromkeys(session.tolist()))),
            units="percent signal change",
            roi=np.concatenate([np.full(array.shape[1], names.index(roi), np.int16) for roi, array in arrays]),
            roi_names=names,
            protocol={"betas": VERSION, "rois": names, "test": "113 repeated pictures"},
        )


def _lines(content: bytes) -> list[str]:
    """Picture names of a list; repeats are marked by a prefix there."""
    return [line.strip().removeprefix("rep_") for line in content.decode(errors="replace").splitlines() if line.strip()]


class _Tree:
    """Files of an archive, packed or unpacked, by their path with forward slashes and a leading one."""

    def __init__(self, where: Path, names: list[str], archive: zipfile.ZipFile | None) -> None:
        self.where, self._archive = where, archive
        self._names = {f"/{name}": name for name in names if "__MACOSX" not in name and not PurePosixPath(name).name.startswith(".")}

    @classmethod
    def open(cls, root: Path, name: str, dataset: str) -> "_Tree":
        folder, packed = root / name, root / f"{name}.zip"
        if folder.is_dir():
            return cls(folder, [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()], None)
        if not packed.exists():
            raise InputError(f"{packed}: no such file, nor a folder {name}; fetch {dataset} again")
        archive = open_zip(packed)
        return cls(packed, [entry.filename for entry in archive.infolist() if not entry.is_dir()], archive)

    def find(self, pattern: str) -> list[str]:
        """Paths that match, in natural order."""
        return sorted((name for name in self._names if re.search(pattern, name)), key=natural)

    def read(self, name: str) -> bytes:
        if self._archive is not None:
            return unzip(self._archive, self._names[name], self.where)
        return (self.where / self._names[name]).read_bytes()

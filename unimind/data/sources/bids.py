"""BIDS derivatives: single-trial betas with their trial tables, or preprocessed time series with events and confounds."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unimind.data.single_trial import Events, design, lag_window, least_squares_all, least_squares_separate
from unimind.data.sources.arrayfile import labels_of, masked_volumes, missing, open_nifti, volume, volumes_shape
from unimind.data.sources.base import AGAIN, DROP, TEST, TRAIN, Further, RawSubject, RemoteFile, Stimulus, StimulusSet, Trials, own_file, reading
from unimind.data.sources.bidsfile import BidsFile, bids_files, label_number, number, numbers, read_tsv, sidecar
from unimind.data.sources.hcp import glasser
from unimind.data.sources.pictures import Pictures, pictures_in
from unimind.data.sources.tables import is_nothing
from unimind.data.sources.trials import count_base, find_all, listed_pictures, place
from unimind.errors import InputError
from unimind.progress import say
from unimind.study import BidsData, BidsRois, Decode, GlmSingle, LagWindow, Study

PICTURE_COLUMNS = ("label", "stim_file", "picture", "stimulus")
ENDINGS = {"volume": ".nii.gz", "gifti": ".func.gii", "cifti": ".dtseries.nii"}
_SLAB = 64 * 1024 * 1024  # bytes of a CIFTI series in memory at once
_SIDE = 1000  # voxels of the mask, and of its mirror image, that are compared


@dataclass(frozen=True)
class FileTrials:
    """Trials of one file in order of presentation.

    Attributes
    ----------
    picture : int (n,)
        Index of the picture.
    run : int (n,), optional
    volume : int (n,), optional
        Place in the file, of betas.
    events : Events, optional
        Of a time series.
    test : bool (n,)
        Marked by the split's column.
    """

    picture: NDArray[np.integer]
    run: NDArray[np.integer] | None
    test: NDArray[np.bool_]
    volume: NDArray[np.integer] | None = None
    events: Events | None = None


@dataclass(frozen=True)
class ResponsePart:
    """A file of responses (or one a hemisphere), the table of its trials, and where it belongs."""

    files: tuple[BidsFile, ...]
    session: int
    run: int | None
    table: BidsFile

    @property
    def path(self) -> Path:
        return self.files[0].path


@dataclass(frozen=True)
class KeptVoxels:
    """Which voxels are kept: their places in a volume, or their numbers in every file of a surface, and their ROIs."""

    where: tuple[NDArray[np.integer], ...]
    roi: NDArray[np.int16]
    names: list[str]
    xyz: NDArray[np.float32] | None = None
    grid: tuple[tuple[int, ...], NDArray] | None = None

    def __len__(self) -> int:
        return len(self.roi)

    def some(self, chosen: NDArray[Any]) -> "KeptVoxels":
        """Some of them; of a volume or CIFTI by one index, of hemispheres by theirs."""
        chosen = np.flatnonzero(chosen) if chosen.dtype == bool else chosen
        if self.grid is not None or len(self.where) == 1:
            where = tuple(axis[chosen] for axis in self.where)
        else:
            left = len(self.where[0])
            where = (self.where[0][chosen[chosen < left]], self.where[1][chosen[chosen >= left] - left])
        return replace(self, where=where, roi=self.roi[chosen], xyz=None if self.xyz is None else self.xyz[chosen])


class BidsSource:
    """Reader of a laboratory's BIDS derivatives, as `BidsData` describes them."""

    #: Columns of which the first that a table has names a trial, and what it does.
    naming, names = PICTURE_COLUMNS, "names the picture"

    def __init__(self, study: Study, dataset: str, root: Path) -> None:
        self.dataset, self.root = dataset, Path(root)
        self.section = self._section(study)
        self.task, self.picture = self.section.task, self.section.picture
        self.subjects = study.datasets[dataset].training_subjects or study.datasets[dataset].subjects
        self.parts = functools.cache(self._find_parts)
        self.rows = functools.cache(self._read_rows)

    @property
    def key(self) -> str:
        """Where the study names that column."""
        return f"datasets.{self.dataset}.picture"

    def _section(self, study: Study) -> BidsData:
        section = study.datasets[self.dataset]
        assert isinstance(section, BidsData)
        return section

    # --- files ---------------------------------------------------------------------------------------------------

    def files(self, subject: str | None) -> list[RemoteFile]:
        """Responses with their tables, masks and pictures of a subject; pictures and what splits them for None."""
        split, paths = self.section.split, []
        if subject is not None:
            paths += self.response_files(subject)
            paths += [path for name, roi in self.section.rois.items() for path in self._roi_files(subject, name, roi)]
        elif split.column or split.sessions:
            paths += [part.table.path for name in self.subjects for part in self.parts(name)]
        paths += [self._path(split.images)] if split.images else []
        images = self._path(self.section.images)
        paths += (pictures_in(images) or [images]) if images.is_dir() else [images]
        return [own_file(self.root, path) for path in dict.fromkeys(paths)]

    def _path(self, pattern: str) -> Path:
        return Path(place(self.root, pattern, None))

    def response_files(self, subject: str) -> list[Path]:
        """A subject's files of responses, and what is needed to make trials of them."""
        paths: list[Path] = []
        for part in self.parts(subject):
            paths += [file.path for file in part.files] + [part.table.path]
            if self.section.estimate is not None:
                paths += [path for file in part.files if (path := file.path.with_name(file.path.name.partition(".")[0] + ".json")).exists()]
                paths += [self._confounds_file(subject, part)] if getattr(self.section.estimate, "confounds", []) else []
        return paths

    @property
    def _folder(self) -> Path:
        return self._path(self.section.derivatives)

    def _find_parts(self, subject: str) -> list[ResponsePart]:
        section, label = self.section, subject.removeprefix("sub-")
        suffix = "statmap" if section.estimate is None else "bold"
        desc = section.desc or ("SingletrialBetas" if section.estimate is None else "preproc" if section.form == "volume" else None)
        found = bids_files(self._folder, label, suffix, ENDINGS[section.form], task=self.task, space=section.space, desc=desc)
        if not found:
            entities = (("task", self.task), ("space", section.space), ("desc", desc))
            name = "_".join(["*", *(f"{key}-{value}" for key, value in entities if value)])
            raise InputError(
                f"{self._folder / f'sub-{label}'}: no file {name}_{suffix}{ENDINGS[section.form]}; "
                f"correct datasets.{self.dataset}.derivatives, task, space or desc"
            )
        together: dict[tuple[str | None, str | None], list[BidsFile]] = {}
        for file in found:
            together.setdefault((file.get("ses"), file.get("run")), []).append(file)
        hemispheres = ["L", "R"] if section.form == "gifti" else [None]
        for files in together.values():
            if sorted(str(file.get("hemi")) for file in files) != [str(side) for side in hemispheres]:
                several = ", ".join(file.path.name for file in files)
                hint = "a file of each hemisphere is needed" if len(files) == 1 else "several files for one run; name one by task, space or desc"
                raise InputError(f"datasets.{self.dataset}: {several}: {hint}")
        sessions = [session for session, _ in together if session is not None]
        parts = []
        for (session, run), files in together.items():
            runs = [other for each, other in together if each == session and other is not None]
            sides = tuple(sorted(files, key=lambda file: str(file.get("hemi"))))
            parts.append(ResponsePart(sides, number(session, sessions), number(run, runs) if run else None, self._table_of(label, files[0])))
        return sorted(parts, key=lambda part: (part.session, part.run or 0))

    def _table_of(self, label: str, file: BidsFile) -> BidsFile:
        """The trials or events of a file: the table that shares most of its session, run and task, and contradicts none."""
        kind = "trials" if self.section.estimate is None else "events"
        entities = ("ses", "run", "task")
        folders = [self._folder] if kind == "trials" else [self.root, self._folder]
        for folder in folders:
            tables = [table for table in bids_files(folder, label, kind, ".tsv") if all(table.get(key) in (None, file.get(key)) for key in entities)]
            if tables:
                shared = [sum(table.get(key) is not None for key in entities) for table in tables]
                best = [table for table, count in zip(tables, shared, strict=True) if count == max(shared)]
                if len(best) > 1:
                    raise InputError(f"{best[0].path}: and {best[1].path.name} are both tables of {file.path.name}; keep one")
                return best[0]
        where = " or ".join(str(folder / f"sub-{label}") for folder in folders)
        raise InputError(f"{where}: no _{kind}.tsv for {file.path.name}; put one there with its session, run and task")

    # --- pictures ------------------------------------------------------------------------------------------------

    @functools.cached_property
    def pictures(self) -> Pictures:
        return self._read_pictures()

    def _read_pictures(self) -> Pictures:
        return Pictures.open(self._path(self.section.images), self.section.images_key)

    def stimuli(self, subject: str | None, size: int) -> StimulusSet:
        """Pictures in number order; those with the same pixels are one stimulus, named as the first of them."""
        pictures, test = self.pictures, self._test_pictures(self.subjects)
        keep = [index for index, first in enumerate(pictures.first.tolist()) if index == first]

        def items() -> Iterator[Stimulus]:
            for index in keep:
                yield Stimulus.from_pixels(pictures.names[index], pictures.load(pictures.names[index]), index in test, size)

        return StimulusSet(len(keep), items())

    def _test_pictures(self, subjects: list[str]) -> set[int]:
        """Indices of test pictures, each the first of its pixels, as the trials of some subjects or a rule for all pictures say."""
        split, first = self.section.split, self.pictures.first
        if split.every is not None:
            marked: set[int] = set(range(0, len(self.pictures), split.every))
        elif split.images is not None:
            marked = set(listed_pictures(self._path(split.images), self.pictures, self.section.count_from, self.dataset).tolist())
        else:
            marked = set()
            for name in subjects:
                for part, rows in zip(self.parts(name), self.rows(name), strict=True):
                    these = rows.test if split.column else np.full(len(rows.test), part.session in (split.sessions or []))
                    marked |= set(rows.picture[these].tolist())
        chosen = {int(first[index]) for index in marked}
        if not chosen or len(chosen) == len(set(first.tolist())):
            raise InputError(
                f"datasets.{self.dataset}.split: {'no' if not chosen else 'every'} picture of {self.pictures.where} is a test picture; correct the rule"
            )
        return chosen

    def _split(self, subject: str, shown: NDArray[np.integer]) -> NDArray[np.integer]:
        """TRAIN, TEST or DROP of every trial."""
        return np.where(np.isin(shown, list(self._test_pictures([*dict.fromkeys([*self.subjects, subject])]))), TEST, TRAIN)

    # --- tables --------------------------------------------------------------------------------------------------

    def _read_rows(self, subject: str) -> list[FileTrials]:
        read = self._trials_of if self.section.estimate is None else self._events_of
        frames = [self._frame(part) for part in self.parts(subject)]
        if self.section.estimate is None:
            self._number_betas(subject, frames)
        frames = [self._shown(part, frame) for part, frame in zip(self.parts(subject), frames, strict=True)]
        names, where = ([cell for frame in frames for cell in frame[column]] for column in ("_name", "_where"))
        shown = [index for index, name in enumerate(names) if name]
        if not shown:
            raise InputError(f"{self.parts(subject)[0].table.path}: no trial has what {self.names}; correct {self.key}")
        picture = np.full(len(names), -1)
        picture[shown] = self._places([names[k] for k in shown], [where[k] for k in shown])
        bounds = np.cumsum([len(frame) for frame in frames])[:-1]
        rows = [read(part, frame, seen) for part, frame, seen in zip(self.parts(subject), frames, np.split(picture, bounds), strict=True)]
        for name in getattr(self.section.estimate, "conditions", []):
            if not any(row.events is not None and name in row.events.further for row in rows):
                kinds = sorted({cell for frame in frames for cell in frame["trial_type"][frame["_name"] == ""] if not is_nothing(cell)})
                raise InputError(
                    f"{self.parts(subject)[0].table.path}: no event without a picture has the trial_type {name!r}; there are {', '.join(kinds) or 'none'}; "
                    f"correct datasets.{self.dataset}.estimate.conditions"
                )
        return rows

    def _frame(self, part: ResponsePart) -> Any:
        """The rows of a table that belong to a file, with `_where`, their line, and `_name`, their picture's or empty."""
        path = part.table.path
        frame = read_tsv(path)
        frame["_where"] = [f"{path} line {line}" for line in frame.index]
        for entity, column, value in (("ses", "session", part.session), ("run", "run", part.run)):
            label = part.files[0].get(entity)
            if column not in frame or value is None or label is None:
                continue
            given = np.array([self._is_of(text, entity, column, label, value, line) for text, line in zip(frame[column], frame["_where"], strict=True)], bool)
            if part.table.get(entity) is None:
                frame = frame[given]
            elif not all(given):
                wrong = frame[~given].iloc[0]
                raise InputError(f"{wrong['_where']}: {column} is {wrong[column]}, but the file is of {column} {label}; mend the table, or its name")
        column = self.picture or next((name for name in self.naming if name in frame), self.naming[0])
        if column not in frame:
            columns = ", ".join(name for name in frame if not name.startswith("_"))
            raise InputError(f"{path}: no column {column!r} that {self.names}; it has {columns}; see {self.key}")
        return frame.assign(_name=[cell if self._says(cell) else "" for cell in frame[column]])

    def _says(self, cell: str) -> bool:
        """Whether a cell names a trial."""
        return not is_nothing(cell) or cell in self.pictures

    def _places(self, names: list[str], where: list[str]) -> NDArray[np.integer]:
        """Index of the picture that each cell names."""
        return find_all(self.pictures, names, where, self.section.count_from, self.dataset)

    @staticmethod
    def _is_of(text: str, entity: str, column: Any, label: str, value: int, where: str) -> bool:
        """Whether a row's session or run is a file's, whose label is a number or a word."""
        if text.removeprefix(f"{entity}-") == label:
            return True
        return (label.isdigit() or is_nothing(text)) and label_number(text, column, where) == value

    def _volumes(self, part: ResponsePart) -> int:
        """How many volumes a file holds."""
        if len(open_nifti(part.path).shape) == 3:
            raise InputError(f"{part.path}: 3 axes; expected four, the last one {'trials' if self.section.estimate is None else 'volumes'}")
        return volumes_shape(part.path)[3]

    def _number_betas(self, subject: str, frames: list[Any]) -> None:
        """Give the rows of every table, in place, the volume of their beta: `_volume`, -1 where `beta_index` names none."""
        parts = self.parts(subject)
        volumes = [self._volumes(part) for part in parts]
        indexed = [k for k, frame in enumerate(frames) if "beta_index" in frame]
        lines: list[str] = []
        index: list[int] = []
        counts: list[int] = []
        for k in indexed:
            given = frames[k][~frames[k]["beta_index"].map(is_nothing).astype(bool)]
            lines += given["_where"].tolist()
            index += numbers(given, "beta_index", parts[k].table.path, whole=True).astype(int).tolist()
            counts += [volumes[k]] * len(given)
        if index:
            base = count_base(index, counts, self.section.count_from, lines, "beta_index", self.dataset)
            say(f"{self.dataset} {subject}: beta_index counts from {base}")
        place = dict(zip(lines, index, strict=True))
        for k, frame in enumerate(frames):
            path = parts[k].table.path
            if k not in indexed:
                if len(frame) != volumes[k]:
                    raise InputError(
                        f"{path}: {len(frame)} rows, but {parts[k].path.name} holds {volumes[k]} trials, "
                        "and no column beta_index says which is which; give one row a trial"
                    )
                frame["_volume"] = np.arange(volumes[k])
                continue
            frame["_volume"] = [place[line] - base if line in place else -1 for line in frame["_where"]]
            known = frame[frame["_volume"] >= 0]
            again = known[known["_volume"].duplicated()]
            if len(again):
                first = known.index[known["_volume"] == again["_volume"].iloc[0]][0]
                raise InputError(f"{again['_where'].iloc[0]}: beta_index {again['beta_index'].iloc[0]} stands in line {first} too; every trial has its own")

    def _shown(self, part: ResponsePart, frame: Any) -> Any:
        """The rows of betas that show a picture, in the order of the betas; all rows of events."""
        if self.section.estimate is not None:
            return frame
        blank, lost = (frame["_name"] == "").to_numpy(), (frame["_volume"] < 0).to_numpy()
        for count, words in ((int((blank & ~lost).sum()), "show no picture"), (int((lost & ~blank).sum()), "have no beta_index")):
            if count:
                say(f"{part.table.path.name}: {count} of {len(frame)} trials {words} and are left out")
        return frame[~blank & ~lost].sort_values("_volume")

    def _tested(self, frame: Any, path: Path) -> NDArray[np.bool_]:
        """Whether the split's column marks each row as a test trial."""
        column = self.section.split.column
        if column is None:
            return np.zeros(len(frame), bool)
        if column not in frame:
            raise InputError(
                f"{path}: no column {column!r}; it has {', '.join(name for name in frame if not name.startswith('_'))}; "
                f"see datasets.{self.dataset}.split.column"
            )
        words = frame[column].str.lower()
        wrong = ~words.isin(["train", "test"]).to_numpy()
        if wrong.any():
            raise InputError(f"{frame['_where'][wrong].iloc[0]}: {column} is {frame[column][wrong].iloc[0]!r}; expected train or test")
        return (words == "test").to_numpy()

    def _trials_of(self, part: ResponsePart, frame: Any, picture: NDArray[np.integer]) -> FileTrials:
        run = np.full(len(frame), part.run) if part.run else None
        if run is None and "run" in frame:
            run = np.array([label_number(text, "run", where) for text, where in zip(frame["run"], frame["_where"], strict=True)], int)
        return FileTrials(picture, run, self._tested(frame, part.table.path), volume=frame["_volume"].to_numpy())

    def _events_of(self, part: ResponsePart, frame: Any, picture: NDArray[np.integer]) -> FileTrials:
        """Events with a picture, by onset, and the conditions without that the model holds."""
        path = part.table.path
        duration = ["0" if is_nothing(cell) else cell for cell in frame.get("duration", [""] * len(frame))]
        frame = frame.assign(_picture=picture, duration=duration)
        frame = frame.assign(_onset=numbers(frame, "onset", path), _duration=numbers(frame, "duration", path))
        frame = frame.sort_values("_onset", kind="stable")
        shown = (frame["_picture"] >= 0).to_numpy()
        further = {}
        for name in getattr(self.section.estimate, "conditions", []):
            if "trial_type" not in frame:
                columns = ", ".join(name for name in frame if not name.startswith("_"))
                raise InputError(f"{path}: no column 'trial_type', which datasets.{self.dataset}.estimate.conditions needs; it has {columns}")
            these = frame[~shown & (frame["trial_type"] == name).to_numpy()]
            if len(these):
                further[name] = (these["_onset"].to_numpy(), these["_duration"].to_numpy())
        trials = frame[shown]
        same = trials[trials["_onset"].duplicated(keep=False)]
        if len(same):
            at = same["_onset"].iloc[0]
            first, second = same.index[(same["_onset"] == at).to_numpy()][:2]
            raise InputError(
                f"{path} line {second}: two pictures at {at:g} s, this one and that of line {first}; their responses cannot be told apart: keep one"
            )
        events = Events(trials["_onset"].to_numpy(), trials["_duration"].to_numpy(), further)
        return FileTrials(trials["_picture"].to_numpy(), np.full(len(trials), part.run or 1), self._tested(trials, path), events=events)

    # --- voxels --------------------------------------------------------------------------------------------------

    def _roi_files(self, subject: str, name: str, roi: BidsRois) -> list[Path]:
        """The files that a ROI is read from."""
        where, label = f"datasets.{self.dataset}.rois.{name}", subject.removeprefix("sub-")
        if roi.file is not None:
            sides = ("L", "R") if self.section.form == "gifti" else ("",)
            return [self._path(roi.file.replace("{subject}", label).replace("{hemi}", side)) for side in sides]
        if roi.areas is not None:
            return []
        if roi.desc is not None:
            found = bids_files(self._folder, label, "mask", ".nii.gz", space=self.section.space, desc=roi.desc)
            tasks = [file for file in found if file.get("task") in (None, self.section.task) or self.section.task is None]
            if not tasks:
                raise InputError(
                    f"{where}: no file sub-{label}_*desc-{roi.desc}_mask.nii.gz in {self._folder / f'sub-{label}'}; correct desc or space, or give `file`"
                )
            return [file.path for file in tasks]
        for entity in ("atlas", "seg", "desc"):
            found = bids_files(self._folder, label, "dseg", ".nii.gz", space=self.section.space, **{entity: roi.atlas})
            if len(found) > 1:
                raise InputError(f"{where}: {found[0].path.name} and {found[1].path.name} are both of atlas {roi.atlas}; give `file`")
            if found:
                return [found[0].path, *(path for path in [self._names_file(found[0].path)] if path.exists())]
        raise InputError(
            f"{where}: no file sub-{label}_*atlas-{roi.atlas}_dseg.nii.gz in {self._folder / f'sub-{label}'}; correct atlas or space, or give `file`"
        )

    @staticmethod
    def _names_file(path: Path) -> Path:
        return path.with_name(path.name.partition(".")[0] + ".tsv")

    def _values(self, path: Path) -> NDArray:
        """Values of a mask or atlas: a volume, or a vector on a surface."""
        import nibabel

        if self.section.form == "volume":
            return volume(path)[0]
        if not path.exists():
            raise missing(path)
        with reading(path, "a readable mask", AGAIN):
            image: Any = nibabel.load(path)
            return np.nan_to_num(image.darrays[0].data if self.section.form == "gifti" else np.asarray(image.dataobj)[0], nan=0.0)

    def _regions(self, subject: str, name: str, roi: BidsRois, shape: tuple[int, ...], grid: Callable[[Path], None]) -> list[tuple[str, NDArray[np.bool_]]]:
        """(ROI, mask over all voxels) of one entry of the study's `rois`."""
        where = f"datasets.{self.dataset}.rois.{name}"
        if roi.areas is not None:
            known = glasser()
            unknown = [area for area in roi.areas if area not in known[1]]
            if unknown:
                raise InputError(f"{where}.areas: {', '.join(unknown)} not in the HCP MMP1 map; areas are called V1, V2, V3, V4, V3A, LO1, MT, ... as there")
            return [(area, np.isin(known[0], known[1][area])) for area in roi.areas]
        paths = self._roi_files(subject, name, roi)
        volumes = [path for path in paths if path.suffix != ".tsv"]
        for path in volumes:
            if path.exists():
                grid(path)
        arrays = [self._values(path) for path in volumes]
        values = np.concatenate(arrays) if self.section.form == "gifti" else arrays[0]
        if values.shape != shape:
            raise InputError(f"{volumes[0]}: a mask of shape {values.shape} for responses of {shape}; give one on their grid")
        if roi.desc is not None:
            return [(name, np.logical_and.reduce([array > 0 for array in arrays]))]
        if roi.above is not None:
            return [(name, values > roi.above)]
        labels_at, graded = labels_of(values)
        if graded:
            some = values.flat[np.argmax(abs(values - labels_at))]
            raise InputError(f"{volumes[0]}: holds values such as {some:g}, so it is no mask and no atlas; say which to keep by {where}.above")
        values = labels_at
        table = self._names_file(volumes[0])
        named: dict[str, int] = {}
        if table.exists() and roi.atlas is not None:
            frame = read_tsv(table)
            named = dict(zip(frame.get("name", []), numbers(frame, "index", table, whole=True).astype(int).tolist(), strict=False))
        wanted: dict[str, list[int]]
        if isinstance(roi.labels, dict):
            wanted = roi.labels
        elif roi.labels is not None:
            unknown = [str(label) for label in roi.labels if isinstance(label, str) and label not in named]
            if unknown:
                raise InputError(f"{where}.labels: {', '.join(unknown)} not in {table}; it has {', '.join(list(named)[:12]) or 'no names'}")
            words = {label: [named[label]] for label in roi.labels if isinstance(label, str)}
            plain = [label for label in roi.labels if isinstance(label, int)]
            wanted = words | ({name: plain} if plain else {})
        elif named:
            wanted = {label: [index] for label, index in named.items() if index > 0 and (values == index).any()}
        else:
            return [(name, values > 0)]
        for region, labels in wanted.items():
            if not np.isin(values, labels).any():
                raise InputError(f"{volumes[0]}: no voxel is labelled {labels} ({region}); it has {np.unique(values)[:12].astype(int).tolist()}")
        return [(region, np.isin(values, labels)) for region, labels in wanted.items()]

    def voxels(self, subject: str) -> KeptVoxels:
        """Voxels of the study's ROIs, checked to be on the grid of every file of responses."""
        parts, form = self.parts(subject), self.section.form
        image = self._open(parts[0].files[0].path)
        affine: NDArray = image.affine if form == "volume" else np.eye(4)

        def grid(path: Path) -> None:
            other = self._open(path)
            if other.shape[:3] != image.shape[:3] or not np.allclose(other.affine, affine, atol=1e-3):
                differs = f"shape {other.shape[:3]} against {image.shape[:3]}" if other.shape[:3] != image.shape[:3] else "another affine"
                raise InputError(f"{path}: not on the grid of {parts[0].path.name} ({differs}); resample it to that grid")

        if form == "volume":
            shape: tuple[int, ...] = tuple(image.shape[:3])
            for part in parts:
                self._volumes(part)
                grid(part.path)
        else:
            sizes = [self._size(file.path) for file in parts[0].files]
            shape = (sum(sizes),)
            for part in parts:
                if [self._size(file.path) for file in part.files] != sizes:
                    raise InputError(f"{part.path}: not on the surface of {parts[0].path.name}; name one by datasets.{self.dataset}.space")
        roi, names = np.full(shape, -1, np.int16), []
        for name, entry in self.section.rois.items():
            for region, mask in self._regions(subject, name, entry, shape, grid if form == "volume" else lambda path: None):
                if not mask.any():
                    raise InputError(f"datasets.{self.dataset}.rois.{name}: no voxel is in {region}; check the mask")
                if region not in names:
                    names.append(region)
                roi[(roi < 0) & mask] = names.index(region)
        kept = roi >= 0
        if form == "volume":
            from nibabel.affines import apply_affine

            xyz = apply_affine(affine, np.argwhere(kept)).astype(np.float32)
            return KeptVoxels(tuple(np.nonzero(kept)), roi[kept], names, xyz, (shape, affine))
        bounds = np.cumsum([0, *sizes])
        where = tuple(np.flatnonzero(kept[low:high]) for low, high in zip(bounds[:-1], bounds[1:], strict=True))
        return KeptVoxels(where, roi[kept], names)

    def _open(self, path: Path) -> Any:
        import nibabel

        if not path.exists():
            raise missing(path)
        with reading(path, "a readable image", AGAIN):
            return nibabel.load(path)

    def _size(self, path: Path) -> int:
        image = self._open(path)
        return len(image.darrays[0].data) if self.section.form == "gifti" else int(image.shape[-1])

    # --- responses -----------------------------------------------------------------------------------------------

    def read(self, part: ResponsePart, voxels: KeptVoxels) -> NDArray[np.float32]:
        """Everything a file holds at some voxels, front to back: float32 (n, n_voxels)."""
        if self.section.form == "volume":
            return masked_volumes(part.path, voxels.where)
        pieces = []
        for file, where in zip(part.files, voxels.where, strict=True):
            image = self._open(file.path)
            with reading(file.path, "a whole image", AGAIN):
                if self.section.form == "gifti":
                    pieces.append(np.stack([np.asarray(array.data, np.float32)[where] for array in image.darrays]))
                    continue
                values = np.empty((image.shape[0], len(where)), np.float32)
                step = max(1, _SLAB // (8 * image.shape[1]))
                for start in range(0, len(values), step):
                    values[start : start + step] = np.asarray(image.dataobj[start : start + step])[:, where]
                pieces.append(values)
        return np.concatenate(pieces, axis=1)

    def _frame_times(self, part: ResponsePart, volumes: int) -> NDArray[np.float64]:
        """When each volume was taken: the sidecar's repetition time, from its `StartTime` on, which fMRIPrep writes after slice timing."""
        said, path = sidecar(part.path, ("RepetitionTime", "StartTime")), part.path
        step = None
        if self.section.form == "volume":
            header = self._open(path).header
            step = float(header.get_zooms()[3]) / {"msec": 1e3, "usec": 1e6}.get(header.get_xyzt_units()[1], 1.0)
        elif self.section.form == "cifti":
            step = float(self._open(path).header.get_axis(0).step)
        given = said.get("RepetitionTime")
        if not given and not step:
            raise InputError(f"{path}: its repetition time is nowhere; write it into the .json beside it (RepetitionTime, in seconds)")
        if given is not None and step and abs(given - step) > 1e-2 * given:
            raise InputError(f"{path}: its header says {step:g} s between volumes, its .json RepetitionTime {given:g}; mend one of them")
        return float(said.get("StartTime", 0.0)) + float(given or step or 0) * np.arange(volumes, dtype=np.float64)

    def _confounds_file(self, subject: str, part: ResponsePart) -> Path:
        file = part.files[0]
        same = {entity: file.get(entity) for entity in ("ses", "task", "run")}
        found = bids_files(self._folder, subject.removeprefix("sub-"), "timeseries", ".tsv", desc="confounds", **same)
        if not found:
            raise InputError(
                f"{file.path}: no desc-confounds_timeseries.tsv for it; put it there, or write `confounds: []` under datasets.{self.dataset}.estimate"
            )
        return found[0].path

    def _confounds(self, subject: str, part: ResponsePart, names: list[str], volumes: int) -> NDArray[np.float64]:
        if not names:
            return np.empty((volumes, 0))
        path = self._confounds_file(subject, part)
        frame = read_tsv(path)
        absent = [name for name in names if name not in frame]
        if absent:
            raise InputError(f"{path}: no column {', '.join(absent)}; correct datasets.{self.dataset}.estimate.confounds")
        if len(frame) != volumes:
            raise InputError(f"{path}: {len(frame)} rows, but {part.path.name} has {volumes} volumes; get both again")
        first = frame.index[0]
        frame.loc[first, names] = ["0" if is_nothing(cell) else cell for cell in frame.loc[first, names]]  # what a difference to the volume before lacks
        return np.stack([numbers(frame, name, path) for name in names], axis=1)

    def responses(self, subject: str, part: ResponsePart, rows: FileTrials, voxels: KeptVoxels) -> NDArray[np.float32]:
        """One row a trial of a file, in order of presentation."""
        estimate = self.section.estimate
        series = self.read(part, voxels)
        if estimate is None:
            return series[rows.volume]
        assert rows.events is not None and not isinstance(estimate, GlmSingle)
        where = str(part.path)
        times = self._frame_times(part, len(series))
        hrf = None if isinstance(estimate, LagWindow) else estimate.hrf
        model = design(times, rows.events, hrf, estimate.high_pass, self._confounds(subject, part, estimate.confounds, len(series)), where)
        if isinstance(estimate, LagWindow):
            return lag_window(series, model, times, rows.events.onset, estimate.window, where)
        columns = model.nuisance.shape[1] + (model.trials.shape[1] if estimate.kind == "lsa" else 2)
        if columns >= len(series):
            raise InputError(
                f"{where}: {len(series)} volumes cannot bear {columns} regressors; {'use kind: lss, or ' if estimate.kind == 'lsa' else ''}name fewer confounds"
            )
        return (least_squares_all if estimate.kind == "lsa" else least_squares_separate)(series, model)

    def _blocks(self, subject: str, voxels: KeptVoxels) -> Iterator[NDArray[np.float32]]:
        """One block of trials a session, one file in memory at a time (a session's with GLMsingle)."""
        parts, rows = self.parts(subject), self.rows(subject)
        for session in dict.fromkeys(part.session for part in parts):
            these = [(part, row) for part, row in zip(parts, rows, strict=True) if part.session == session]
            if isinstance(self.section.estimate, GlmSingle):
                from unimind.data.glmsingle import session_betas

                yield session_betas([(self.read(part, voxels), self._frame_times(part, 2), row.events, row.picture, str(part.path)) for part, row in these])
            else:
                yield np.concatenate([self.responses(subject, part, row, voxels) for part, row in these])

    def _usable(self, subject: str, voxels: KeptVoxels, split: NDArray[np.integer]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Voxels that hold a missing value anywhere, and those that say nothing: constant over the training trials, or in a run."""
        broken, silent = np.zeros(len(voxels), bool), np.zeros(len(voxels), bool)
        low, high = np.full(len(voxels), np.inf, np.float32), np.full(len(voxels), -np.inf, np.float32)
        done = 0
        for part, rows in zip(self.parts(subject), self.rows(subject), strict=True):
            series = self.read(part, voxels)
            trials = split[done : done + len(rows.picture)]
            done += len(rows.picture)
            if self.section.estimate is None:
                series = series[rows.volume]
                broken |= ~np.isfinite(series).all(0)
                if (trials == TRAIN).any():
                    low, high = np.minimum(low, series[trials == TRAIN].min(0)), np.maximum(high, series[trials == TRAIN].max(0))
            else:
                broken |= ~np.isfinite(series).all(0)
                silent |= ~(series.max(0) > series.min(0)) | ~(series.mean(0) > 0)
        return broken, (silent if self.section.estimate is not None else ~(high > low)) & ~broken

    def subject(self, subject: str) -> RawSubject:
        """Trials of a subject in order of presentation, and the voxels of its ROIs that vary and are whole."""
        trials = self._trials(subject)
        assert trials.split is not None
        voxels = self.voxels(subject)
        broken, silent = self._usable(subject, voxels, trials.split)
        bad = broken | silent
        dropped = {name: int(count) for name, count in zip(voxels.names, np.bincount(voxels.roi[bad], minlength=len(voxels.names)), strict=True) if count}
        if bad.any():
            said = f"{int(bad.sum())} of {len(bad)} voxels ({int(silent.sum())} without variance, {int(broken.sum())} with missing values)"
            where = f"{self._folder / ('sub-' + subject.removeprefix('sub-'))}"
            if bad.all():
                raise InputError(f"{where}: no voxel can be used, {said}; check the masks against the responses")
            if not self.section.drop_bad_voxels:
                raise InputError(f"{where}: {said} cannot be used; narrow the masks, or set datasets.{self.dataset}.drop_bad_voxels: true")
            say(f"{self.dataset} {subject}: dropped {said}; by ROI: {', '.join(f'{name} {count}' for name, count in dropped.items())}")
        kept = voxels.some(~bad)
        return RawSubject(
            n_voxels=len(kept), trials=replace(trials, responses=lambda: self._blocks(subject, kept)),
            units="as distributed" if self.section.estimate is None or isinstance(self.section.estimate, GlmSingle) else "percent signal change",
            xyz=kept.xyz, roi=kept.roi, roi_names=kept.names, noise_ceiling=self._noise_ceiling(subject, kept),
            protocol={**self._protocol(), "dropped_units": int(bad.sum()), "dropped_by_roi": dropped},
            units_kept=np.flatnonzero(~bad) if bad.any() else None,
        )  # fmt: skip

    # --- trials without pictures ---------------------------------------------------------------------------------

    def further_files(self, subject: str, asked: Decode) -> list[RemoteFile]:
        """Responses of another task with their tables, and the masks of the data set's own."""
        other = _Labels(self, asked)
        paths = [path for path in other.response_files(subject)]
        paths += [path for name, roi in self.section.rois.items() for path in self._roi_files(subject, name, roi)]
        return [own_file(self.root, path) for path in dict.fromkeys(paths)]

    def further(self, subject: str, asked: Decode) -> Further:
        """Trials of another task in the voxels of the data set's ROIs, with the labels that its tables give."""
        other, voxels = _Labels(self, asked), self.voxels(subject)
        parts, rows = other.parts(subject), other.rows(subject)
        other.check_grid(subject, voxels)
        labels = [other.words[index] for row in rows for index in row.picture]
        conditions = [word for words in other.conditions[subject] for word in words]
        session = np.concatenate([np.full(len(row.picture), part.session) for part, row in zip(parts, rows, strict=True)])
        runs = [row.run if row.run is not None else np.full(len(row.picture), part.run or 1) for part, row in zip(parts, rows, strict=True)]
        units = "as distributed" if self.section.estimate is None or isinstance(self.section.estimate, GlmSingle) else "percent signal change"
        return Further(session, labels, conditions, lambda: other._blocks(subject, voxels), units, np.concatenate(runs), {"task": asked.task})

    def _trials(self, subject: str) -> Trials:
        parts, rows = self.parts(subject), self.rows(subject)
        shown = self.pictures.first[np.concatenate([row.picture for row in rows])]
        split = self._split(subject, shown)
        for kind, word in ((TEST, "test"), (TRAIN, "training")):
            if not (split == kind).any():
                raise InputError(f"datasets.{self.dataset}.split: {subject} has no {word} trial; correct the rule")
        if (split == DROP).all():
            raise InputError(f"datasets.{self.dataset}.split: no trial of {subject} is in the split; choose another")
        runs = [row.run for row in rows]
        return Trials(
            session=np.repeat([part.session for part in parts], [len(row.picture) for row in rows]),
            stimulus=[self.pictures.names[index] for index in shown],
            responses=lambda: iter(()),
            split=split,
            run=None if any(run is None for run in runs) else np.concatenate([run for run in runs if run is not None]),
            onset=None if rows[0].events is None else np.concatenate([row.events.onset for row in rows if row.events is not None]),
        )

    def _protocol(self) -> dict[str, Any]:
        section = self.section
        return {
            "derivatives": section.derivatives, "space": section.space, "form": section.form, "split": section.split.model_dump(exclude_none=True),
            "rois": {name: roi.model_dump(exclude_none=True) for name, roi in section.rois.items()},
            "estimate": section.estimate.model_dump(mode="json") if section.estimate else "betas as distributed",
        }  # fmt: skip

    def _noise_ceiling(self, subject: str, voxels: KeptVoxels) -> NDArray[np.float32] | None:
        return None

    # --- what `inspect` and `check` ask for ----------------------------------------------------------------------

    def sides(self, subject: str) -> RawSubject | None:
        """Voxels in the mask alone (ROI `mask`) and in its left-right mirror image alone (`mirror image`); None where those are few."""
        if self.section.form != "volume":
            return None
        import nibabel

        voxels = self.voxels(subject)
        assert voxels.grid is not None
        shape, affine = voxels.grid
        mask = np.zeros(shape, bool)
        mask[voxels.where] = True
        mirror = np.flip(mask, [code in "LR" for code in nibabel.aff2axcodes(affine)].index(True))
        halves = [np.argwhere(mask & ~mirror), np.argwhere(mirror & ~mask)]
        if min(map(len, halves)) < 20:
            return None
        some = [half[np.unique(np.linspace(0, len(half) - 1, min(len(half), _SIDE)).astype(int))] for half in halves]
        side = np.repeat(np.arange(2, dtype=np.int16), [len(half) for half in some])
        both = KeptVoxels(tuple(np.concatenate(some).T), side, ["mask", "mirror image"], None, voxels.grid)
        trials = self._trials(subject)
        return RawSubject(len(both), replace(trials, responses=lambda: self._blocks(subject, both)), roi=both.roi, roi_names=both.names)

    def preview(self, subject: str) -> list[str]:
        """Lines for `unimind check --data`: files, voxels, overlap of mask and responses, first trials."""
        parts, rows, voxels = self.parts(subject), self.rows(subject), self.voxels(subject)
        image = self._open(parts[0].path)
        shape = image.shape if self.section.form != "gifti" else (len(image.darrays), self._size(parts[0].path))
        lines = [f"{len(parts)} files of responses in {len({part.session for part in parts})} sessions; {parts[0].path.name} is {' x '.join(map(str, shape))}"]
        counts = np.bincount(voxels.roi, minlength=len(voxels.names))
        lines.append(f"{len(voxels)} voxels: " + ", ".join(f"{name} {count}" for name, count in zip(voxels.names, counts, strict=True)))
        if self.section.form == "volume":
            with reading(parts[0].path, "a readable image", AGAIN):
                first = np.asarray(image.dataobj[..., 0]).reshape(shape[:3])[voxels.where]
            held = np.isfinite(first) & (first != 0)
            lines.append(f"{100 * held.mean():.1f} % of them hold a value in the first {'trial' if self.section.estimate is None else 'volume'}")
        run = rows[0].run
        for k in range(min(3, len(rows[0].picture))):
            at = f" at {rows[0].events.onset[k]:g} s" if rows[0].events is not None else f", beta {rows[0].volume[k]}" if rows[0].volume is not None else ""
            lines.append(f"session {parts[0].session}{'' if run is None else f' run {run[k]}'} trial {k + 1}{at}: {self.pictures.names[rows[0].picture[k]]}")
        return lines


class _Labels(BidsSource):
    """Trials of another task of a data set: its tables label them instead of naming pictures.

    Attributes
    ----------
    words : list of str
        The labels, each once; `FileTrials.picture` indexes them.
    conditions : dict of str to list
        Condition of every trial, by subject, a list a file.
    """

    naming, names, key = (*PICTURE_COLUMNS, "trial_type"), "labels a trial", "the set's `label:`"  # type: ignore[assignment]

    def __init__(self, source: BidsSource, asked: Decode) -> None:
        self.dataset, self.root, self.asked, self.source = source.dataset, source.root, asked, source
        self.section, self.task, self.picture = source.section, asked.task, asked.label
        self.parts, self.rows = functools.cache(self._find_parts), functools.cache(self._read_rows)
        self.words: list[str] = []
        self.conditions: dict[str, list[list[str]]] = {}
        self._read: list[list[str]] = []

    def _read_rows(self, subject: str) -> list[FileTrials]:
        self._read = self.conditions[subject] = []
        return super()._read_rows(subject)

    def _says(self, cell: str) -> bool:
        return not is_nothing(cell)

    def _places(self, names: list[str], where: list[str]) -> NDArray[np.integer]:
        self.words = list(dict.fromkeys([*self.words, *names]))
        place = {word: index for index, word in enumerate(self.words)}
        return np.array([place[name] for name in names], int)

    def _tested(self, frame: Any, path: Path) -> NDArray[np.bool_]:
        """No trial is of a split; their conditions are kept here, where a table's trials are those that stay, in their order."""
        column = self.asked.condition
        if column is not None and column not in frame:
            columns = ", ".join(name for name in frame if not name.startswith("_"))
            raise InputError(f"{path}: no column {column!r}; it has {columns}; see the set's `condition:`")
        self._read.append([""] * len(frame) if column is None else frame[column].tolist())
        return np.zeros(len(frame), bool)

    def check_grid(self, subject: str, voxels: KeptVoxels) -> None:
        """InputError where a file is not on the grid, or surface, of the data set's responses."""
        own = self.source.parts(subject)[0]
        for part in self.parts(subject):
            if voxels.grid is not None:
                image, (shape, affine) = self._open(part.path), voxels.grid
                same = tuple(image.shape[:3]) == shape and len(image.shape) == 4 and np.allclose(image.affine, affine, atol=1e-3)
            else:
                same = [self._size(file.path) for file in part.files] == [self._size(file.path) for file in own.files]
            if not same:
                raise InputError(f"{part.path}: not on the grid of {own.path.name}, which the subject was prepared from; resample it to that grid")

"""What data sets bring, as far as it is known before anything is fetched: trials, voxels, pictures.

Counts of NSD: Allen et al. 2022 and its data manual; of pictures within 37 sessions: Ozcelik & VanRullen 2023. Of GOD:
Horikawa & Kamitani 2017. Of BOLD5000: its release 2. Of HCP: 1200 volumes a run.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from unimind.study.data import AnyDataset, Bold5000Data, GodData, NsdData, SimulatedData, Unpaired

if TYPE_CHECKING:
    from unimind.study.whole import Study


@dataclass(frozen=True)
class Extent:
    """What a subject brings; None: not known before its files are there.

    Attributes
    ----------
    trials, voxels : int
        Of the prepared file.
    train, validation, test : int
        Pictures of each split.
    """

    trials: int | None = None
    voxels: int | None = None
    train: int | None = None
    validation: int | None = None
    test: int | None = None


_NSD_VOXELS = (15724, 14278, 15226, 13153, 13039, 17907, 12682, 14386)  # of nsdgeneral
_NSD_SESSIONS = (40, 40, 32, 30, 40, 32, 40, 30)
#: Sessions -> pictures to train on and test pictures, of subjects who finished them.
_NSD_PICTURES = {37: (8859, 982), 40: (9000, 1000)}
_NSD_TRIALS = 750  # of a session
_GOD_VOXELS = {"Subject1": 4466, "Subject2": 4404, "Subject3": 4643, "Subject4": 4133, "Subject5": 4370}  # of ROI_VC
_BOLD5000 = {"CSI1": (5254, 1685), "CSI2": (5254, 2270), "CSI3": (5254, 3104), "CSI4": (3108, None)}
_HCP_VOLUMES = 1200
#: Pictures of a whole data set, of whom its stimulus file has all.
_STIMULI = {"nsd": 73000, "god": 1250, "bold5000": 4916}
_SIMULATED_SUBJECTS = 8  # own pictures are drawn for so many, whoever takes part


def extent(study: "Study", dataset: str, subject: str) -> Extent:
    """What a subject of the study brings."""
    section = study.datasets[dataset]
    trials, voxels, shown, test = _counts(section, subject)
    if section.test_pictures is not None:  # a rule on the pictures decides
        return Extent(trials, voxels)
    if shown is None or test is None:
        return Extent(trials, voxels, test=test)
    validation = round(section.validation_fraction * (shown - test))  # expected: pictures are drawn by their hash
    return Extent(trials, voxels, shown - test - validation, validation, test)


def stimulus_count(study: "Study", dataset: str) -> int | None:
    """Pictures of a data set's stimulus file."""
    section = study.datasets[dataset]
    if isinstance(section, SimulatedData):
        own = section.sessions * section.trials_per_session // section.repeats - section.shared_images
        return section.shared_images + _SIMULATED_SUBJECTS * own
    return _STIMULI.get(section.source)


def samples(unpaired: Unpaired) -> int | None:
    """Samples of a subject's fMRI without pictures."""
    volumes = {"hcp": _HCP_VOLUMES, "simulated": unpaired.volumes}.get(unpaired.source)
    return None if volumes is None else len(unpaired.runs) * (volumes // unpaired.window)


def _counts(section: AnyDataset, subject: str) -> tuple[int | None, int | None, int | None, int | None]:
    """Trials, voxels, pictures and test pictures."""
    if isinstance(section, SimulatedData):
        trials = section.sessions * section.trials_per_session
        return trials, section.voxels, trials // section.repeats, section.shared_images
    if isinstance(section, GodData):
        return 1200 + 50 * 35, _GOD_VOXELS.get(subject) if section.roi == "ROI_VC" else None, 1250, 50
    if isinstance(section, Bold5000Data):
        trials, voxels = _BOLD5000.get(subject, (None, None))  # type: ignore[assignment]
        return trials, voxels if len(section.rois) == len(Bold5000Data.model_fields["rois"].default) else None, None, None
    if isinstance(section, NsdData) and subject[-1:].isdigit() and 1 <= int(subject[-1]) <= len(_NSD_SESSIONS):
        number = int(subject[-1]) - 1
        asked = section.sessions if isinstance(section.sessions, int) else 40 if section.sessions == "all" else int(section.sessions.split("/")[1])
        sessions = min(asked, _NSD_SESSIONS[number])
        train, test = _NSD_PICTURES.get(sessions, (None, None)) if section.test_repeats == 3 else (None, None)
        whole = [(rois.file, rois.labels) for rois in section.rois] == [("nsdgeneral", None)]
        voxels = _NSD_VOXELS[number] if whole and section.space == "func1pt8mm" else None
        return sessions * _NSD_TRIALS, voxels, None if train is None or test is None else train + test, test
    return None, None, None, None

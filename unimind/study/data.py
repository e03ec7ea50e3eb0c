"""Whose responses to which pictures: data sets, and fMRI without pictures."""

import re
from typing import Annotated, Literal

from pydantic import Field, model_validator

from unimind.study.base import Fraction, Name, Positive, Section


class Dataset(Section):
    """What every data set with pictures has."""

    training_subjects: list[Name] = Field([], description="Subjects the shared models are trained on.")
    new_subjects: list[Name] = Field([], description="Subjects the shared models are only adapted to; adding one retrains nothing shared.")
    root: str | None = Field(None, description="Folder that holds, or will hold, the data set's files as distributed; `$VARIABLES` are expanded. By default `data/<data set>`.")
    validation_fraction: Fraction = Field(0.1, description="Share of the training *images* set aside to watch training; never test images.")
    roi_labels: bool = Field(True, description="Keep a per-voxel ROI label where the source has one.")

    @property
    def of_responses(self) -> set[str]:
        """Keys that say nothing of the pictures."""
        return set()

    @property
    def subjects(self) -> list[str]:
        """Training subjects, then new ones."""
        return [*self.training_subjects, *self.new_subjects]

    @model_validator(mode="after")
    def _subjects_once(self) -> "Dataset":
        names = self.subjects
        if not names:
            raise ValueError("names no subject; list at least one under training_subjects or new_subjects")
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)} listed twice; a subject is either in training_subjects or in new_subjects")
        return self


class Rois(Section):
    """Voxels of one ROI file: all its positive labels, or the ones listed."""

    file: Name = Field(description="Name of a ROI volume without its ending, such as `nsdgeneral` or `prf-visualrois`.")
    labels: list[int] | None = Field(None, description="Label numbers to keep; by default every label above 0.")


class NsdData(Dataset):
    """The Natural Scenes Dataset, in its own layout."""

    source: Literal["nsd"]
    rois: list[Rois] = Field([Rois(file="nsdgeneral")], description="ROI files whose voxels are kept (their union).")
    sessions: Positive | Literal["all", "982/37", "1000/40"] = Field("all", description="How many sessions, from the first; or a protocol by its name, which is test images / sessions and must come out so: `982/37` or `1000/40`.")
    test_repeats: Positive = Field(3, description="A shared image is a test image when the subject saw it this often within `sessions` (982 images over 37 sessions, 1000 over 40).")
    betas: Name = Field("betas_fithrf_GLMdenoise_RR", description="Beta version: a folder name.")
    space: Name = Field("func1pt8mm", description="Volume space: a folder name.")
    form: Literal["nifti", "hdf5"] = Field("hdf5", description="Which of NSD's two forms of the betas is read.")

    @model_validator(mode="after")
    def _repeats_of_protocol(self) -> "NsdData":
        if self.sessions in ("982/37", "1000/40") and self.test_repeats != 3:
            raise ValueError(f"sessions: {self.sessions} tests on images seen three times; leave test_repeats out, or give the number of sessions")
        return self


class SimulatedData(Dataset):
    """Simulated brains looking at drawn pictures, written to disk in NSD's layout and read back as NSD is."""

    source: Literal["simulated"]
    rois: list[Rois] = Field([Rois(file="nsdgeneral")], description="As for NSD.")
    sessions: Positive = Field(3, description="Scanning sessions per subject.")
    trials_per_session: Positive = Field(750, description="Trials of one session; NSD has 750.")
    shared_images: Positive = Field(100, description="Pictures every subject sees; they are the test images.")
    repeats: Positive = Field(3, description="How often each picture is shown.")
    voxels: Positive = Field(800, description="About how many voxels nsdgeneral has; every subject has its own number.")
    noise: float = Field(1.0, gt=0, description="Trial noise as a multiple of the default (median noise ceiling near NSD's).")
    seed: int = 0

    @property
    def test_repeats(self) -> int:
        return self.repeats

    @model_validator(mode="after")
    def _fits(self) -> "SimulatedData":
        trials = self.sessions * self.trials_per_session
        if trials % self.repeats:
            raise ValueError(f"sessions x trials_per_session = {trials} is not a multiple of repeats = {self.repeats}")
        if trials // self.repeats <= self.shared_images:
            raise ValueError(f"{trials // self.repeats} pictures per subject leave none to train on beside {self.shared_images} shared ones")
        pool = self.shared_images + 8 * (trials // self.repeats - self.shared_images)
        if pool > 6912:
            raise ValueError(f"{pool} pictures for 8 subjects, but there are 6912 to draw; lower sessions, trials_per_session, or raise repeats")
        unknown = [name for name in self.subjects if not re.fullmatch(r"subj0[1-8]", name)]
        if unknown:
            raise ValueError(f"{', '.join(unknown)}: simulated subjects are called subj01 to subj08")
        return self


class GodData(Dataset):
    """Generic Object Decoding: BData files and a folder of pictures."""

    source: Literal["god"]
    roi: Name = Field("ROI_VC", description="Metadata key whose voxels are kept.")
    images: str | None = Field(None, description="Folder with the stimulus pictures obtained from the authors; by default `<root>/images`.")
    imagery: bool = Field(False, description="Also prepare the imagery trials, as `<subject>.imagery.h5`.")


class Bold5000Data(Dataset):
    """BOLD5000, release 2 (GLMsingle betas per ROI)."""

    source: Literal["bold5000"]
    rois: list[Literal["EarlyVis", "LOC", "OPA", "PPA", "RSC"]] = ["EarlyVis", "LOC", "OPA", "PPA", "RSC"]


class SplitRule(Section):
    """Which trials are test trials of a data set of one's own; exactly one rule."""

    every: Positive | None = Field(None, description="Every n-th picture in number order (the order of the responses where there is no trial table), counting from 0.")
    column: Name | None = Field(None, description="A column of the trial table that says `train` or `test`.")
    images: str | None = Field(None, description="A text file with one picture name a line: the test pictures.")
    sessions: list[int] | None = Field(None, description="Sessions whose pictures are test pictures.")

    @model_validator(mode="after")
    def _one(self) -> "SplitRule":
        given = [name for name in ("every", "column", "images", "sessions") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"needs exactly one of every, column, images, sessions; {'none' if not given else ', '.join(given)} given")
        return self


class Blocks(Section):
    """Responses given as volumes with block labels instead of trials."""

    labels: str = Field(description="Key of the label of every volume.")
    delay: int = Field(2, ge=0, description="Haemodynamic delay in volumes.")
    runs: Positive = Field(1, description="Number of equally long runs; every voxel is z-scored per run.")
    ignore: list[int] = Field([], description="Labels that are no stimulus (rest).")
    pictures: dict[int, int] = Field({}, description="Label -> index of the picture it stands for.")


class ArraysData(Dataset):
    """Own data: responses, pictures and, where trials are not simply in the pictures' order, a trial table."""

    source: Literal["arrays"]
    responses: str = Field(description="File below root or elsewhere: .npy, .npz, .h5, .mat, .nii or .nii.gz. `{subject}` is replaced; where there is one file a session or run, `{session}` and `{run}` stand for its number (1, 01, ses-01), which the trial table's columns name.")
    key: str | None = Field(None, description="Which array of an .npz, .h5, .mat or pickled .npy file; may be a path such as `D/data`, or `betasmd` of GLMsingle's results.")
    orientation: Literal["trials_by_voxels", "voxels_by_trials"] = Field("trials_by_voxels", description="What the first axis of responses of two axes is.")
    mask: str | None = Field(None, description="ROI mask or atlas on the grid of the responses, for NIfTI responses and arrays of four axes, whose trials are found by its shape.")
    mask_labels: list[int] | None = Field(None, description="Labels of the mask to keep; by default every value above `mask_threshold`.")
    mask_threshold: float = Field(0.0, ge=0, description="Voxels whose value in the mask is above this are kept; for a mask of probabilities, 0.5 say.")
    images: str = Field(description="Folder, zip or tar archive, or array of pictures below root or elsewhere; `{subject}` where every subject has its own.")
    images_key: str | None = Field(None, description="Which array of the pictures' file.")
    images_shape: tuple[int, int] | None = Field(None, description="Height and width of pictures in an array, where they are stored as flat columns or rows, or its axes leave them open.")
    images_transposed: bool = Field(False, description="Flat pictures are stored column by column.")
    images_ground: int = Field(128, ge=0, le=255, description="Grey that was behind transparent pixels on the screen: 0 black, 255 white.")
    trials: str | None = Field(None, description="Trial table below root or elsewhere, `{subject}`, `{session}` and `{run}` as in `responses`: one row a trial with `picture` (or `stim_file`, `stimulus`, `label`, `condition`: name or number) and, where known, `session`, `run` and `beta_index`; or an array with a picture number a trial. By default trial k shows picture k, in number order.")
    count_from: Literal[0, 1] | None = Field(None, description="What `beta_index` and numbers of pictures in an array count from; found where the table has the first or the last.")
    blocks: Blocks | None = Field(None, description="For responses that are volumes of a block design.")
    split: SplitRule = SplitRule(every=5)
    drop_bad_voxels: bool = Field(True, description="Drop units without variance or with missing values, and say how many; otherwise refuse them.")
    units: str = Field("arbitrary", description="Physical unit of the responses, for the record.")

    @model_validator(mode="after")
    def _readable(self) -> "ArraysData":
        volumes = self.responses.endswith((".nii", ".nii.gz"))
        parts = [name for name in ("{session}", "{run}") if name in self.responses]
        if not volumes and not self.responses.endswith((".npy", ".npz", ".h5", ".hdf5", ".mat")):
            raise ValueError(f"responses: {self.responses!r} given; expected a name ending in .npy, .npz, .h5, .mat, .nii or .nii.gz")
        if volumes and self.mask is None:
            raise ValueError("mask: missing; NIfTI responses need a mask on their grid")
        if volumes and self.key is not None:
            raise ValueError("key: NIfTI files hold one array; remove it")
        if self.mask is None and (self.mask_labels is not None or self.mask_threshold):
            raise ValueError(f"{'mask_labels' if self.mask_labels is not None else 'mask_threshold'}: there is no mask; remove it, or give `mask:`")
        if self.mask_labels is not None and self.mask_threshold:
            raise ValueError("mask_threshold: mask_labels says which voxels are kept; remove one of them")
        if self.mask is not None and self.orientation != "trials_by_voxels":
            raise ValueError("orientation: the axes of volumes are found by the mask's shape; remove it")
        if len(self.subjects) > 1 and "{subject}" not in self.responses:
            raise ValueError(f"responses: {self.responses!r} is the same file for {len(self.subjects)} subjects; write {{subject}} where the subject stands")
        if self.blocks is not None and (volumes or self.mask is not None or self.trials is not None or parts):
            raise ValueError("blocks: only for one array of responses without mask or trial table; the blocks are the trials")
        if self.split.column is not None and self.trials is None:
            raise ValueError("split.column: needs a trial table; give `trials:` or another split rule")
        if self.count_from is not None and self.trials is None:
            raise ValueError("count_from: there is no trial table; remove it, or give `trials:`")
        return self

    @property
    def split_by_table(self) -> bool:
        return self.split.column is not None or self.split.sessions is not None

    @property
    def images_per_subject(self) -> bool:
        return "{subject}" in self.images

    @property
    def of_responses(self) -> set[str]:
        """Keys that say nothing of the pictures, nor of which are test pictures."""
        keys = {"responses", "key", "orientation", "mask", "mask_labels", "mask_threshold", "blocks", "drop_bad_voxels", "units"}
        return keys if self.split_by_table else keys | {"trials"}


AnyDataset = Annotated[NsdData | SimulatedData | GodData | Bold5000Data | ArraysData, Field(discriminator="source")]


class Unpaired(Section):
    """fMRI without pictures, for pretraining."""

    source: Literal["hcp", "simulated", "arrays"] = Field(description="HCP resting runs; simulated rest in HCP's layout; or an .npz of V1..V4 time courses as MinD-Vis reads (`arrays`).")
    subjects: list[Name] = Field(min_length=1, description="Subject numbers.")
    root: str | None = Field(None, description="As for data sets; by default `data/unpaired`.")
    areas: list[str] = Field(["V1", "V2", "V3", "V4"], description="Areas of the HCP MMP1 map.")
    runs: list[str] = Field(["rfMRI_REST1_LR", "rfMRI_REST1_RL", "rfMRI_REST2_LR", "rfMRI_REST2_RL"], description="Resting runs.")
    window: Positive = Field(10, description="Volumes averaged into one sample (10 TR = 7.2 s).")
    drop_original: bool = Field(False, description="Delete each downloaded run once its visual grayordinates are kept (1 GB becomes 20 MB).")
    volumes: Positive = Field(1200, description="Volumes per run of simulated rest; HCP has 1200.")

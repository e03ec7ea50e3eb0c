"""Whose responses to which pictures: data sets, and fMRI without pictures."""

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from unimind.study.base import Fraction, Name, Positive, Section, idle


class RandomPictures(Section):
    """Test pictures at random."""

    rule: Literal["random"]
    share: float = Field(0.2, gt=0, lt=1, description="Of the pictures, to test on.")
    leave_out: Fraction = Field(0.0, description="Share of the other pictures that is left out at random: as many as `far` leaves out, to compare with.")


class FarPictures(Section):
    """The test pictures of `random`, far from every training picture: those near to one are left out. Equal in number and difficulty, but for new subjects with pictures of their own."""

    rule: Literal["far"]
    share: float = Field(0.2, gt=0, lt=1, description="As for `random`: the same pictures with the same share and seed.")
    leave_out: float = Field(
        0.3, gt=0, lt=1, description="Share of the other pictures that is left out: those nearest to a test picture by the image embedding."
    )


class ByClusters(Section):
    """A whole cluster of the image embedding to test on."""

    rule: Literal["clusters"]
    count: int = Field(5, ge=2, description="Clusters (k-means) of the training subjects' pictures.")
    test: int = Field(0, ge=0, description="Which of them is tested on, counted from 0, the largest; a study of each in turn tests on all pictures once.")

    @model_validator(mode="after")
    def _there(self) -> "ByClusters":
        if self.test >= self.count:
            raise ValueError(f"test: {self.test} given, but the {self.count} clusters are counted from 0 to {self.count - 1}")
        return self


class ByCategories(Section):
    """Whole categories to test on; pictures without one are left out."""

    rule: Literal["categories"]
    share: float = Field(0.2, gt=0, lt=1, description="Of the categories, to test on.")


class Dataset(Section):
    """What every data set with pictures has."""

    training_subjects: list[Name] = Field([], description="Subjects the shared models are trained on.")
    new_subjects: list[Name] = Field([], description="Subjects the shared models are only adapted to; adding one retrains nothing shared.")
    root: str | None = Field(
        None, description="Folder that holds, or will hold, the data set's files as distributed; `$VARIABLES` are expanded. By default `data/<data set>`."
    )
    validation_fraction: Fraction = Field(0.1, description="Share of the training *images* set aside to watch training; never test images.")
    roi_labels: bool = Field(True, description="Keep a per-voxel ROI label where the source has one.")
    require_signal: bool = Field(
        True,
        description="Stop before anything is trained where neither the pictures nor their repeats can be told from a subject's responses (stage inspect); `false` trains all the same.",
    )

    test_pictures: Annotated[RandomPictures | FarPictures | ByClusters | ByCategories, Field(discriminator="rule")] | None = Field(
        None, description="A rule on the pictures themselves for which of them are test pictures, instead of the data set's own."
    )
    seconds_per_trial: float | None = Field(
        None, gt=0, description="Time from one trial to the next, rests left out: by it the declaration says how many minutes of recording a method got."
    )

    categories: str | None = Field(
        None,
        description="Category of every picture, for the checks of generalisation and `test_pictures`: a regular expression that finds it in the picture's name as its first group, such as `^(n[0-9]+)_`. Without it, clusters of the image embedding stand for categories.",
    )

    @property
    def of_responses(self) -> set[str]:
        """Keys that no picture and no rule for test pictures depends on: when they change, nothing of the pictures is made again."""
        return {"validation_fraction", "roi_labels", "require_signal", "seconds_per_trial", "categories"}

    @property
    def subjects(self) -> list[str]:
        """Training subjects, then new ones."""
        return [*self.training_subjects, *self.new_subjects]

    @field_validator("categories")
    @classmethod
    def _a_group(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                groups = re.compile(value).groups
            except re.error as error:
                raise ValueError(f"{value!r} is no regular expression ({error})") from None
            if not groups:
                raise ValueError(f"{value!r} has no group; put the category in parentheses, such as `^(n[0-9]+)_`")
        return value

    @model_validator(mode="before")
    @classmethod
    def _without_split(cls, given: Any) -> Any:
        """`split: null` beside `test_pictures` takes back what another file says."""
        if isinstance(given, dict) and given.get("test_pictures") is not None and "split" in given and given["split"] is None:
            return {key: value for key, value in given.items() if key != "split"}
        return given

    @model_validator(mode="after")
    def _one_rule(self) -> "Dataset":
        own = type(self).model_fields.get("split")
        if self.test_pictures is not None and own is not None and getattr(self, "split") != own.default:  # noqa: B009
            raise ValueError(
                "split: test_pictures says which pictures are tested on; remove one of them (a file added to another one removes with `split: null`)"
            )
        if isinstance(self.test_pictures, ByCategories) and self.categories is None:
            raise ValueError("test_pictures.rule: categories needs to know them; give `categories`")
        return self

    @model_validator(mode="after")
    def _subjects_once(self) -> "Dataset":
        names = self.subjects
        if not names:
            raise ValueError("names no subject; list at least one under training_subjects or new_subjects")
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)} listed twice; a subject is either in training_subjects or in new_subjects")
        return self


#: Endings of files that hold an array.
ARRAYS = (".npy", ".npz", ".h5", ".hdf5", ".mat")


def _of_arrays(section: "ArraysData | BidsData", *keys: str) -> None:
    """Refuse what says how an array holds pictures where they are a folder or an archive; what a variable stands for is not known."""
    if not section.images.endswith(ARRAYS) and "$" not in section.images:
        idle(section, keys, f"images: {section.images} is no array ({', '.join(ARRAYS)})")


class Rois(Section):
    """Voxels of one ROI file: all its positive labels, or the ones listed."""

    file: Name = Field(description="Name of a ROI volume without its ending, such as `nsdgeneral` or `prf-visualrois`.")
    labels: list[int] | None = Field(None, description="Label numbers to keep; by default every label above 0.")


class NsdData(Dataset):
    """The Natural Scenes Dataset, in its own layout."""

    source: Literal["nsd"]
    rois: list[Rois] = Field([Rois(file="nsdgeneral")], description="ROI files whose voxels are kept (their union).")
    sessions: Positive | Literal["all", "982/37", "1000/40"] = Field(
        "all",
        description="How many sessions, from the first; or a protocol by its name, which is test images / sessions and must come out so: `982/37` or `1000/40`.",
    )
    test_repeats: Positive = Field(
        3, description="A shared image is a test image when the subject saw it this often within `sessions` (982 images over 37 sessions, 1000 over 40)."
    )
    betas: Name = Field("betas_fithrf_GLMdenoise_RR", description="Beta version: a folder name.")
    space: Name = Field("func1pt8mm", description="Volume space: a folder name.")
    form: Literal["nifti", "hdf5"] = Field("hdf5", description="Which of NSD's two forms of the betas is read.")

    @model_validator(mode="after")
    def _repeats_of_protocol(self) -> "NsdData":
        if self.sessions in ("982/37", "1000/40") and self.test_repeats != 3:
            raise ValueError(f"sessions: {self.sessions} tests on images seen three times; leave test_repeats out, or give the number of sessions")
        return self

    @property
    def of_responses(self) -> set[str]:
        return super().of_responses | {"rois", "sessions", "test_repeats", "betas", "space", "form"}


class SimulatedData(Dataset):
    """Simulated brains looking at drawn pictures, written to disk in NSD's layout and read back as NSD is."""

    source: Literal["simulated"]
    rois: list[Rois] = Field([Rois(file="nsdgeneral")], description="As for NSD.")
    sessions: Positive = Field(3, description="Scanning sessions per subject.")
    trials_per_session: Positive = Field(750, description="Trials of one session; NSD has 750.")
    shared_images: Positive = Field(100, description="Pictures every subject sees; they are the test images.")
    repeats: Positive = Field(3, description="How often each picture is shown.")
    voxels: Positive = Field(800, description="About how many voxels nsdgeneral has; every subject has its own number.")
    noise: float = Field(1.0, gt=0, description="Trial noise as a multiple of the default (median noise ceiling of one trial about 0.14).")
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
        unknown = [name for name in self.subjects if not re.fullmatch(r"subj0[1-8]", name)]
        if unknown:
            raise ValueError(f"{', '.join(unknown)}: simulated subjects are called subj01 to subj08")
        return self


class GodData(Dataset):
    """Generic Object Decoding: BData files and a folder of pictures."""

    source: Literal["god"]
    roi: Name = Field("ROI_VC", description="Metadata key whose voxels are kept.")
    images: str | None = Field(None, description="Folder with the stimulus pictures obtained from the authors; by default `<root>/images`.")


class Bold5000Data(Dataset):
    """BOLD5000, release 2 (GLMsingle betas per ROI)."""

    source: Literal["bold5000"]
    rois: list[Literal["EarlyVis", "LOC", "OPA", "PPA", "RSC"]] = ["EarlyVis", "LOC", "OPA", "PPA", "RSC"]


class SplitRule(Section):
    """Which trials are test trials of a data set of one's own; exactly one rule."""

    every: Positive | None = Field(
        None, description="Every n-th picture in number order (the order of the responses where there is no trial table), counting from 0."
    )
    column: Name | None = Field(None, description="A column of the trial table that says `train` or `test`.")
    images: str | None = Field(None, description="A text file with one picture name a line: the test pictures.")
    sessions: list[int] | None = Field(None, description="Sessions whose pictures are test pictures.")

    @model_validator(mode="after")
    def _one(self) -> "SplitRule":
        given = [name for name in ("every", "column", "images", "sessions") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"needs exactly one of every, column, images, sessions; {'none' if not given else ', '.join(given)} given")
        return self


class BlockDesign(Section):
    """Responses given as volumes with block labels instead of trials."""

    labels: str = Field(description="Key of the label of every volume.")
    delay: int = Field(2, ge=0, description="Haemodynamic delay in volumes.")
    runs: Positive = Field(1, description="Number of equally long runs; every voxel is z-scored per run.")
    ignore: list[int] = Field([], description="Labels that are no stimulus (rest).")
    pictures: dict[int, int] = Field({}, description="Label -> index of the picture it stands for.")


class ArraysData(Dataset):
    """Own data: responses, pictures and, where trials are not simply in the pictures' order, a trial table."""

    source: Literal["arrays"]
    responses: str = Field(
        description="File below root or elsewhere: .npy, .npz, .h5, .mat, .nii or .nii.gz. `{subject}` is replaced; where there is one file a session or run, `{session}` and `{run}` stand for its number (1, 01, ses-01), which the trial table's columns name."
    )
    key: str | None = Field(
        None, description="Which array of an .npz, .h5, .mat or pickled .npy file; may be a path such as `D/data`, or `betasmd` of GLMsingle's results."
    )
    orientation: Literal["trials_by_voxels", "voxels_by_trials"] = Field("trials_by_voxels", description="What the first axis of responses of two axes is.")
    mask: str | None = Field(
        None, description="ROI mask or atlas on the grid of the responses, for NIfTI responses and arrays of four axes, whose trials are found by its shape."
    )
    mask_labels: list[int] | None = Field(None, description="Labels of the mask to keep; by default every value above `mask_threshold`.")
    mask_threshold: float = Field(0.0, ge=0, description="Voxels whose value in the mask is above this are kept; for a mask of probabilities, 0.5 say.")
    images: str = Field(description="Folder, zip or tar archive, or array of pictures below root or elsewhere; `{subject}` where every subject has its own.")
    images_key: str | None = Field(None, description="Which array of the pictures' file.")
    images_shape: tuple[int, int] | None = Field(
        None, description="Height and width of pictures in an array, where they are stored as flat columns or rows, or its axes leave them open."
    )
    images_transposed: bool = Field(False, description="Flat pictures are stored column by column.")
    images_ground: int = Field(128, ge=0, le=255, description="Grey that was behind transparent pixels on the screen: 0 black, 255 white.")
    trials: str | None = Field(
        None,
        description="Trial table below root or elsewhere, `{subject}`, `{session}` and `{run}` as in `responses`: one row a trial with `picture` (or `stim_file`, `stimulus`, `label`, `condition`: name or number) and, where known, `session`, `run` and `beta_index`; or an array with a picture number a trial. By default trial k shows picture k, in number order.",
    )
    count_from: Literal[0, 1] | None = Field(
        None, description="What `beta_index` and numbers of pictures in an array count from; found where the table has the first or the last."
    )
    blocks: BlockDesign | None = Field(None, description="For responses that are volumes of a block design.")
    split: SplitRule = SplitRule(every=5)
    drop_bad_voxels: bool = Field(True, description="Drop units without variance or with missing values, and say how many; otherwise refuse them.")
    units: str = Field("arbitrary", description="Physical unit of the responses, for the record.")

    @model_validator(mode="after")
    def _readable(self) -> "ArraysData":
        volumes = self.responses.endswith((".nii", ".nii.gz"))
        parts = [name for name in ("{session}", "{run}") if name in self.responses]
        if not volumes and not self.responses.endswith(ARRAYS):
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
        if self.count_from is not None and self.trials is None and self.split.images is None:
            raise ValueError("count_from: there is no trial table; remove it, or give `trials:`")
        _of_arrays(self, "images_key", "images_shape", "images_transposed")
        return self

    @property
    def split_by_table(self) -> bool:
        return self.split.column is not None or self.split.sessions is not None

    @property
    def images_per_subject(self) -> bool:
        return "{subject}" in self.images

    @property
    def of_responses(self) -> set[str]:
        keys = super().of_responses | {"responses", "key", "orientation", "mask", "mask_labels", "mask_threshold", "blocks", "drop_bad_voxels", "units"}
        return keys if self.split_by_table else keys | {"trials"}


class BidsRois(Section):
    """Voxels of one mask or atlas: a file, or found by its BIDS name."""

    file: str | None = Field(None, description="Mask or atlas below root; `{subject}` (without `sub-`) and, for GIFTI, `{hemi}` are replaced.")
    desc: Name | None = Field(
        None, description="A mask of the derivatives by its `desc-`, such as `brain`; where there is one a run, the voxels that are in all of them."
    )
    atlas: Name | None = Field(
        None, description="An atlas of the derivatives by its `atlas-`, `seg-` or `desc-`: a `_dseg` file, whose table beside it names the labels."
    )
    areas: list[str] | None = Field(None, description="Areas of the HCP MMP1 map, for CIFTI responses (91k grayordinates).")
    labels: dict[Name, list[int]] | list[int | str] | None = Field(
        None,
        description="Labels by the ROI they make, such as `V1: [1, 2]`, or a list of labels or of their names in the atlas's table; by default every label above 0.",
    )
    above: float | None = Field(None, description="For a map of probabilities: keep voxels above this value.")

    @model_validator(mode="after")
    def _one(self) -> "BidsRois":
        given = [name for name in ("file", "desc", "atlas", "areas") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"needs exactly one of file, desc, atlas, areas; {'none' if not given else ', '.join(given)} given")
        if self.labels is not None and (self.areas is not None or self.desc is not None or self.above is not None):
            raise ValueError("labels: only for an atlas; a mask, a map with `above` or `areas` has none")
        if self.above is not None and self.file is None:
            raise ValueError("above: only for a map given by `file`")
        return self


MOTION = ["trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z"]


class Cleaned(Section):
    """What is explained away in every run, whatever follows."""

    high_pass: float = Field(0.01, gt=0, description="Cosine drifts up to this frequency (Hz) are explained away.")
    confounds: list[str] = Field(MOTION, description="Columns of fMRIPrep's confounds table that are explained away; `[]` for none.")


class SingleTrialGlm(Cleaned):
    """One beta a trial by least squares, run by run."""

    kind: Literal["lss", "lsa"] = Field(
        description="`lss`: a model per trial, all other trials in one regressor (Mumford et al. 2012); `lsa`: one model with a regressor per trial."
    )
    hrf: Literal["glover", "spm"] = Field("glover", description="Haemodynamic response, as nilearn defines it.")
    conditions: list[str] = Field(
        [],
        description="Values of `trial_type` without pictures that get a regressor each, such as a button press; other events without a picture are left out.",
    )


class LagWindow(Cleaned):
    """Mean of the volumes in a window after the onset, for stimuli too close to be told apart by a model."""

    kind: Literal["lag-window"]
    window: tuple[float, float] = Field(description="Seconds after the onset: begin, end.")

    @model_validator(mode="after")
    def _forward(self) -> "LagWindow":
        if self.window[0] >= self.window[1]:
            raise ValueError(f"window: {list(self.window)} given; the end must come after the begin")
        return self


class GlmSingle(Section):
    """GLMsingle (Prince et al. 2022), session by session; the package `glmsingle` must be installed."""

    kind: Literal["glmsingle"]


class BidsData(Dataset):
    """BIDS derivatives by entity names: single-trial betas with trial tables, or preprocessed time series with events."""

    source: Literal["bids"]
    derivatives: str = Field(description="Folder below root that holds `sub-...`, such as `derivatives/fmriprep`.")
    task: Name | None = Field(None, description="`task-` of the files, where there are several.")
    space: Name | None = Field(None, description="`space-` of the files, where there are several.")
    desc: Name | None = Field(None, description="`desc-` of the files; by default `SingletrialBetas`, or `preproc` with `estimate`.")
    form: Literal["volume", "gifti", "cifti"] = Field("volume", description="What the responses are: NIfTI volumes, a GIFTI file a hemisphere, or CIFTI.")
    estimate: Annotated[SingleTrialGlm | LagWindow | GlmSingle, Field(discriminator="kind")] | None = Field(
        None,
        description="How single-trial responses come from time series (`_bold` with `_events.tsv` and confounds); without it `_statmap` files of betas are read.",
    )
    rois: dict[Name, BidsRois] = Field(
        min_length=1, description="ROIs by name; a voxel in several belongs to the first. Where `labels` name ROIs, those are the names."
    )
    picture: Name | None = Field(None, description="Column that names the picture; by default the first of label, stim_file, picture, stimulus.")
    images: str = Field(description="Folder, zip or tar archive, or array of pictures below root or elsewhere.")
    images_key: str | None = Field(None, description="Which array of the pictures' file.")
    count_from: Literal[0, 1] | None = Field(None, description="As for arrays.")
    split: SplitRule = SplitRule(every=5)
    drop_bad_voxels: bool = Field(True, description="Drop voxels without variance or with missing values, and say how many; otherwise refuse them.")

    @model_validator(mode="after")
    def _fits(self) -> "BidsData":
        for name, roi in self.rois.items():
            if roi.areas is not None and self.form != "cifti":
                raise ValueError(f"rois.{name}.areas: only for form cifti; {self.form} given")
            if (roi.desc or roi.atlas) and self.form != "volume":
                raise ValueError(
                    f"rois.{name}: desc and atlas find volumes, but form is {self.form}; give `file`{', or `areas`' if self.form == 'cifti' else ''}"
                )
            if self.form == "gifti" and "{hemi}" not in (roi.file or ""):
                raise ValueError(f"rois.{name}.file: {roi.file!r} given; there is a file a hemisphere, so write {{hemi}} where L or R stands")
        if self.form != "volume" and self.estimate is None:
            raise ValueError(f"form: {self.form} given, but single-trial betas are read as volumes; give `estimate`, or form volume")
        _of_arrays(self, "images_key")
        return self

    @property
    def of_responses(self) -> set[str]:
        tables = {"derivatives", "task", "desc", "estimate", "picture"} if self.split.every or self.split.images else set()
        return super().of_responses | {"space", "form", "rois", "drop_bad_voxels"} | tables


LAION_SPLITS = Literal[
    "tau", "cluster_k5_0", "cluster_k5_1", "cluster_k5_2", "cluster_k5_3", "cluster_k5_4", "ood", "random_0", "random_1", "random_2", "random_3", "random_4"
]
OOD_TYPES = Literal["shape", "relations", "unusual", "cropped", "selfmade", "gaudy", "illusion-classic", "gabor", "illusion-natural"]


class LaionFmriData(Dataset):
    """LAION-fMRI: single-trial betas in BIDS, its ROIs and its shipped splits by name."""

    source: Literal["laion-fmri"]
    sessions: Positive = Field(30, description="How many sessions, from the first.", le=30)
    rois: list[str] = Field(
        ["laion-general"],
        min_length=1,
        description="ROI files whose voxels are kept, such as `V1v` or `laion-ventral`; a voxel in several belongs to the first.",
    )
    split: LAION_SPLITS = Field("tau", description="Shipped split; trials of pictures outside it are left out.")
    pool: Literal["subject", "shared"] = Field(
        "subject", description="Which pictures the split divides: those of each subject (5833), or the 1121 that all saw."
    )
    ood_types: list[OOD_TYPES] | None = Field(None, description="With `split: ood`, kinds of pictures to test on; by default all nine.")

    @model_validator(mode="after")
    def _fits(self) -> "LaionFmriData":
        if self.ood_types is not None and self.split != "ood":
            raise ValueError(f"ood_types: only for split ood; {self.split} given")
        return self

    @property
    def of_responses(self) -> set[str]:
        return super().of_responses | {"sessions", "rois"}


#: Visual areas of the HCP MMP1 map (Glasser et al. 2016, groups 1 to 5 of their supplement).
VISUAL_AREAS = [
    "V1", "V2", "V3", "V4", "V3A", "V3B", "V6", "V6A", "V7", "IPS1", "V8", "VVC", "VMV1", "VMV2", "VMV3", "PIT", "FFC",
    "V3CD", "LO1", "LO2", "LO3", "V4t", "MT", "MST", "FST", "PH",
]  # fmt: skip


class MosaicData(Dataset):
    """MOSAIC: eight data sets in one space (fsLR-32k), one HDF5 file a subject."""

    source: Literal["mosaic"]
    areas: list[str] = Field(VISUAL_AREAS, min_length=1, description="Areas of the HCP MMP1 map whose grayordinates are kept; each is a ROI.")
    images: str = Field(
        description="Folder, or zip or tar archive, of the pictures, got from each data set's owner; found by the name of the file that was presented."
    )
    split: str = Field(
        "phase",
        description="`phase`: as each trial is marked; or a JSON file below root with the lists `train` and `test` of picture names, and `artificial` where there are such.",
    )
    artificial: Literal["drop", "test"] = Field("drop", description="What becomes of the pictures listed as artificial.")

    @model_validator(mode="after")
    def _fits(self) -> "MosaicData":
        if self.split == "phase" and self.artificial == "test":
            raise ValueError("artificial: only where split names a JSON file; trials are marked train or test alone")
        if self.split != "phase" and not self.split.endswith(".json"):
            raise ValueError(f"split: {self.split!r} given; expected phase, or the name of a .json file")
        return self

    @property
    def of_responses(self) -> set[str]:
        return super().of_responses | {"areas"}


AnyDataset = Annotated[NsdData | SimulatedData | GodData | Bold5000Data | ArraysData | BidsData | LaionFmriData | MosaicData, Field(discriminator="source")]


class Unpaired(Section):
    """fMRI without pictures, for pretraining."""

    source: Literal["hcp", "simulated", "arrays"] = Field(
        description="HCP resting runs; simulated rest in HCP's layout; or an .npz of V1..V4 time courses as MinD-Vis reads (`arrays`)."
    )
    subjects: list[Name] = Field(min_length=1, description="Subject numbers.")
    root: str | None = Field(None, description="As for data sets; by default `data/unpaired`.")
    areas: list[str] = Field(["V1", "V2", "V3", "V4"], description="Areas of the HCP MMP1 map.")
    runs: list[str] = Field(["rfMRI_REST1_LR", "rfMRI_REST1_RL", "rfMRI_REST2_LR", "rfMRI_REST2_RL"], description="Resting runs.")
    window: Positive = Field(10, description="Volumes averaged into one sample (10 TR = 7.2 s).")
    drop_original: bool = Field(False, description="Delete each downloaded run once its visual grayordinates are kept (1 GB becomes 20 MB).")
    volumes: Positive = Field(1200, description="Volumes per run of simulated rest; HCP has 1200.")

    @model_validator(mode="after")
    def _of_source(self) -> "Unpaired":
        if self.source != "simulated":
            idle(self, ("volumes",), f"source {self.source} is as long as it is")
        if self.source == "arrays":
            idle(self, ("runs", "drop_original"), "source arrays is one file a subject, which is kept")
        return self

"""The study: everything a user decides, typed.

This module is the one source of the schema (`unimind schema`), of the defaults and of the reference in
`config/README.md`. It imports nothing of the package but its errors, and nothing slow: Snakemake reads it too.
"""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from unimind.errors import InputError

METRICS = (
    "mse", "pixcorr", "ssim", "lpips", "inception_score", "fid", "alexnet2", "alexnet5", "inception", "clip", "effnet",
    "swav", "nway_top1", "retrieval_forward", "retrieval_backward",
)  # fmt: skip
#: Measures of our own beside the field's panel: named for the network that computes them, never as its stand-in.
OWN_METRICS = ("identification", "study_clip", "squeezenet", "lpips_squeeze", "classifier", "classifier_score", "perceptual_distance")

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Sha256 = Annotated[str | None, Field(description="SHA-256 that the file of weights must have; where none is given, any file is taken and its SHA-256 recorded.")]


class Section(BaseModel):
    """A part of the study: unknown keys are refused, values never change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


# --- data sets --------------------------------------------------------------------------------------------------


class Dataset(Section):
    """What every data set with pictures has."""

    training_subjects: list[Name] = Field([], description="Subjects the shared models are trained on.")
    new_subjects: list[Name] = Field([], description="Subjects the shared models are only adapted to; adding one retrains nothing shared.")
    root: str | None = Field(None, description="Folder that holds, or will hold, the data set's files as distributed; `$VARIABLES` are expanded. By default `data/<data set>`.")
    validation_fraction: Fraction = Field(0.1, description="Share of the training *images* set aside to watch training; never test images.")
    roi_labels: bool = Field(True, description="Keep a per-voxel ROI label where the source has one.")

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
    responses: str = Field(description="File below root, `{subject}` is replaced: .npy, .npz, .h5, .mat, or .nii/.nii.gz (with `mask`; `{session}` may stand for one file a session).")
    key: str | None = Field(None, description="Which array of an .npz, .h5 or .mat file; may be a path such as `D/data`.")
    orientation: Literal["trials_by_voxels", "voxels_by_trials"] = Field("trials_by_voxels", description="What the first axis of the responses is.")
    mask: str | None = Field(None, description="ROI mask or atlas (NIfTI) of the responses' grid, for NIfTI responses.")
    mask_labels: list[int] | None = Field(None, description="Labels of the mask to keep; by default every value above 0.")
    images: str = Field(description="Folder, zip or tar archive, or array of pictures below root; `{subject}` where every subject has its own.")
    images_key: str | None = Field(None, description="Which array of the pictures' file.")
    images_shape: tuple[int, int] | None = Field(None, description="Height and width of pictures stored as flat columns or rows.")
    images_transposed: bool = Field(False, description="Flat pictures are stored column by column.")
    trials: str | None = Field(None, description="Trial table below root (.csv or .tsv): one row a trial with `picture` (name or number) and, where known, `session`, `repeat`. By default trial k shows picture k, in number order.")
    blocks: Blocks | None = Field(None, description="For responses that are volumes of a block design.")
    split: SplitRule = SplitRule(every=5)
    drop_bad_voxels: bool = Field(True, description="Drop units without variance or with missing values, and say how many; otherwise refuse them.")
    units: str = Field("arbitrary", description="Physical unit of the responses, for the record.")

    @model_validator(mode="after")
    def _readable(self) -> "ArraysData":
        volumes = self.responses.endswith((".nii", ".nii.gz"))
        if not volumes and not self.responses.endswith((".npy", ".npz", ".h5", ".hdf5", ".mat")):
            raise ValueError(f"responses: {self.responses!r} given; expected a name ending in .npy, .npz, .h5, .mat, .nii or .nii.gz")
        if volumes != (self.mask is not None):
            raise ValueError(f"mask: {'missing; NIfTI responses need a mask on their grid' if volumes else 'only for NIfTI responses; remove it'}")
        if "{session}" in self.responses and not volumes:
            raise ValueError("responses: one file a session is read for NIfTI only; join the arrays, and name the session in the trial table")
        if len(self.subjects) > 1 and "{subject}" not in self.responses:
            raise ValueError(f"responses: {self.responses!r} is the same file for {len(self.subjects)} subjects; write {{subject}} where the subject stands")
        if self.blocks is not None and (volumes or self.trials is not None):
            raise ValueError("blocks: only for array responses without a trial table; the blocks are the trials")
        if self.split.column is not None and self.trials is None:
            raise ValueError("split.column: needs a trial table; give `trials:` or another split rule")
        return self

    @property
    def images_per_subject(self) -> bool:
        return "{subject}" in self.images


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


# --- training ---------------------------------------------------------------------------------------------------


class Training(Section):
    """How long and how a network is trained."""

    steps: Positive | None = Field(None, description="Optimiser steps; give this or `epochs`.")
    epochs: float | None = Field(None, gt=0, description="Passes over the training samples.")
    batch_size: Positive = Field(32, description="Samples per step, over all devices and accumulation.")
    learning_rate: float = Field(3e-4, gt=0)
    weight_decay: float = Field(0.05, ge=0)
    betas: tuple[float, float] = (0.9, 0.95)
    warmup: Fraction = Field(0.1, description="Share of the steps with rising learning rate; a half cosine follows.")
    clip: float = Field(1.0, gt=0, description="Largest gradient norm.")
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    accumulate: Positive = Field(1, description="Micro-batches per step, of equal size: less memory, the same gradient but for the places of dropout. Refused where losses compare the rows of a batch with each other.")
    gradient_checkpointing: bool = Field(False, description="Recompute activations in the backward pass: less memory, about a third slower.")
    ema: float | None = Field(None, gt=0, lt=1, description="Decay of the moving average of the weights, where one is kept.")
    validate_every: Positive = Field(100, description="Steps between validations.")
    patience: Positive | None = Field(None, description="Stop after so many validations without a better one; the best weights are kept.")
    checkpoint_every: Positive = Field(100, description="Steps between checkpoints.")

    @model_validator(mode="after")
    def _length(self) -> "Training":
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of steps and epochs")
        if self.batch_size % self.accumulate:
            raise ValueError(f"accumulate: {self.accumulate} given, but batch_size {self.batch_size} is no multiple of it; micro-batches are of equal size")
        return self

    def undivided(self, why: str) -> None:
        """Refuse to share out the rows of a batch that are compared with each other; `why` names what compares them."""
        if self.accumulate > 1:
            raise ValueError(f"training.accumulate: {self.accumulate} given, but {why} the rows of a batch with each other; write 1, and save memory by training.gradient_checkpointing or training.precision")
        if self.batch_size < 2:
            raise ValueError(f"training.batch_size: {self.batch_size} given, but {why} the rows of a batch with each other; write 2 or more")


# --- foundations ------------------------------------------------------------------------------------------------


class DrawnPictures(Section):
    """Drawn, captioned pictures that no subject sees, for foundations trained inside the study."""

    count: Annotated[int, Field(gt=0, le=6656)] = Field(6400, description="Of the 6912 possible ones that no simulated subject sees; 256 more are held out.")
    seed: int = 1


class StudyEmbedding(Section):
    """A small CLIP built with open_clip and trained in the study on drawn pictures and their captions."""

    kind: Literal["study-clip"]
    dim: Positive = 64
    training: Training = Training(steps=600, batch_size=128, learning_rate=1e-3)

    @model_validator(mode="after")
    def _undivided(self) -> "StudyEmbedding":
        self.training.undivided("contrastive training compares")
        return self


class OpenClipEmbedding(Section):
    """A CLIP of open_clip's hub, or local weights of the same architecture."""

    kind: Literal["open-clip"]
    model: str = "ViT-L-14"
    pretrained: str = "openai"
    weights: str | None = Field(None, description="Local file of these pretrained weights, instead of the hub.")
    sha256: Sha256 = None


class SqueezeNetEmbedding(Section):
    """Pooled SqueezeNet 1.1 features, where no CLIP can be had; named as what they are in every table."""

    kind: Literal["squeezenet"]
    weights: str = Field("$UNIMIND_REAL_DATA/weights/squeezenet1_1.safetensors", description="Weights, torchvision names.")
    sha256: Sha256 = None


class StudyAutoencoder(Section):
    """A small KL autoencoder built with diffusers and trained in the study on drawn pictures."""

    kind: Literal["study"]
    latent_channels: Positive = 8
    downsampling: Literal[4, 8] = 8
    width: Positive = 64
    training: Training = Training(steps=900, batch_size=32, learning_rate=1e-3)


class Taef2Autoencoder(Section):
    """TAEF2, the tiny autoencoder of FLUX.2's latent space: 8 x smaller, 32 channels."""

    kind: Literal["taef2"]
    weights: str = Field("$UNIMIND_REAL_DATA/weights", description="Folder with taef2_encoder.safetensors and taef2_decoder.safetensors.")


class HubAutoencoder(Section):
    """The autoencoder of a diffusers pipeline on the hub, such as Stable Diffusion 1.5's."""

    kind: Literal["hub"]
    repository: str = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    revision: str = "main"
    subfolder: str = "vae"
    sha256: Sha256 = None


class LdmAutoencoder(Section):
    """The VQ-f4 first stage of a CompVis latent-diffusion checkpoint."""

    kind: Literal["ldm"]
    checkpoint: str = Field("data/weights/cin256-v2.ckpt", description="CompVis checkpoint, or its weights as .safetensors.")
    sha256: Sha256 = None


class StudyDiffusion(Section):
    """A small latent-diffusion UNet conditioned on the study's image embedding, trained in the study."""

    kind: Literal["study"]
    pictures: Literal["drawn", "training"] = Field("drawn", description="Train on drawn pictures, or on the training pictures of the study's training subjects.")
    channels: list[Positive] = Field([96, 192], description="Per resolution, from the highest, which alone has no attention (unless it is the only one).")
    blocks: Positive = Field(2, description="Residual blocks per resolution.")
    context_dim: Positive = Field(128, description="Width of a cross-attention token.")
    context_tokens: Positive = Field(8, description="Tokens the image embedding is unfolded into.")
    drop_condition: Fraction = Field(0.1, description="Share of samples trained without a condition, for guidance.")
    training: Training = Training(steps=3000, batch_size=32, learning_rate=1e-3, ema=0.998)


class HubDiffusion(Section):
    """The UNet of a diffusers pipeline on the hub, such as Stable Diffusion 1.5's."""

    kind: Literal["hub"]
    repository: str = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    revision: str = "main"
    subfolder: str = "unet"
    sha256: Sha256 = None


class LdmDiffusion(Section):
    """The UNet of a CompVis latent-diffusion checkpoint (`cin256-v2`: the thesis's and MinD-Vis's)."""

    kind: Literal["ldm"]
    checkpoint: str = Field("data/weights/cin256-v2.ckpt", description="CompVis checkpoint, or its weights as .safetensors.")
    sha256: Sha256 = None


class StudyClassifier(Section):
    """A small classifier of the drawn objects, trained in the study."""

    kind: Literal["study"]
    training: Training = Training(steps=400, batch_size=128, learning_rate=2e-3)

    @model_validator(mode="after")
    def _undivided(self) -> "StudyClassifier":
        self.training.undivided("batch normalisation mixes")
        return self


class Foundations(Section):
    """The frozen networks the method stands on."""

    drawn: DrawnPictures = DrawnPictures()
    embedding: Annotated[StudyEmbedding | OpenClipEmbedding | SqueezeNetEmbedding, Field(discriminator="kind")] = OpenClipEmbedding(kind="open-clip")
    autoencoder: Annotated[StudyAutoencoder | Taef2Autoencoder | HubAutoencoder | LdmAutoencoder, Field(discriminator="kind")] = LdmAutoencoder(kind="ldm")
    diffusion: Annotated[StudyDiffusion | HubDiffusion | LdmDiffusion, Field(discriminator="kind")] = LdmDiffusion(kind="ldm")
    classifier: StudyClassifier | None = Field(None, description="A classifier of the drawn objects; none where the field's networks are used.")


# --- methods ----------------------------------------------------------------------------------------------------


class Voxels(Section):
    """How a voxel vector enters the encoder."""

    length: Literal["adapter", "wrap", "interpolate", "max_pool"] = Field("adapter", description="To one length for all: a linear adapter per subject, padding by repetition, linear interpolation, or adaptive max pooling.")
    size: Positive = Field(1024, description="That length.")
    order: Literal["anatomical", "stored"] = Field("anatomical", description="By ROI, then along a space-filling curve; or as in the files as distributed.")
    repeats: Literal["mean", "channels", "draw"] = Field("draw", description="Repeats of an image: averaged, stacked as channels, or one drawn each time (averaged at test time).")
    dropout: Fraction = Field(0.0, description="Share of voxels set to zero in training.")


class ConvMixer(Section):
    """The light encoder: strided patches, then depthwise and pointwise convolutions (Trockman & Kolter 2022)."""

    kind: Literal["convmixer"]
    width: Positive = 256
    depth: Positive = 4
    patch: Positive = Field(16, description="Voxels per patch, also the stride.")
    kernel: Positive = Field(9, description="Width of the depthwise convolution, in patches.")
    decoder_depth: Positive = 2


class ViT(Section):
    """The transformer encoder of masked brain modelling (MinD-Vis)."""

    kind: Literal["vit"]
    width: Positive = 1024
    depth: Positive = 24
    heads: Positive = 16
    mlp_ratio: float = Field(1.0, gt=0)
    patch: Positive = 16
    decoder_width: Positive = 512
    decoder_depth: Positive = 8


class Ridge(Section):
    """Ridge regression from voxels to the image embedding and the autoencoder latent; penalties by cross-validation."""

    kind: Literal["ridge"]
    alphas: list[float] = [float(10**k) for k in range(-1, 7)]
    folds: Positive = 5


class Prior(Section):
    """Linear decoding under a prior over voxels' encoding weights that the data set's training subjects teach (empirical Bayes)."""

    kind: Literal["prior"]
    mixed: bool = Field(True, description="A voxel is thought to be like some voxel of the training subjects (a mixture of Gaussians); false: one Gaussian for all.")


class Pretrain(Section):
    """Self-supervised pretraining on unpaired fMRI."""

    objective: Literal["masked", "autoencode"] = "masked"
    mask: Fraction = Field(0.75, description="Share of patches hidden (masked modelling).")
    training: Training = Training(steps=300, batch_size=64, learning_rate=1e-3)


class Losses(Section):
    """Weights of the alignment losses; zero switches one off."""

    siamese: float = Field(1.0, ge=0, description="s d^2 + (1-s) max(m-d, 0)^2 over cross-subject pairs, s the CLIP similarity of their images.")
    embedding: float = Field(1.0, ge=0, description="Distance of the projected embedding from the image embedding.")
    softclip: float = Field(0.0, ge=0, description="SoftCLIP, with MixCo for the first third of training.")
    subject: float = Field(0.0, ge=0, description="Subject classifier; its hidden layer becomes the subject token, one context token more of `condition`.")
    adversarial: float = Field(0.0, ge=0, description="Subject discriminator behind a gradient reversal.")

    @property
    def compares_rows(self) -> bool:
        """Whether a loss compares the rows of a batch with each other, so that several processes cannot share them."""
        return self.siamese + self.softclip > 0


class AdaptLosses(Losses):
    """Weights of the losses that a shared model is adapted by; zero switches one off."""

    siamese: float = Field(0.0, ge=0, description="As in `align`, over pairs with the training subjects that `mix_training` mixes in.")
    subject: float = Field(0.0, ge=0, description="Only in `align`: a new subject has no others to be told from.")
    adversarial: float = Field(0.0, ge=0, description="Only in `align`, as `subject`.")


class Align(Section):
    """Cross-subject alignment of the embeddings."""

    losses: Losses = Losses()
    margin: float = Field(1.0, gt=0)
    temperature: float = Field(0.05, gt=0, description="Of the soft labels and logits.")
    shuffle_labels: bool = Field(False, description="Ablation: pseudo-labels of the wrong pairs.")
    start: Literal["ridge", "plain"] = Field("ridge", description="Where adapters start: at each subject's own ridge regression to the image embedding, or at interpolation.")
    training: Training = Training(steps=600, batch_size=64, learning_rate=1e-3)

    @model_validator(mode="after")
    def _undivided(self) -> "Align":
        if self.losses.compares_rows:
            self.training.undivided("losses.siamese and losses.softclip compare")
        return self


class Condition(Section):
    """How fMRI conditions the diffusion model, and how that is trained."""

    cross_attention: bool = Field(True, description="fMRI tokens as cross-attention context.")
    time: bool = Field(True, description="Pooled fMRI embedding added to the time embedding.")
    tokens: Positive = Field(8, description="Context tokens (77 in MinD-Vis).")
    drop: Fraction = Field(0.1, description="Share of samples trained without the condition, for guidance.")
    train_encoder: bool = Field(True, description="Also fine-tune the encoder.")
    training: Training = Training(steps=400, batch_size=32, learning_rate=3e-4)


class Adapt(Section):
    """How a shared model is fitted to a new subject."""

    strategy: Literal["adapter", "adapter+norms", "low-rank", "everything"] = "adapter"
    rank: Positive = Field(8, description="Of the low-rank updates.")
    mix_training: Fraction = Field(0.0, description="Share of each batch drawn from the training subjects.")
    start: Literal["prior", "ridge", "plain"] = Field("ridge", description="Where the adapter starts: at the decoder that a prior over the training subjects' voxels gives; at ridge regression to the signal the training subjects would have had for the same pictures; or at interpolation.")
    losses: AdaptLosses = AdaptLosses()
    training: Training = Training(steps=300, batch_size=64, learning_rate=1e-3)

    @model_validator(mode="after")
    def _trainable(self) -> "Adapt":
        for name in ("subject", "adversarial"):
            if getattr(self.losses, name) > 0:
                raise ValueError(f"losses.{name}: {getattr(self.losses, name):g} given, but one new subject has no others to be told from; leave it out")
        if self.losses.siamese > 0 and self.mix_training == 0:
            raise ValueError(f"losses.siamese: {self.losses.siamese:g} given, but without training subjects there are no pairs; give mix_training a share, or leave it out")
        if self.losses.siamese + self.losses.embedding + self.losses.softclip == 0:
            raise ValueError("losses: nothing left to adapt by; give `embedding` or `softclip` a weight")
        return self

    @model_validator(mode="after")
    def _undivided(self) -> "Adapt":
        if self.losses.compares_rows:
            self.training.undivided("losses.siamese and losses.softclip compare")
        if self.mix_training > 0 and self.training.batch_size < 2:
            raise ValueError(f"training.batch_size: {self.training.batch_size} given, too few to share with training subjects (mix_training); write 2 or more")
        return self


class TrainedOn(Section):
    """Part of each data set's training subjects and trials, to see what more of them bring a new subject."""

    subjects: Positive = Field(description="How many of the training subjects, in the order the study names them.")
    trials: Positive | None = Field(None, description="How many training trials, shared out equally among them; by default all they have.")


class Sampling(Section):
    """How pictures are drawn from the diffusion model."""

    sampler: Literal["dpm-solver++", "ddim", "plms"] = "dpm-solver++"
    steps: Positive = 20
    guidance: float = Field(1.0, ge=0, description="Classifier-free guidance weight; 1 is none.")
    samples: Positive = Field(5, description="Pictures per stimulus. The one shown agrees best with the encoder's own embedding.")
    strength: float = Field(1.0, ge=0, le=1, description="Start from pure noise (1), or from the predicted latent noised to this share of the schedule (ridge, prior); 0: the autoencoder alone decodes that latent.")


class Method(Section):
    """A composition: one row of the tables."""

    label: str | None = Field(None, description="Name in tables and figures; by default the key.")
    scope: Literal["study", "dataset", "subject"] = Field("dataset", description="One model for all training subjects of the study, of a data set, or per subject.")
    voxels: Voxels = Voxels()
    encoder: Annotated[ConvMixer | ViT | Ridge | Prior, Field(discriminator="kind")]
    pretrain: Pretrain | None = None
    align: Align | None = None
    condition: Condition | None = Field(None, description="Without one, the foundation's own conditioning gets the predicted image embedding.")
    adapt: Adapt | None = None
    trained_on: TrainedOn | None = Field(None, description="Only under `transfer.baselines`: train the shared model on fewer subjects.")
    sampling: Sampling = Sampling()

    @model_validator(mode="after")
    def _possible(self) -> "Method":
        if self.fitted:
            for key in ("pretrain", "align", "condition", "adapt", "trained_on"):
                if getattr(self, key) is not None:
                    raise ValueError(f"{key}: not possible with encoder.kind {self.encoder.kind}, which is fitted in closed form")
            if self.scope != "subject":
                raise ValueError(f"scope: {self.encoder.kind} is fitted per subject; {self.scope!r} given, write `scope: subject`")
        elif self.align is None or self.align.losses.embedding + self.align.losses.softclip == 0:
            if self.condition is None:
                raise ValueError("condition: missing, and no alignment loss predicts the image embedding; give `condition:` or `align.losses.embedding`")
            if self.adapt is not None:
                raise ValueError("adapt: adapts to the image embedding, which no alignment loss predicts; give `align.losses.embedding`, or write `scope: subject` and no `adapt:`")
        if self.scope == "subject" and self.adapt is not None:
            raise ValueError("adapt: a model of one subject has nothing to adapt; remove `adapt:` or widen `scope:`")
        if isinstance(self.encoder, ConvMixer | ViT) and self.voxels.size % self.encoder.patch:
            raise ValueError(f"voxels.size: {self.voxels.size} is not a multiple of encoder.patch = {self.encoder.patch}")
        if self.condition is not None and self.condition.drop == 0 and self.sampling.guidance != 1:
            raise ValueError(f"condition.drop: 0 given, but sampling.guidance {self.sampling.guidance:g} needs the null condition, which is then never trained; write 0.1, or guidance: 1")
        if self.sampling.strength == 0 and not self.fitted:
            raise ValueError(f"sampling.strength: 0 given, but encoder.kind {self.encoder.kind} predicts no latent that the autoencoder could decode; write 1")
        if self.encoder.kind == "vit" and self.encoder.width % self.encoder.heads:
            raise ValueError(f"encoder.width: {self.encoder.width} is not a multiple of encoder.heads = {self.encoder.heads}")
        return self

    @property
    def fitted(self) -> bool:
        """Fitted in closed form, without a training loop."""
        return self.encoder.kind in ("ridge", "prior")


# --- evaluation -------------------------------------------------------------------------------------------------


class Evaluation(Section):
    """What is measured, and how surely."""

    metrics: list[str] = Field([*METRICS, *OWN_METRICS], description="Measures to compute; one whose network is absent is left out of the tables with the reason.")
    bootstrap: Positive = Field(2000, description="Resamples of the test images for the 95 % intervals.")
    batch_size: Positive = 64
    weights: str = Field("$UNIMIND_WEIGHTS", description="Folder with the panel's weights (see config/weights.tsv).")
    squeezenet: str | None = Field("$UNIMIND_REAL_DATA/weights/squeezenet1_1.safetensors", description="SqueezeNet 1.1 weights for `squeezenet` and `lpips_squeeze`.")

    @model_validator(mode="after")
    def _known(self) -> "Evaluation":
        unknown = [name for name in self.metrics if name not in (*METRICS, *OWN_METRICS)]
        if unknown:
            raise ValueError(f"metrics: {', '.join(unknown)} unknown; known are {', '.join((*METRICS, *OWN_METRICS))}")
        return self


class Transfer(Section):
    """How far a new subject gets with few of its trials: `tables/adaptation.csv` and its figure."""

    trials: list[Positive | Literal["all"]] = Field([25, 50, 100, 200, "all"], description="Budgets of training trials. Smaller ones are contained in larger ones.")
    seeds: Positive = Field(3, description="Drawings of every budget.")
    methods: list[Name] | None = Field(None, description="Which methods of the study; by default all that are adapted or fitted in closed form.")
    baselines: dict[Name, Method] = Field({}, description="Methods of this comparison alone: fitted in closed form, or adapted from a model shared by part of the training subjects (`trained_on`).")
    scratch: bool = Field(True, description="Also train each adapted method on the budget alone, from nothing.")
    pictures: bool = Field(True, description="Also draw one picture per stimulus and budget, for CLIP two-way and PixCorr.")


class Study(Section):
    """A whole study."""

    name: Name = Field(description="Results go to results/<name>/.")
    title: str = Field("", description="Heading of the report.")
    signal: str = Field("fMRI", min_length=1, description="What was recorded, as the report calls it.")
    seed: int = 0
    picture_size: Positive = Field(256, description="Side of the pictures in pixels, as stored, learned and reconstructed.")
    threads: Positive = Field(2, description="CPU threads of a training job.")
    processes: Positive = Field(1, description="Processes that share the batches of a training: one per graphics card of a node. A training whose losses compare the rows of a batch has one.")
    datasets: dict[Name, AnyDataset] = Field(min_length=1, description="Data sets by name.")
    unpaired: Unpaired | None = Field(None, description="fMRI without pictures, for pretraining.")
    foundations: Foundations = Foundations()
    methods: dict[Name, Method] = Field(min_length=1, description="Methods by name; tables have one row each.")
    transfer: Transfer | None = Field(None, description="Adaptation to new subjects over trial budgets; none where it is not wanted.")
    evaluation: Evaluation = Evaluation()

    @model_validator(mode="after")
    def _names(self) -> "Study":
        for section, taken in (("datasets", "unpaired"), ("methods", "controls")):
            if taken in getattr(self, section):
                raise ValueError(f"{section}.{taken}: this name is taken by a folder of the results; choose another")
        return self

    @model_validator(mode="after")
    def _consistent(self) -> "Study":
        for name, method in self.methods.items():
            if method.trained_on is not None:
                raise ValueError(f"methods.{name}.trained_on: a method of the study serves all its training subjects; move {name} to transfer.baselines")
            if method.pretrain is not None and self.unpaired is None:
                raise ValueError(f"methods.{name}.pretrain: the study has no `unpaired:` fMRI to pretrain on; add it or remove `pretrain:`")
            if method.scope != "subject":
                for key, dataset in self.datasets.items():
                    if dataset.new_subjects and method.adapt is None:
                        raise ValueError(f"methods.{name}.adapt: missing, but datasets.{key}.new_subjects names {', '.join(dataset.new_subjects)}")
                    if not dataset.training_subjects and method.scope == "dataset":
                        raise ValueError(f"datasets.{key}.training_subjects: empty, but methods.{name} shares one model per data set; name a training subject")
            if method.encoder.kind == "prior" or (method.adapt is not None and method.adapt.start == "prior"):
                self._teachers(f"methods.{name}", method)
            self._drawn(f"methods.{name}", method)
        return self

    def _drawn(self, where: str, method: Method) -> None:
        diffusion = self.foundations.diffusion
        if method.condition is not None:
            return
        if diffusion.kind == "study":
            if diffusion.drop_condition == 0 and method.sampling.guidance != 1 and method.sampling.strength > 0:
                raise ValueError(f"foundations.diffusion.drop_condition: 0 given, but {where}.sampling.guidance {method.sampling.guidance:g} needs the null condition, which is then never trained; write 0.1, or guidance: 1")
            return
        kind = diffusion.kind
        only = f"only a UNet trained in the study (foundations.diffusion.kind study) takes the image embedding itself, {kind!r} given"
        if not method.fitted:
            raise ValueError(f"{where}.condition: missing; {only}")
        if method.sampling.strength > 0:
            raise ValueError(f"{where}.sampling.strength: {method.sampling.strength:g} given; {only}; write 0, and the autoencoder alone decodes the predicted latent")

    def _teachers(self, where: str, method: Method) -> None:
        for key, dataset in self.datasets.items():
            needed = 2 if where.startswith("methods.") and method.encoder.kind == "prior" else 1
            if len(dataset.training_subjects) < needed:
                raise ValueError(f"{where}: its prior is learned from other subjects, but datasets.{key}.training_subjects names {len(dataset.training_subjects)}; at least {needed} needed")

    @model_validator(mode="after")
    def _transfers(self) -> "Study":
        for name in (self.transfer.methods or []) if self.transfer else []:
            if name not in self.methods:
                raise ValueError(f"transfer.methods: {name} is no method of this study; known are {', '.join(self.methods)}")
            if not self.methods[name].fitted and self.methods[name].adapt is None:
                raise ValueError(f"transfer.methods: {name} is neither adapted nor fitted in closed form; give it `adapt:` or leave it out")
        for name, method in self.transfer.baselines.items() if self.transfer else ():
            if name in self.methods:
                raise ValueError(f"transfer.baselines.{name}: a method of the study has this name; choose another, or list it under transfer.methods")
            if not method.fitted and (method.adapt is None or method.pretrain is not None and self.unpaired is None):
                raise ValueError(f"transfer.baselines.{name}: neither adapted nor fitted in closed form, or pretrained without `unpaired:` fMRI; give it `adapt:`")
            self._drawn(f"transfer.baselines.{name}", method)
            if method.encoder.kind == "prior" or (method.adapt is not None and method.adapt.start == "prior"):
                self._teachers(f"transfer.baselines.{name}", method)
            for key, dataset in self.datasets.items():
                wanted, there = method.trained_on.subjects if method.trained_on else 1, len(dataset.training_subjects)
                if not method.fitted and dataset.new_subjects and there < wanted:
                    raise ValueError(f"transfer.baselines.{name}.trained_on.subjects: {wanted} given, but datasets.{key}.training_subjects names {there}")
        return self

    # Where things are, and what depends on what: used by the workflow, never by the science.

    @property
    def results(self) -> str:
        return f"results/{self.name}"

    def pairs(self, role: Literal["train", "new"] | None = None) -> Iterator[tuple[str, str]]:
        """(data set, subject) of the study, training subjects first."""
        for wanted, key in (("train", "training_subjects"), ("new", "new_subjects")):
            if role in (None, wanted):
                for name, dataset in self.datasets.items():
                    yield from ((name, subject) for subject in getattr(dataset, key))

    def role(self, dataset: str, subject: str) -> Literal["train", "new"]:
        return "train" if subject in self.datasets[dataset].training_subjects else "new"

    def root(self, dataset: str) -> str:
        """Folder of a data set's files as distributed."""
        section = self.datasets[dataset]
        if section.root:
            return os.path.expandvars(section.root)
        return f"{self.results}/raw/{dataset}" if section.source == "simulated" else f"data/{dataset}"

    def unpaired_root(self) -> str:
        assert self.unpaired is not None
        if self.unpaired.root:
            return os.path.expandvars(self.unpaired.root)
        return f"{self.results}/raw/unpaired" if self.unpaired.source == "simulated" else "data/unpaired"

    def stimuli(self, dataset: str, subject: str) -> str:
        """Name of the stimulus set a subject's trials index: `stimuli`, or `<subject>.stimuli` where every subject has its own."""
        section = self.datasets[dataset]
        return f"{subject}.stimuli" if section.source == "arrays" and section.images_per_subject else "stimuli"

    def teachers(self, dataset: str, subject: str) -> list[tuple[str, str]]:
        """The data set's training subjects other than a given subject: who teaches a prior over its voxels."""
        return [(dataset, other) for other in self.datasets[dataset].training_subjects if other != subject]

    def transferred(self) -> list[str]:
        """Methods of the comparison over trial budgets."""
        if self.transfer is None:
            return []
        own = self.transfer.methods or [name for name, method in self.methods.items() if method.fitted or method.adapt is not None]
        return [*own, *self.transfer.baselines]

    def method(self, name: str) -> Method:
        """A method of the study, or of its comparison over trial budgets."""
        return self.methods[name] if name in self.methods or self.transfer is None else self.transfer.baselines[name]

    def all_methods(self) -> list[str]:
        """The study's methods, then those of its comparison over trial budgets alone."""
        return list(dict.fromkeys([*self.methods, *(self.transfer.baselines if self.transfer else ())]))

    def leads(self, method: str) -> bool:
        """Whether no method before it draws as many samples: the controls that methods of one protocol share are measured with it."""
        return method == next(name for name, other in self.methods.items() if other.sampling.samples == self.methods[method].sampling.samples)

    def share(self, method: str) -> int | None:
        """Training trials of each training subject that a method may use; None: all."""
        part = self.method(method).trained_on
        return None if part is None or part.trials is None else part.trials // part.subjects

    def training_stimuli(self, dataset: str) -> list[str]:
        """Names of the stimulus sets that the data set's training subjects use."""
        return list(dict.fromkeys(self.stimuli(dataset, subject) for subject in self.datasets[dataset].training_subjects))

    def group(self, method: str, dataset: str, subject: str) -> str:
        """Name of the model that serves a subject: `all`, `<data set>` or `<data set>-<subject>`."""
        scope = self.method(method).scope
        return {"study": "all", "dataset": dataset, "subject": f"{dataset}-{subject}"}[scope]

    def members(self, method: str, group: str) -> list[tuple[str, str]]:
        """(data set, subject) the model of a group is trained on."""
        own = self.method(method)
        pairs = [pair for pair in self.pairs(None if own.scope == "subject" else "train") if self.group(method, *pair) == group]
        if own.trained_on is None:
            return pairs
        return [pair for pair in pairs if pair[1] in self.datasets[pair[0]].training_subjects[: own.trained_on.subjects]]


def resolved(study: Study) -> dict[str, Any]:
    """The study with every default written out, as plain JSON types."""
    return study.model_dump(mode="json")


def parse_study(content: Any, where: str = "study") -> Study:
    """Check a study given as plain types.

    Raises
    ------
    InputError
        One line for the first thing wrong: the key's path, what was given, what may stand there.
    """
    content = _keyed(content, where)
    try:
        return Study.model_validate(content)
    except ValidationError as error:
        raise InputError(f"{where}: {_explain(error, content)}") from None


def read_study(*paths: str | Path) -> Study:
    """Read a study from YAML or JSON files, each added to the ones before it; InputError with the key's path when it cannot be."""
    content: dict[str, Any] = {}
    for path in paths:
        content = _merged(content, _keyed(_read(path), str(path)))
    return parse_study(content, ", ".join(map(str, paths)))


def _read(path: str | Path) -> Any:
    try:
        return yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such study file") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a text file in UTF-8 ({error}); save it as UTF-8") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not YAML: {' '.join(str(error).split())}") from None


def _keyed(content: Any, where: str) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise InputError(f"{where}: expected keys such as `name:` and `datasets:`; {type(content).__name__} given")
    return content


def _merged(before: Any, content: Any) -> Any:
    """Content added to what was before it, as Snakemake adds one `--configfile` to another: key by key, the later one counts."""
    if not isinstance(content, dict):
        return content
    before = before if isinstance(before, dict) else {}
    return before | {key: _merged(before.get(key), value) for key, value in content.items()}


def _explain(error: ValidationError, content: Any) -> str:
    """The first error in one line."""
    first = next((one for one in error.errors() if one["type"] == "extra_forbidden"), error.errors()[0])
    tags = {"nsd", "simulated", "god", "bold5000", "arrays", "study-clip", "open-clip", "squeezenet", "study", "taef2", "hub", "ldm", "convmixer", "vit", "ridge", "prior"}  # fmt: skip
    path: list[str] = []
    inner = content
    for step in first["loc"]:
        if isinstance(inner, dict) and step in tags and step not in inner:
            continue  # pydantic names the chosen member of a union; the user's file does not
        path.append(str(step))
        inner = inner.get(step) if isinstance(inner, dict) else inner[step] if isinstance(inner, list) and isinstance(step, int) and step < len(inner) else None
    key = ".".join(path)
    kind, context = first["type"], first.get("ctx", {})
    if kind == "extra_forbidden":
        allowed = _keys_at(path[:-1], content)
        near = _closest(path[-1], allowed)
        hint = f"; did you mean {near}?" if near else "."
        return f"{key}: unknown key{hint} Allowed here: {', '.join(allowed)}"
    if kind == "value_error":
        return f"{key + ': ' if key else ''}{context['error']}"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        return f"{key}.{str(context.get('discriminator', '')).strip(chr(39))}: {context.get('tag', 'nothing')!s} given; expected one of {context.get('expected_tags', 'the documented kinds')}"
    given = json.dumps(first["input"], default=str)
    if kind == "missing":
        return f"{key}: missing; this key is required"
    return f"{key}: {first['msg'][0].lower() + first['msg'][1:]}; {given if len(given) < 80 else given[:77] + '...'} given"


def _keys_at(path: list[str], content: Any) -> list[str]:
    """Keys allowed at a place of the study, found by walking the types alongside the user's file."""
    from typing import get_args, get_origin

    here: Any = Study
    inner = content
    for step in path:
        if isinstance(here, type) and issubclass(here, BaseModel):
            field = here.model_fields.get(step)
            here = field.annotation if field else None
        elif get_origin(here) is dict:
            here = get_args(here)[1]
        elif get_origin(here) is list:
            here = get_args(here)[0]
        inner = inner.get(step) if isinstance(inner, dict) else inner[int(step)] if isinstance(inner, list) else None
        here = _choose(here, inner)
    return sorted(here.model_fields) if isinstance(here, type) and issubclass(here, BaseModel) else []


def _choose(here: Any, inner: Any) -> Any:
    """The section class among a union's members that the user's `kind` or `source` names."""
    from typing import get_args, get_origin

    if get_origin(here) is Annotated:
        here = get_args(here)[0]
    if get_origin(here) in (dict, list) or (isinstance(here, type) and issubclass(here, BaseModel)):
        return here
    members = [m for m in get_args(here) if isinstance(m, type) and issubclass(m, BaseModel)]
    for member in members:
        for tag in ("kind", "source"):
            field = member.model_fields.get(tag)
            if field and isinstance(inner, dict) and inner.get(tag) in get_args(field.annotation):
                return member
    return members[0] if members else here


def _closest(word: str, words: list[str]) -> str | None:
    import difflib

    found = difflib.get_close_matches(word, words, 1)
    return found[0] if found else None

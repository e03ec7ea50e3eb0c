"""What becomes a row of the tables: how voxels enter, what is shared, how it is trained, adapted and drawn from."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from unimind.study.base import Fraction, Positive, Section, Training


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

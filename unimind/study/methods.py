"""What becomes a row of the tables: how voxels enter, what is shared, how it is trained, adapted and drawn from."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from unimind.study.base import Fraction, Positive, Precision, Section, Training, idle

# --- enter ------------------------------------------------------------------------------------------------------


class Voxels(Section):
    """What every way of entering has that hands voxels to the body."""

    size: Positive = Field(1024, description="Length of the signal that enters, the same for all subjects.")
    order: Literal["anatomical", "stored"] = Field(
        "anatomical", description="Of the voxels: by ROI, then along a space-filling curve; or as in the files as distributed."
    )
    repeats: Literal["mean", "channels", "draw"] = Field(
        "draw", description="Repeats of an image: averaged, stacked as channels, or one drawn each time (averaged at test time)."
    )
    dropout: Fraction = Field(0.0, description="Share of voxels set to zero in training.")


class Interpolate(Voxels):
    """Linear interpolation of the voxel vector to one length, averages of neighbours where it is longer (the thesis)."""

    kind: Literal["interpolate"]


class Wrap(Voxels):
    """The voxel vector repeated from its start, or cut, to one length (MinD-Vis)."""

    kind: Literal["wrap"]


class MaxPool(Voxels):
    """Adaptive max pooling to one length (MindBridge)."""

    kind: Literal["max-pool"]


class Adapter(Voxels):
    """A linear map of every subject's voxels, trained (MindEye2); it starts as interpolation."""

    kind: Literal["adapter"]


class Embedder(Voxels):
    """Of every subject, trained: adaptive max pooling, a residual bottleneck, a linear map with norm and GELU (MindBridge)."""

    kind: Literal["embedder"]
    pooled: Positive = Field(2048, description="Length of the pooled signal (8192 in MindBridge).")
    bottleneck: Positive = Field(128, description="Width of the residual bottleneck over the pooled signal.")
    dropout: Fraction = Field(0.5, description="Share of the signal set to zero in training.")


class VoxelTokens(Voxels):
    """Every voxel a token: its vector times its response; queries that all subjects share read them by cross-attention (Brain-IT, BrainCoDec)."""

    kind: Literal["voxel-tokens"]
    queries: Positive = Field(16, description="That read the voxels; each reads size / queries values, the length of a voxel's vector.")
    vectors: Literal["encoding", "learned"] = Field(
        "encoding",
        description="Of what a voxel's vector is made: of its encoding weights and noise, in closed form from the subject's trials under a prior that the training "
        "subjects teach; or learned.",
    )

    @model_validator(mode="after")
    def _read(self) -> "VoxelTokens":
        if self.size % self.queries:
            raise ValueError(f"size: {self.size} is not a multiple of queries = {self.queries}")
        idle(self, ("order",), "queries read voxels in any order")
        return self


class Ridge(Section):
    """Closed form: each subject's own ridge regression to the picture space, a penalty for every 16 neighbouring components by cross-validation."""

    kind: Literal["ridge"]
    alphas: list[float] = Field([float(10**k) for k in range(-1, 7)], min_length=1, description="Penalties to choose from; one alone is taken as it is.")
    folds: Positive = 5
    rescale: bool = Field(
        False,
        description="Stretch the predictions of every dimension of a target to its standard deviation over the subject's training pictures (Brain-Diffuser).",
    )

    @model_validator(mode="after")
    def _chosen(self) -> "Ridge":
        if len(self.alphas) == 1:
            idle(self, ("folds",), "with one penalty nothing is chosen")
        return self


class Decoded(Section):
    """Closed form: the expected picture features given the response, under a prior over voxels that the training subjects teach; averaged with ridge regression."""

    kind: Literal["decoded"]
    mixed: bool = Field(
        True, description="A voxel is thought to be like some voxel of the training subjects (a mixture of Gaussians); false: one Gaussian for all."
    )
    ridge: bool = Field(
        True,
        description="Its mean with the subject's own ridge regression, which counts n / (2 n + 200) with n pictures: nearly nothing with few, half with many. "
        "false: the prior's decoder alone.",
    )


# --- body -------------------------------------------------------------------------------------------------------


class Identity(Section):
    """Nothing shared: the signal of a closed form is the prediction."""

    kind: Literal["identity"]


class Mlp(Section):
    """Linear layers with GELU and dropout, for signals without an order of their own."""

    kind: Literal["mlp"]
    width: Positive = Field(512, multiple_of=8, description="Of every layer.")
    depth: Positive = 2
    dropout: Fraction = Field(0.5, description="After every layer, in training.")


class Residual(Section):
    """Residual blocks over the whole signal, as wide as it is."""

    kind: Literal["residual"]
    block: Literal["mlp", "linear", "mixer"] = Field(
        "mlp",
        description="`mlp`: norm, linear, GELU, linear (MindEye2 as described); `linear`: linear, norm, GELU (MindBridge); `mixer`: the first, each followed by one "
        "across tokens, of which there is one (MindEye2 as published: the identity plus a constant, see docs/rivals.md).",
    )
    depth: Positive = 4
    dropout: Fraction = Field(0.15, description="Within every block, in training.")


class ConvMixer(Section):
    """The light encoder: strided patches, then depthwise and pointwise convolutions (Trockman & Kolter 2022)."""

    kind: Literal["convmixer"]
    width: Positive = 256
    depth: Positive = 4
    patch: Positive = Field(16, description="Values per patch, also the stride.")
    kernel: Positive = Field(9, description="Width of the depthwise convolution, in patches.")
    decoder_depth: Positive = Field(2, description="Of the decoder that `pretrain` trains with it.")


class ViT(Section):
    """The transformer encoder of masked brain modelling (MinD-Vis)."""

    kind: Literal["vit"]
    width: Positive = 1024
    depth: Positive = 24
    heads: Positive = 16
    mlp_ratio: float = Field(1.0, gt=0)
    patch: Positive = 16
    decoder_width: Positive = Field(512, description="Of the decoder that `pretrain` trains with it.")
    decoder_depth: Positive = 8


# --- training ---------------------------------------------------------------------------------------------------


class Pretrain(Section):
    """Self-supervised pretraining of the body on unpaired fMRI."""

    objective: Literal["masked", "autoencode"] = "masked"
    mask: Fraction = Field(0.75, description="Share of patches hidden (masked modelling).")
    training: Training = Training(steps=300, batch_size=64, learning_rate=1e-3)


class Losses(Section):
    """Weights of the alignment losses; zero switches one off. A target has a head where a loss predicts it."""

    siamese: float = Field(1.0, ge=0, description="s d^2 + (1-s) max(m-d, 0)^2 over cross-subject pairs, s the CLIP similarity of their images.")
    embedding: float = Field(1.0, ge=0, description="Distance of the predicted from the true image embedding.")
    latent: float = Field(0.1, ge=0, description="Distance of the predicted from the true autoencoder latent, over the picture space's components.")
    softclip: float = Field(0.0, ge=0, description="SoftCLIP between predicted and true image embeddings.")
    subject: float = Field(0.0, ge=0, description="Subject classifier; its hidden layer becomes the subject token, one context token more of `condition`.")
    adversarial: float = Field(0.0, ge=0, description="Subject discriminator behind a gradient reversal.")
    reconstruction: float = Field(0.0, ge=0, description="Of the pooled signal from what an `embedder` makes of it, by a builder of the subject's own.")
    cycle: float = Field(0.0, ge=0, description="An embedded signal built for, and embedded by, another subject is to be the same (MindBridge).")

    @property
    def compares_rows(self) -> bool:
        """Whether a loss compares the rows of a batch with each other, so that micro-batches cannot share them."""
        return self.siamese + self.softclip > 0

    @property
    def targets(self) -> tuple[str, ...]:
        """What is predicted of a picture."""
        return (("embedding",) if self.embedding + self.softclip > 0 else ()) + (("latent",) if self.latent > 0 else ())


class AdaptLosses(Losses):
    """Weights of the losses that a shared model is adapted by; zero switches one off."""

    siamese: float = Field(0.0, ge=0, description="As in `align`, over pairs with the training subjects that `mix_training` mixes in.")
    subject: float = Field(0.0, ge=0, description="Only in `align`: a new subject has no others to be told from.")
    adversarial: float = Field(0.0, ge=0, description="Only in `align`, as `subject`.")
    cycle: float = Field(0.0, ge=0, description="Only in `align`, as `subject`.")


class Align(Section):
    """Training of what is shared: cross-subject alignment of the embeddings, and prediction of the pictures' targets."""

    losses: Losses = Losses()
    margin: float = Field(1.0, gt=0, description="Of the Siamese loss.")
    temperature: float = Field(0.05, gt=0, description="Of SoftCLIP's soft labels and logits.")
    mixco: Fraction = Field(0.0, description="First share of the training in which inputs are mixed for SoftCLIP (MixCo; a third in MindEye).")
    noise: float = Field(
        0.0,
        ge=0,
        description="Of the signals of a closed form, in training: normal noise in units of every coordinate's spread over the subject's pictures, against learning pictures by heart.",
    )
    retrieval_head: bool = Field(
        False,
        description="SoftCLIP trains a head of its own, by which pictures are told apart; the embedding that is drawn from is regressed alone (MindEye has both).",
    )
    shuffle_labels: bool = Field(False, description="Ablation: pseudo-labels of the wrong pairs.")
    in_sample: bool = Field(
        False, description="Ablation, for signals of a closed form: train on those of the very pictures that it was fitted to, instead of cross-fitted ones."
    )
    training: Training = Training(steps=600, batch_size=64, learning_rate=1e-3)

    @model_validator(mode="after")
    def _undivided(self) -> "Align":
        if self.losses.compares_rows:
            self.training.undivided("losses.siamese and losses.softclip compare")
        if self.losses.siamese == 0:
            idle(self, ("shuffle_labels",), "losses.siamese is 0")
        if self.losses.softclip == 0:
            idle(self, ("mixco", "retrieval_head"), "losses.softclip is 0")
        if self.retrieval_head and self.losses.embedding == 0:
            raise ValueError(
                "retrieval_head: true given, but with losses.embedding 0 nothing regresses the embedding to draw from; give it a weight, or leave it out"
            )
        return self


class Condition(Section):
    """How fMRI conditions the diffusion model, and how that is trained."""

    cross_attention: bool = Field(True, description="fMRI tokens as cross-attention context.")
    time: bool = Field(True, description="Pooled fMRI embedding added to the time embedding.")
    tokens: Positive = Field(
        8,
        description="Context tokens (77 in MinD-Vis). A UNet of the study has its own number, `foundations.diffusion.context_tokens`, for a method that predicts the image embedding.",
    )
    drop: Fraction = Field(0.1, description="Share of samples trained without the condition, for guidance.")
    crop: Fraction = Field(0.0, description="Share of samples whose picture is a random crop of four fifths of the side, brought back to size (MinD-Vis: 0.5).")
    train_encoder: bool = Field(True, description="Also fine-tune the encoder.")
    training: Training = Training(steps=400, batch_size=32, learning_rate=3e-4)


class EmbeddingPrior(Section):
    """A prior over image embeddings: what is drawn from is a sample of the embeddings that the regressed mean may stand for, by a rectified flow."""

    width: Positive = Field(1024, description="Of the network on top of the Gaussian that is found in closed form.")
    depth: Positive = Field(3, description="Residual layers.")
    dropout: Fraction = Field(0.1, description="After every layer, in training.")
    training: Training = Training(steps=2000, batch_size=256, learning_rate=1e-3, ema=0.998)


class Adapt(Section):
    """How a shared model is fitted to a new subject by gradient steps."""

    strategy: Literal["adapter", "adapter+norms", "low-rank", "everything", "none"] = Field(
        "adapter",
        description="What is trained: `adapter` is what the subject has for itself (its adapter, its embedder, its voxels' vectors); `none`: the closed form at which "
        "training would start.",
    )
    rank: Positive = Field(8, description="Of the low-rank updates.")
    mix_training: Fraction = Field(0.0, description="Share of each batch drawn from the training subjects.")
    start: Literal["ridge", "interpolate"] = Field(
        "ridge",
        description="Where the adapter starts: at ridge regression to the signal the training subjects would have had for the same pictures; or at interpolation.",
    )
    losses: AdaptLosses = AdaptLosses()
    training: Training = Training(steps=300, batch_size=64, learning_rate=1e-3)

    @model_validator(mode="after")
    def _trainable(self) -> "Adapt":
        for name in ("subject", "adversarial", "cycle"):
            if getattr(self.losses, name) > 0:
                raise ValueError(f"losses.{name}: {getattr(self.losses, name):g} given, but one new subject has no others to be told from; leave it out")
        if self.losses.siamese > 0 and self.mix_training == 0:
            raise ValueError(
                f"losses.siamese: {self.losses.siamese:g} given, but without training subjects there are no pairs; give mix_training a share, or leave it out"
            )
        if self.losses.siamese + self.losses.embedding + self.losses.softclip + self.losses.latent == 0:
            raise ValueError("losses: nothing left to adapt by; give `embedding` or `softclip` a weight")
        if self.strategy == "none":
            idle(self, ("losses", "training", "mix_training"), "strategy none trains nothing")
        if self.strategy != "low-rank":
            idle(self, ("rank",), f"strategy {self.strategy} has no low-rank updates")
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


# --- generator --------------------------------------------------------------------------------------------------


class Sampling(Section):
    """How pictures are drawn by the generator."""

    sampler: Literal["dpm-solver++", "ddim", "plms"] = "dpm-solver++"
    steps: Positive = 20
    guidance: float = Field(1.0, ge=0, description="Classifier-free guidance weight; 1 is none.")
    samples: Positive = Field(5, description="Pictures per stimulus, of which one is shown; a single one with strength 0.")
    chosen_by: Literal["prediction", "encoding"] = Field(
        "prediction",
        description="What is shown of the samples: that which agrees best with the method's own predicted embedding (the first where it predicts none); or that under "
        "which the measured response is likeliest, by an encoding model fitted to the subject's training trials. What was seen plays no part in either.",
    )
    precision: Precision = Field("fp32", description="Of the diffusion model while it draws.")
    strength: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Start from pure noise (1), or from the predicted latent noised to this share of the schedule; 0: the autoencoder alone decodes that latent.",
    )

    @model_validator(mode="after")
    def _drawn(self) -> "Sampling":
        if self.strength == 0:
            idle(self, ("sampler", "steps", "guidance", "precision", "chosen_by", "samples"), "with strength 0 the autoencoder alone decodes")
        if self.samples == 1:
            idle(self, ("chosen_by",), "of one sample there is nothing to choose")
        return self

    @property
    def drawn(self) -> int:
        """Pictures per stimulus: one where the autoencoder alone decodes, which does nothing by chance."""
        return self.samples if self.strength > 0 else 1


class Method(Section):
    """A composition, one row of the tables: enter, body, heads (by the losses of `align`), generator."""

    label: str | None = Field(None, description="Name in tables and figures; by default the key.")
    scope: Literal["study", "dataset", "subject"] = Field(
        "dataset", description="What is shared: by all training subjects of the study, of a data set, or nothing (one model per subject)."
    )
    enter: Annotated[Interpolate | Wrap | MaxPool | Adapter | Embedder | VoxelTokens | Ridge | Decoded, Field(discriminator="kind")] = Field(
        description="How voxels enter."
    )
    body: Annotated[Identity | Mlp | Residual | ConvMixer | ViT, Field(discriminator="kind")] = Identity(kind="identity")
    pretrain: Pretrain | None = None
    align: Align | None = None
    condition: Condition | None = Field(None, description="Without one, the generator's own conditioning gets the predicted image embedding.")
    embedding_prior: EmbeddingPrior | None = Field(
        None,
        description="Draw from samples of the embedding's distribution instead of its regressed mean; only where the generator takes the embedding itself.",
    )
    adapt: Adapt | None = Field(None, description="Gradient steps on a new subject; closed forms need none.")
    trained_on: TrainedOn | None = Field(None, description="Only under `transfer.baselines`: train the shared model on fewer subjects.")
    sampling: Sampling = Sampling()

    @model_validator(mode="after")
    def _possible(self) -> "Method":
        self._shared()
        self._trained()
        if self.embedding_prior is not None:
            self._sampled()
        if self.condition is None and "embedding" not in self.targets and self.sampling.strength > 0:
            raise ValueError("condition: missing, and no alignment loss predicts the image embedding; give `condition:` or `align.losses.embedding`")
        if self.adapt is not None and not self.targets:
            raise ValueError(
                "adapt: adapts to the pictures' targets, which no alignment loss predicts; give `align.losses.embedding`, or write `scope: subject` and no `adapt:`"
            )
        if (
            self.align is not None
            and self.align.retrieval_head
            and self.adapt is not None
            and self.adapt.strategy != "none"
            and self.adapt.losses.softclip == 0
        ):
            raise ValueError("adapt.losses.softclip: 0 given, but align.retrieval_head has a head that only SoftCLIP trains; give it a weight")
        if self.condition is not None and self.condition.drop == 0 and self.sampling.guidance != 1:
            raise ValueError(
                f"condition.drop: 0 given, but sampling.guidance {self.sampling.guidance:g} needs the null condition, which is then never trained; write 0.1, or guidance: 1"
            )
        if self.condition is not None and self.closed and self.condition.crop > 0:
            raise ValueError(f"condition.crop: {self.condition.crop:g} given, but enter.kind {self.enter.kind} predicts the whole picture; leave it out")
        if self.sampling.strength < 1 and "latent" not in self.targets:
            raise ValueError(
                f"sampling.strength: {self.sampling.strength:g} given, but nothing predicts the latent to start from; give align.losses.latent a weight, or write 1"
            )
        return self

    def _shared(self) -> None:
        if self.body.kind == "identity":
            if not self.closed:
                raise ValueError(f"body: identity given, but enter.kind {self.enter.kind} predicts nothing by itself; give a body, such as `kind: convmixer`")
            for key in ("pretrain", "align", "adapt"):
                if getattr(self, key) is not None:
                    raise ValueError(f"{key}: nothing to train with body.kind identity; give a body, or leave it out")
        if self.scope == "subject":
            if self.enter.kind == "decoded":
                raise ValueError("scope: subject given, but enter.kind decoded is taught by the training subjects; write `scope: dataset`")
            if self.adapt is not None:
                raise ValueError("adapt: a model of one subject has nothing to adapt; remove `adapt:` or widen `scope:`")
            if self.trained_on is not None:
                raise ValueError("trained_on: given, but a model of one subject is trained on no other; leave it out")
        elif self.enter.kind == "ridge" and self.body.kind == "identity" and self.condition is None:
            raise ValueError(f"scope: {self.scope} given, but ridge regression without a body shares nothing; write `scope: subject`")

    def _trained(self) -> None:
        if self.closed:
            for key in ("pretrain", "adapt"):
                if getattr(self, key) is not None:
                    raise ValueError(f"{key}: not possible with enter.kind {self.enter.kind}, which is a closed form; leave it out")
            if self.body.kind != "identity" and self.align is None:
                raise ValueError("align: missing; it trains the body")
        if self.align is not None:
            for key in () if self.closed else ("in_sample", "noise"):
                if getattr(self.align, key):
                    raise ValueError(
                        f"align.{key}: {getattr(self.align, key)} given, but enter.kind {self.enter.kind} is trained and has no closed form; leave it out"
                    )
            losses = [section.losses for section in (self.align, self.adapt) if section is not None]
            for key, name in (("margin", "siamese"), ("temperature", "softclip")):
                if not any(getattr(own, name) for own in losses):
                    idle(self.align, (key,), f"losses.{name} is 0", "align.")
        for key in ("align", "adapt"):
            section = getattr(self, key)
            for name in ("reconstruction", "cycle"):
                if section is not None and (given := getattr(section.losses, name)) > 0 and self.enter.kind != "embedder":
                    raise ValueError(f"{key}.losses.{name}: {given:g} given, but enter.kind {self.enter.kind} builds no signal back; leave it out")
        if self.enter.kind == "voxel-tokens" and self.align is None:
            raise ValueError("align: missing; it trains the queries that read voxels")
        if self.pretrain is not None and self.enter.kind in ("embedder", "voxel-tokens"):
            raise ValueError(f"pretrain: given, but enter.kind {self.enter.kind} gives the body other signals than pretraining would; leave it out")
        if self.pretrain is not None and not isinstance(self.body, ConvMixer | ViT):
            raise ValueError(f"pretrain: a body of patches is pretrained, {self.body.kind} given; use convmixer or vit, or leave it out")
        if self.pretrain is None and isinstance(self.body, ConvMixer | ViT):
            idle(self.body, [key for key in ("decoder_width", "decoder_depth") if hasattr(self.body, key)], "without `pretrain:` nothing is decoded", "body.")
        if isinstance(self.enter, Voxels) and isinstance(self.body, ConvMixer | ViT) and self.enter.size % self.body.patch:
            raise ValueError(f"enter.size: {self.enter.size} is not a multiple of body.patch = {self.body.patch}")
        if isinstance(self.body, ViT) and self.body.width % self.body.heads:
            raise ValueError(f"body.width: {self.body.width} is not a multiple of body.heads = {self.body.heads}")
        if self.adapt is not None and self.targets:
            for name, target in (("embedding", "embedding"), ("softclip", "embedding"), ("latent", "latent")):
                if (given := getattr(self.adapt.losses, name)) > 0 and target not in self.targets:
                    raise ValueError(f"adapt.losses.{name}: {given:g} given, but no loss of `align` predicts the {target}; write 0")
        if self.adapt is not None and self.enter.kind != "adapter":
            if self.adapt.strategy == "adapter" and not self.trains_own:
                raise ValueError(f"adapt.strategy: adapter given, but enter.kind {self.enter.kind} has none; use adapter+norms, low-rank or everything")
            if self.adapt.start != "ridge":
                raise ValueError(f"adapt.start: {self.adapt.start} given, but enter.kind {self.enter.kind} has no adapter; leave it out")
        if self.adapt is not None and self.adapt.strategy == "none" and not (self.encodes or (self.enter.kind == "adapter" and self.adapt.start == "ridge")):
            raise ValueError(
                "adapt.strategy: none given, but without training only an adapter that starts at ridge and voxel-tokens of vectors: encoding serve a new subject"
            )

    def _sampled(self) -> None:
        """Refuse a prior over embeddings where it does nothing, or cannot be trained."""
        if not self.closed:
            raise ValueError(
                f"embedding_prior: given, but enter.kind {self.enter.kind} is fitted to all training pictures, and the prior needs predictions of pictures "
                "not fitted to; use decoded or ridge, or leave it out"
            )
        if self.condition is not None:
            raise ValueError("embedding_prior: given, but the condition stage and not the predicted embedding conditions the generator; leave one of them out")
        if self.sampling.strength == 0:
            raise ValueError("embedding_prior: given, but with sampling.strength 0 nothing is drawn from an embedding; leave it out")
        if self.align is not None and self.align.in_sample:
            raise ValueError(
                "embedding_prior: given, but with align.in_sample signals are of pictures that the closed form was fitted to; leave one of them out"
            )

    @property
    def closed(self) -> bool:
        """Whether signals are entered in closed form, once and for all before anything is trained."""
        return self.enter.kind in ("ridge", "decoded")

    @property
    def per_subject(self) -> bool:
        """Whether voxels enter by something of the subject's own, which `align` and `adapt` make."""
        return self.enter.kind in ("adapter", "embedder", "voxel-tokens")

    @property
    def trains_own(self) -> bool:
        """Whether training changes what is a subject's own."""
        return self.per_subject and not self.encodes

    @property
    def encodes(self) -> bool:
        """Whether voxels are tokens by their encoding weights, in closed form."""
        return isinstance(self.enter, VoxelTokens) and self.enter.vectors == "encoding"

    @property
    def shares(self) -> bool:
        """Whether anything is trained beyond the closed form: a body, or a condition stage."""
        return self.body.kind != "identity" or self.condition is not None

    @property
    def signals(self) -> bool:
        """Whether anything is trained on the training subjects' entered signals."""
        return self.closed and (self.shares or self.embedding_prior is not None)

    @property
    def serves_budgets(self) -> bool:
        """Whether few trials serve a new subject: adapted, or in closed form with nothing behind it that the subject's other trials have trained."""
        return self.adapt is not None or (self.closed and not (self.scope == "subject" and self.signals))

    @property
    def from_scratch(self) -> bool:
        """Whether it may be trained on a budget of trials alone, by the steps that adapt it."""
        return self.trained_on is None and self.adapt is not None and self.adapt.strategy != "none"

    @property
    def targets(self) -> tuple[str, ...]:
        """What the method predicts of a picture: `embedding`, `latent`."""
        if self.closed:
            return ("embedding", "latent")
        return self.align.losses.targets if self.align is not None else ()

    def responses(self) -> dict[str, Any]:
        """How trials are read: `order` and `repeats`; closed forms average the repeats."""
        return {"order": self.enter.order, "repeats": self.enter.repeats} if isinstance(self.enter, Voxels) else {"order": "stored", "repeats": "mean"}

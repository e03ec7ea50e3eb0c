"""The frozen networks: image embedding, autoencoder, diffusion model, classifier."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from unimind.study.base import Fraction, Positive, Section, Sha256, Training, idle


class DrawnPictures(Section):
    """Drawn, captioned pictures that no subject sees, for foundations trained inside the study."""

    count: Positive = Field(6400, description="Of the 430 000 possible ones that no simulated subject sees; 256 more are held out.")
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


class ClipVisionEmbedding(Section):
    """The image encoder of a diffusers or transformers repository, with the preprocessing that stands beside it: the very network a frozen generator was trained on."""

    kind: Literal["clip-vision"]
    repository: str = Field("h94/IP-Adapter", description="On the hub, or a local folder of the same layout.")
    revision: str = "main"
    subfolder: str = Field(
        "models/image_encoder",
        description="Folder of the encoder: OpenCLIP ViT-H/14 here; bigG/14 in `sdxl_models/image_encoder` and in `image_encoder` of Kandinsky 2.2's prior.",
    )
    processor: str | None = Field(
        None,
        description="Folder of its preprocessor_config.json, such as `feature_extractor`; by default CLIP's own at the encoder's size, as IP-Adapter has it.",
    )
    variant: Literal["fp16"] | None = Field(None, description="Take the files of this variant: half the download where the repository has them.")
    sha256: Sha256 = None


class SqueezeNetEmbedding(Section):
    """Pooled SqueezeNet 1.1 features, where no CLIP can be had; named as what they are in every table."""

    kind: Literal["squeezenet"]
    weights: str = Field("$UNIMIND_REAL_DATA/weights/squeezenet1_1.safetensors", description="Weights, torchvision names.")
    sha256: Sha256 = None


class StudyAutoencoder(Section):
    """A small KL autoencoder built with diffusers and trained in the study on drawn pictures."""

    kind: Literal["study"]
    latent_channels: Positive = Field(16, description="Channels of the latent; with a downsampling of 8 a multiple of 4.")
    downsampling: Literal[4, 8] = 8
    width: Positive = 40
    training: Training = Training(steps=900, batch_size=32, learning_rate=1e-3)

    @model_validator(mode="after")
    def _folded(self) -> "StudyAutoencoder":
        if self.downsampling == 8 and self.latent_channels % 4:
            raise ValueError(f"latent_channels: {self.latent_channels} given; with downsampling 8 a multiple of 4 is needed, which come from 2 x 2 positions")
        return self


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
    pictures: Literal["drawn", "training"] = Field(
        "drawn", description="Train on drawn pictures, or on the training pictures of the study's training subjects."
    )
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


class Frozen(Section):
    """What all pipelines that are taken as they are share."""

    revision: str = "main"
    variant: Literal["fp16"] | None = Field(None, description="Take the files of this variant: half the download where the repository has them.")
    precision: Literal["fp32", "bf16", "fp16"] = Field("fp16", description="Of the networks while drawing on a GPU; on a CPU always fp32.")
    memory: Literal["whole", "sliced", "offload"] = Field(
        "whole",
        description="On a GPU: everything on the card; attention (but an adapter's) in slices and one picture at a time through the autoencoder (but Kandinsky's); or only the network that works on the card. Pictures are the same.",
    )
    sha256: dict[str, str] = Field({}, description="SHA-256 that files must have, by their path in the repository; of the others it is recorded.")


class IpAdapterGenerator(Frozen):
    """Stable Diffusion 1.5 or XL with an IP-Adapter (Ye et al. 2023): the picture's embedding instead of a prompt."""

    kind: Literal["ip-adapter"]
    repository: str = Field(
        "stable-diffusion-v1-5/stable-diffusion-v1-5", description="Stable Diffusion 1.5 or XL on the hub, or a local folder of the same layout."
    )
    adapter: str = Field("h94/IP-Adapter", description="Repository of the adapter, or a local folder of the same layout.")
    adapter_revision: str = "main"
    weights: str = Field("models/ip-adapter_sd15.safetensors", description="The adapter's file in its repository.", pattern=r"\.safetensors$")
    target: Literal["embedding", "tokens"] = Field(
        "embedding", description="What the adapter takes: the pooled embedding, or (Plus) all tokens of the encoder's last but one layer."
    )
    encoder: str = Field(
        "models/image_encoder",
        description="Folder of the image encoder in the adapter's repository: with `tokens`, its tokens of the zero picture are the null condition.",
    )
    scale: float = Field(1.0, gt=0, le=2, description="Weight of the adapter's attention.")
    size: Positive = Field(
        512,
        description="Side at which pictures are drawn, before they are resized to the study's: 512 for Stable Diffusion 1.5, 1024 (or 768) for XL.",
        multiple_of=8,
    )


class UnclipGenerator(Frozen):
    """Stable Diffusion 2.1 unCLIP: noise added to the embedding absorbs a decoder's error."""

    kind: Literal["unclip"]
    repository: str = Field(
        "sd2-community/stable-diffusion-2-1-unclip",
        description="ViT-H/14 (1024); with `-small` at the end ViT-L/14 (768). Or a local folder of the same layout.",
    )
    noise_level: int = Field(0, ge=0, lt=1000, description="Noise on the embedding, as a step of the repository's schedule.")
    size: Positive = Field(768, description="Side at which pictures are drawn.", multiple_of=8)


class KandinskyGenerator(Frozen):
    """Kandinsky 2.2's decoder, which takes the pooled embedding of OpenCLIP ViT-bigG/14."""

    kind: Literal["kandinsky-2.2"]
    repository: str = Field("kandinsky-community/kandinsky-2-2-decoder", description="The decoder on the hub, or a local folder of the same layout.")
    prior: str = Field(
        "kandinsky-community/kandinsky-2-2-prior", description="Repository whose image encoder gives the zero picture's embedding, the null condition."
    )
    prior_revision: str = "main"
    size: Positive = Field(512, description="Side at which pictures are drawn.", multiple_of=64)


class AutoencoderAlone(Section):
    """No diffusion model: the autoencoder alone decodes the predicted latent (`sampling.strength: 0`)."""

    kind: Literal["autoencoder"]


class NoGenerator(Section):
    """No diffusion model and no autoencoder: no picture is drawn, and the predicted image embeddings alone are measured."""

    kind: Literal["none"]


class StudyClassifier(Section):
    """A small classifier of drawn pictures (class and colour of both objects, their relation), trained in the study."""

    kind: Literal["study"]
    training: Training = Training(steps=400, batch_size=128, learning_rate=2e-3)

    @model_validator(mode="after")
    def _undivided(self) -> "StudyClassifier":
        self.training.undivided("batch normalisation mixes")
        return self


def draws_nothing(foundations: Any) -> bool:
    """Whether `foundations:` as written in a study, not checked yet, says that no picture is drawn."""
    diffusion = foundations.get("diffusion") if isinstance(foundations, dict) else None
    return isinstance(diffusion, dict) and diffusion.get("kind") == "none"


class Foundations(Section):
    """The frozen networks the method stands on."""

    drawn: DrawnPictures = DrawnPictures()
    embedding: Annotated[StudyEmbedding | OpenClipEmbedding | ClipVisionEmbedding | SqueezeNetEmbedding, Field(discriminator="kind")] = OpenClipEmbedding(
        kind="open-clip"
    )
    autoencoder: Annotated[StudyAutoencoder | Taef2Autoencoder | HubAutoencoder | LdmAutoencoder, Field(discriminator="kind")] | None = Field(
        LdmAutoencoder(kind="ldm"), description="None with `diffusion: {kind: none}`."
    )
    diffusion: Annotated[
        StudyDiffusion | HubDiffusion | LdmDiffusion | IpAdapterGenerator | UnclipGenerator | KandinskyGenerator | AutoencoderAlone | NoGenerator,
        Field(discriminator="kind"),
    ] = LdmDiffusion(kind="ldm")
    classifier: StudyClassifier | None = Field(None, description="A classifier of drawn pictures; none where the field's networks are used.")

    @property
    def draws(self) -> bool:
        """Whether pictures are drawn at all."""
        return not isinstance(self.diffusion, NoGenerator)

    @property
    def frozen(self) -> bool:
        """Whether pictures are drawn by a pipeline that is taken as it is, which takes a picture's embedding or tokens."""
        return isinstance(self.diffusion, Frozen)

    @property
    def target(self) -> Literal["embedding", "tokens"]:
        """The target a frozen pipeline takes."""
        return self.diffusion.target if isinstance(self.diffusion, IpAdapterGenerator) else "embedding"

    @model_validator(mode="before")
    @classmethod
    def _nothing_to_decode(cls, given: Any) -> Any:
        """Without a generator there is no autoencoder by default."""
        return {"autoencoder": None, **given} if draws_nothing(given) else given

    @model_validator(mode="after")
    def _used(self) -> "Foundations":
        if self.draws and self.autoencoder is None:
            raise ValueError("autoencoder: none given, but pictures are drawn; name one, or write diffusion: {kind: none}")
        for key in () if self.draws else ("autoencoder", "classifier"):
            if (section := getattr(self, key)) is not None:
                raise ValueError(f"{key}: {section.kind} given, but with diffusion.kind none there are no pictures for it; leave it out")
        trained = isinstance(self.diffusion, StudyDiffusion) and self.diffusion.pictures == "drawn"
        if not trained and not any(isinstance(part, StudyEmbedding | StudyAutoencoder | StudyClassifier) for _, part in self):
            idle(self.drawn, DrawnPictures.model_fields, "no network is trained on drawn pictures", "drawn.")
        return self

    @model_validator(mode="after")
    def _embedding_of_generator(self) -> "Foundations":
        kind = self.embedding.kind
        if self.frozen and kind not in ("open-clip", "clip-vision"):
            raise ValueError(
                f"embedding.kind: {kind} given, but {self.diffusion.kind} takes the embedding of the CLIP it was trained on; write clip-vision (or open-clip with the same weights)"
            )
        if self.target == "tokens" and kind != "clip-vision":
            raise ValueError(f"embedding.kind: {kind} given, but diffusion.target tokens needs the image encoder's own tokens; write clip-vision")
        if (
            isinstance(self.diffusion, IpAdapterGenerator)
            and self.target == "embedding"
            and "encoder" in self.diffusion.model_fields_set
            and self.diffusion.encoder != IpAdapterGenerator.model_fields["encoder"].default
        ):
            raise ValueError(
                "diffusion.encoder: given, but only an adapter that takes tokens has a null condition from the encoder; leave it out, or write target: tokens"
            )
        return self

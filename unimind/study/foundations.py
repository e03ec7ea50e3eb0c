"""The frozen networks: image embedding, autoencoder, diffusion model, classifier."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from unimind.study.base import Fraction, Positive, Section, Sha256, Training


class DrawnPictures(Section):
    """Drawn, captioned pictures that no subject sees, for foundations trained inside the study."""

    count: Positive = Field(6400, description="Of the 4.9 million possible ones that no simulated subject sees; 256 more are held out.")
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
    """A small classifier of drawn pictures (class and colour of both objects, their relation), trained in the study."""

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
    classifier: StudyClassifier | None = Field(None, description="A classifier of drawn pictures; none where the field's networks are used.")

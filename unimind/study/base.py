"""What every part of a study is made of: sections, and the types and the length of a training that they share."""

import math
from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Precision = Annotated[
    Literal["fp32", "tf32", "bf16", "fp16"],
    Field(
        description="Of products: single precision, TF32 (NVIDIA cards from Ampere on), or half precision with single-precision weights; fp16 and tf32 need a GPU."
    ),
]
Sha256 = Annotated[
    str | None, Field(description="SHA-256 that the file of weights must have; where none is given, any file is taken and its SHA-256 recorded.")
]


class Section(BaseModel):
    """A part of the study: unknown keys are refused, values never change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def idle(section: Section, keys: Iterable[str], why: str, where: str = "") -> None:
    """Refuse keys that differ from their defaults where they do nothing; `where` is the section's place, with a dot at its end."""
    for key in keys:
        given, default = getattr(section, key), type(section).model_fields[key].get_default()
        if given != default:
            raise ValueError(f"{where}{key}: {'' if isinstance(given, Section) else f'{given} '}given, but {why}; leave it out")


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
    precision: Precision = "fp32"
    accumulate: Positive = Field(
        1,
        description="Micro-batches per step, of equal size: less memory, the same gradient but for the places of dropout. Refused where losses compare the rows of a batch with each other.",
    )
    gradient_checkpointing: bool = Field(False, description="Recompute activations in the backward pass: less memory, about a third slower.")
    ema: float | None = Field(None, gt=0, lt=1, description="Decay of the moving average of the weights, where one is kept.")
    validate_every: Positive = Field(100, description="Steps between validations; more where they would take more than a tenth of the training's time.")
    patience: Positive | None = Field(None, description="Stop after so many validations without a better one; the best weights are kept.")
    checkpoint_minutes: float = Field(
        10.0,
        ge=0,
        description="Minutes between checkpoints; more where writing them would take more than 3 % of the training's time. One is also written at a signal and at the end.",
    )

    @model_validator(mode="after")
    def _length(self) -> "Training":
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of steps and epochs")
        if self.batch_size % self.accumulate:
            raise ValueError(f"accumulate: {self.accumulate} given, but batch_size {self.batch_size} is no multiple of it; micro-batches are of equal size")
        return self

    def total(self, n_samples: int, samples_per_step: int) -> int:
        """Optimiser steps of the training, for so many samples."""
        return self.steps or max(1, math.ceil((self.epochs or 0) * n_samples / samples_per_step))

    def undivided(self, why: str) -> None:
        """Refuse to share out the rows of a batch that are compared with each other; `why` names what compares them."""
        if self.accumulate > 1:
            raise ValueError(
                f"training.accumulate: {self.accumulate} given, but {why} the rows of a batch with each other; write 1, and save memory by training.gradient_checkpointing or training.precision"
            )
        if self.batch_size < 2:
            raise ValueError(f"training.batch_size: {self.batch_size} given, but {why} the rows of a batch with each other; write 2 or more")

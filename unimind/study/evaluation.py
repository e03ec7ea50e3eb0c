"""What is measured, how surely, and over which budgets of trials."""

from typing import Literal

from pydantic import Field, model_validator

from unimind.evaluation.measures import NAMES
from unimind.study.base import Name, Positive, Section, idle
from unimind.study.methods import Method


class Evaluation(Section):
    """What is measured, and how surely."""

    metrics: list[str] = Field(
        [*NAMES],
        description="Measures to compute; one whose network is absent is left out of the tables with the reason. Where no picture is drawn, by default those of the predicted embedding.",
    )
    bootstrap: Positive = Field(2000, description="Resamples of the test images for the 95 % intervals.")
    batch_size: Positive = 64
    weights: str = Field("$UNIMIND_WEIGHTS", description="Folder with the panel's weights (see config/weights.tsv).")
    squeezenet: str | None = Field(
        "$UNIMIND_REAL_DATA/weights/squeezenet1_1.safetensors", description="SqueezeNet 1.1 weights for `squeezenet` and `lpips_squeeze`."
    )

    @model_validator(mode="after")
    def _known(self) -> "Evaluation":
        unknown = [name for name in self.metrics if name not in NAMES]
        if unknown:
            raise ValueError(f"metrics: {', '.join(unknown)} unknown; known are {', '.join(NAMES)}")
        return self


class Transfer(Section):
    """How far a new subject gets with few of its trials: `tables/adaptation.csv` and its figure."""

    trials: list[Positive | Literal["all"]] = Field(
        [25, 50, 100, 200, "all"], description="Budgets of training trials. Smaller ones are contained in larger ones."
    )
    seeds: Positive = Field(3, description="Drawings of every budget.")
    methods: list[Name] | None = Field(None, description="Which methods of the study; by default all that are adapted or fitted in closed form.")
    baselines: dict[Name, Method] = Field(
        {},
        description="Methods of this comparison alone: fitted in closed form, or adapted from a model shared by part of the training subjects (`trained_on`).",
    )
    scratch: bool = Field(True, description="Also train each adapted method on the budget alone, from nothing.")
    pictures: bool = Field(
        True, description="Also draw one picture per stimulus and budget, for CLIP two-way and PixCorr; by default no where the study draws none."
    )

    @model_validator(mode="after")
    def _drawings(self) -> "Transfer":
        if set(self.trials) == {"all"}:
            idle(self, ("seeds",), "all trials are drawn in one way")
        return self

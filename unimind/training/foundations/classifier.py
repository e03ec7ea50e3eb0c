"""Train the study's classifier of drawn pictures."""

from pathlib import Path

import torch

from unimind.data.drawn import ATTRIBUTES
from unimind.foundations.study_classifier import NAME, AttributeClassifier
from unimind.study import Study
from unimind.training.foundations.pictures import attribute_accuracy, attribute_loss, drawn_pictures, unit
from unimind.training.loop import drawn, fingerprint, train, write_model

#: The attributes that are told; `class` is the one that metrics of object classes ask for.
TOLD = ("class", "colour", "relation", "second class", "second colour")


def train_classifier(study: Study, checkpoints: Path, out: Path) -> None:
    """Cross-entropy of what both objects are and how they lie; held-out accuracies go to the losses."""
    settings = study.foundations.classifier
    assert settings is not None
    pictures = drawn_pictures(study)
    told = [list(ATTRIBUTES).index(name) for name in TOLD]
    torch.manual_seed(study.seed)
    model = AttributeClassifier({name: list(ATTRIBUTES[name]) for name in TOLD}, study.picture_size).to(memory_format=torch.channels_last)

    def draw(step: int) -> dict:
        index = drawn(len(pictures.images), settings.training.batch_size, step, study.seed, "classifier")
        return {"index": index, "images": pictures.images[index], "attributes": pictures.attributes[index][:, told]}

    def losses(model: AttributeClassifier, batch: dict) -> dict:
        return {"cross_entropy": attribute_loss(list(model.attribute_logits(unit(batch["images"])).values()), batch["attributes"])}

    def validate(model: AttributeClassifier) -> dict:
        device = next(model.parameters()).device
        logits, attributes = list(model.attribute_logits(unit(pictures.held_out.to(device))).values()), pictures.held_out_attributes[:, told].to(device)
        right = zip(TOLD, attribute_accuracy(logits, attributes), strict=True)
        return {"cross_entropy": attribute_loss(logits, attributes).item(), **{f"accuracy of {name}": share for name, share in right}}

    mark = fingerprint(study, [], __name__)
    trained = train(model, draw=draw, losses=losses, settings=settings.training, seed=study.seed, checkpoints=checkpoints, fingerprint=mark,
                    label="classifier", n_samples=len(pictures.images), validate=validate, compares_rows=True)  # fmt: skip
    write_model(out, model.state_dict(), {"kind": "study", "name": NAME, "arguments": model.arguments, "held_out": trained.validation}, trained, checkpoints)

"""Train the study's classifier of drawn objects."""

from pathlib import Path

import torch
from torch.nn import functional

from unimind.data.drawn import CLASSES
from unimind.foundations.study_classifier import NAME, StudyClassifier
from unimind.study import Study
from unimind.training.foundations.pictures import drawn_pictures, unit
from unimind.training.loop import drawn, fingerprint, train, write_model


def train_classifier(study: Study, checkpoints: Path, out: Path) -> None:
    """Cross-entropy; held-out accuracy goes to the losses."""
    settings = study.foundations.classifier
    assert settings is not None
    pictures = drawn_pictures(study)
    torch.manual_seed(study.seed)
    model = StudyClassifier(list(CLASSES)).to(memory_format=torch.channels_last)

    def draw(step: int) -> dict:
        index = drawn(len(pictures.images), settings.training.batch_size, step, study.seed, "classifier")
        return {"index": index, "images": pictures.images[index], "classes": pictures.classes[index]}

    def losses(model: StudyClassifier, batch: dict) -> dict:
        return {"cross_entropy": functional.cross_entropy(model(unit(batch["images"])), batch["classes"])}

    def validate(model: StudyClassifier) -> dict:
        device = next(model.parameters()).device
        logits, classes = model(unit(pictures.held_out.to(device))), pictures.held_out_classes.to(device)
        return {"cross_entropy": functional.cross_entropy(logits, classes).item(), "accuracy": (logits.argmax(1) == classes).float().mean().item()}

    mark = fingerprint(study, [], __name__)
    trained = train(model, draw=draw, losses=losses, settings=settings.training, seed=study.seed, checkpoints=checkpoints, fingerprint=mark,
                    label="classifier", n_samples=len(pictures.images), validate=validate, compares_rows=True)  # fmt: skip
    write_model(out, model.state_dict(), {"kind": "study", "name": NAME, "arguments": model.arguments, "held_out": trained.validation}, trained, checkpoints)

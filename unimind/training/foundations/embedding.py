"""Train the study's CLIP on drawn pictures and their captions."""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from unimind.data.drawn import ATTRIBUTES
from unimind.foundations.study_clip import NAME, StudyClip
from unimind.study import Study, StudyEmbedding
from unimind.training.foundations.captioned import CaptionedClip, Words
from unimind.training.foundations.pictures import attribute_accuracy, attribute_loss, drawn_pictures, unit
from unimind.training.loop import drawn, fingerprint, train, write_model


def contrastive(images: Tensor, captions: Tensor, same: Tensor, scale: Tensor) -> Tensor:
    """CLIP's symmetric cross-entropy (Radford et al. 2021) where several pictures may have the same caption.

    Parameters
    ----------
    images, captions : Tensor
        (n, d), L2-normalised.
    same : Tensor
        (n, n), 1 where two captions are equal; each row's ones share its target.
    scale : Tensor
        Inverse temperature.
    """
    logits = scale * images @ captions.T
    target = same / same.sum(1, keepdim=True)
    return (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2


def train_embedding(study: Study, checkpoints: Path, out: Path) -> None:
    """Contrast, and every attribute told from the embedding; the share of held-out pictures whose caption is found among 256 goes to the losses.

    The attributes say which object has which colour and place; contrast alone is content with what tells a batch apart.
    """
    settings = study.foundations.embedding
    assert isinstance(settings, StudyEmbedding)
    pictures = drawn_pictures(study)
    torch.manual_seed(study.seed)
    values = [len(names) for names in ATTRIBUTES.values()]
    words, clip = Words.of(pictures.captions), StudyClip(settings.dim, study.picture_size)
    model = CaptionedClip(clip, words.size, values).to(memory_format=torch.channels_last)
    tokens, held_out_tokens = words(pictures.captions), words(pictures.held_out_captions)

    def draw(step: int) -> dict:
        index = drawn(len(pictures.images), settings.training.batch_size, step, study.seed, "embedding")
        return {"index": index, "images": pictures.images[index], "tokens": tokens[index], "attributes": pictures.attributes[index]}

    def losses(model: CaptionedClip, batch: dict) -> dict:
        images = model.clip.encode(unit(batch["images"]))
        captions = model.encode_captions(batch["tokens"])
        same = (batch["tokens"][:, None] == batch["tokens"][None]).all(-1).float()
        scale = model.logit_scale.exp().clamp(max=100)
        return {"contrastive": contrastive(images, captions, same, scale), "attributes": attribute_loss(model.attribute_logits(images), batch["attributes"])}

    def validate(model: CaptionedClip) -> dict:
        device = next(model.parameters()).device
        images = model.clip.encode(unit(pictures.held_out.to(device)))
        captions = model.encode_captions(held_out_tokens.to(device))
        same = (held_out_tokens[:, None] == held_out_tokens[None]).all(-1).float().to(device)
        found = same[torch.arange(len(images)), (images @ captions.T).argmax(1)].mean().item()
        logits, attributes = model.attribute_logits(images), pictures.held_out_attributes.to(device)
        told = sum(attribute_accuracy(logits, attributes)) / len(logits)
        return {
            "attributes": attribute_loss(logits, attributes).item(), "accuracy": told,
            "contrastive": contrastive(images, captions, same, model.logit_scale.exp()).item(), "caption_top1": found,
        }  # fmt: skip

    mark = fingerprint(study, [], __name__)
    trained = train(model, draw=draw, losses=losses, settings=settings.training, seed=study.seed, checkpoints=checkpoints, fingerprint=mark,
                    label="image embedding (study CLIP)", n_samples=len(pictures.images), validate=validate, compares_rows=True)  # fmt: skip
    write_model(out, clip.state_dict(), {"kind": "study-clip", "name": NAME, "arguments": clip.arguments, "held_out": trained.validation}, trained, checkpoints)

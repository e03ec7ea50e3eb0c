"""A small CLIP: pictures and captions drawn in the study in one embedding space."""

import math
from pathlib import Path

import torch
from torch import Tensor, nn

from unimind.foundations.study_classifier import features_after, picture_stages
from unimind.storage import load_model

NAME = "study CLIP"
CONTEXT = 24


class Words:
    """Captions to token numbers, one per word: 1 opens, the largest number closes (open_clip pools there), 0 fills."""

    def __init__(self, words: list[str]) -> None:
        self.words = words
        self.numbers = {word: index + 2 for index, word in enumerate(words)}
        self.size = len(words) + 3

    @classmethod
    def of(cls, captions: list[str]) -> "Words":
        """All words of some captions, in alphabetical order."""
        return cls(sorted({word for caption in captions for word in caption.split()}))

    def __call__(self, captions: list[str]) -> Tensor:
        """Captions to int64 (n, CONTEXT)."""
        tokens = torch.zeros(len(captions), CONTEXT, dtype=torch.long)
        for row, caption in zip(tokens, captions, strict=True):
            numbers = [1, *(self.numbers[word] for word in caption.split()), self.size - 1]
            row[: len(numbers)] = torch.tensor(numbers)
        return tokens


class StudyClip(nn.Module):
    """CLIP (Radford et al. 2021) with a small convolutional network for pictures and open_clip's transformer for captions.

    The picture network's last maps are not pooled: which object is where is read from them.

    Parameters
    ----------
    dim : int
        Length of the embedding.
    picture_size : int
    words : list of str
        Vocabulary of the captions.
    values : list of int
        How many values each attribute of a picture has.
    width : int
        Of the picture tower's first layer.
    """

    def __init__(self, dim: int, picture_size: int, words: list[str], values: list[int], width: int = 16) -> None:
        super().__init__()
        from open_clip.transformer import TextTransformer

        self.arguments = {"dim": dim, "picture_size": picture_size, "words": words, "values": values, "width": width}
        self.name, self.dim = NAME, dim
        self.words = Words(words)
        stages = picture_stages(width)
        self.pictures = nn.Sequential(*stages, nn.Flatten(), nn.Linear(features_after(stages, width, picture_size), dim))
        self.captions = TextTransformer(context_length=CONTEXT, vocab_size=self.words.size, width=64, heads=4, layers=1, output_dim=dim)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.values = values
        self.attribute_head = nn.Linear(dim, sum(values))

    def encode(self, images: Tensor) -> Tensor:
        """Images (n, 3, H, W) in [0, 1] to (n, dim), L2-normalised."""
        size = self.arguments["picture_size"]
        if images.shape[-1] != size:
            images = nn.functional.interpolate(images, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
        return nn.functional.normalize(self.pictures(images * 2 - 1), dim=-1)

    def encode_tokens(self, tokens: Tensor) -> Tensor:
        """Captions as numbers (n, CONTEXT), see `Words`, to (n, dim), L2-normalised."""
        return nn.functional.normalize(self.captions(tokens), dim=-1)

    def attribute_logits(self, embedding: Tensor) -> tuple[Tensor, ...]:
        """What is in a picture, from embeddings (n, dim): logits (n, values) of every attribute."""
        return self.attribute_head(embedding * self.dim**0.5).split(self.values, dim=1)

    def encode_captions(self, captions: list[str]) -> Tensor:
        """Captions to (n, dim), L2-normalised."""
        return self.encode_tokens(self.words(captions))


def load_study_clip(directory: Path) -> StudyClip:
    """A trained study CLIP, frozen, in evaluation mode."""
    state, config = load_model(directory)
    model = StudyClip(**config["arguments"])
    model.load_state_dict(state)
    return model.eval().requires_grad_(False)

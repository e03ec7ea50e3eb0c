"""A small CLIP built with open_clip: pictures and captions drawn in the study in one embedding space."""

from pathlib import Path

import torch
from torch import Tensor, nn

from unimind.storage import load_model

NAME = "study CLIP"
CONTEXT = 20


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
    """open_clip's CLIP with a small residual network for pictures and a small transformer for captions.

    Parameters
    ----------
    dim : int
        Length of the embedding.
    picture_size : int
    words : list of str
        Vocabulary of the captions.
    width : int
        Of the picture tower's first layer.
    """

    def __init__(self, dim: int, picture_size: int, words: list[str], width: int = 16) -> None:
        super().__init__()
        from open_clip.model import CLIP

        self.arguments = {"dim": dim, "picture_size": picture_size, "words": words, "width": width}
        self.name, self.dim = NAME, dim
        self.words = Words(words)
        vision = {"layers": [1, 1, 1, 1], "width": width, "image_size": picture_size, "head_width": 32}
        text = {"context_length": CONTEXT, "vocab_size": self.words.size, "width": 96, "heads": 4, "layers": 2}
        self.clip = CLIP(embed_dim=dim, vision_cfg=vision, text_cfg=text)
        self.word_head = nn.Linear(dim, self.words.size)

    def encode(self, images: Tensor) -> Tensor:
        """Images (n, 3, H, W) in [0, 1] to (n, dim), L2-normalised."""
        size = self.arguments["picture_size"]
        if images.shape[-1] != size:
            images = nn.functional.interpolate(images, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
        return self.clip.encode_image(images * 2 - 1, normalize=True)

    def word_logits(self, embedding: Tensor) -> Tensor:
        """Which words a caption holds, from embeddings (n, dim): logits (n, words)."""
        return self.word_head(embedding * self.dim**0.5)

    def encode_captions(self, captions: list[str]) -> Tensor:
        """Captions to (n, dim), L2-normalised."""
        return self.clip.encode_text(self.words(captions), normalize=True)


def load_study_clip(directory: Path) -> StudyClip:
    """A trained study CLIP, frozen, in evaluation mode."""
    state, config = load_model(directory)
    model = StudyClip(**config["arguments"])
    model.load_state_dict(state)
    return model.eval().requires_grad_(False)

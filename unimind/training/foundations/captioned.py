"""The study's CLIP as it is trained: beside its picture side, captions and attributes, which are forgotten afterwards."""

import math

import torch
from open_clip.transformer import TextTransformer
from torch import Tensor, nn

from unimind.foundations.study_clip import StudyClip

#: Tokens of a caption: the longest has 18 words, between an opening and a closing token.
CONTEXT = 24


class Words:
    """Captions to token numbers, one per word: 1 opens, the largest number closes (open_clip pools there), 0 fills."""

    def __init__(self, words: list[str]) -> None:
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


class CaptionedClip(nn.Module):
    """A `StudyClip`, open_clip's transformer for captions, and a linear layer that tells attributes.

    Parameters
    ----------
    clip : StudyClip
    vocabulary : int
        How many tokens there are (`Words.size`).
    values : list of int
        How many values each attribute of a picture has.
    """

    def __init__(self, clip: StudyClip, vocabulary: int, values: list[int]) -> None:
        super().__init__()
        self.clip, self.values = clip, values
        self.captions = TextTransformer(context_length=CONTEXT, vocab_size=vocabulary, width=64, heads=4, layers=1, output_dim=clip.dim)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.attribute_head = nn.Linear(clip.dim, sum(values))

    def encode_captions(self, tokens: Tensor) -> Tensor:
        """Captions as numbers (n, CONTEXT), see `Words`, to (n, dim), L2-normalised."""
        return nn.functional.normalize(self.captions(tokens), dim=-1)

    def attribute_logits(self, embedding: Tensor) -> tuple[Tensor, ...]:
        """What is in a picture, from embeddings (n, dim): logits (n, values) of every attribute."""
        return self.attribute_head(embedding * self.clip.dim**0.5).split(self.values, dim=1)

"""The condition stage: fMRI to cross-attention context and to the time embedding."""

from typing import Any

import torch
from torch import Tensor, nn

from unimind.foundations.diffusion import Conditioning, EmbeddingConditioner
from unimind.models.heads import SubjectHead
from unimind.streams import placed


class ConditionStage(nn.Module):
    """Encoder output -> the two conditions of the UNet.

    Context: every encoder token is mapped to the context's width, then the sequence to the wanted number of tokens, as
    MinD-Vis does; where alignment had a subject classifier, its hidden layer, mapped to that width, is one token more, the
    subject token of the thesis. Time: a linear map of the pooled embedding. Where the foundation was trained on image embeddings and the
    encoder predicts one, both start from the foundation's own condition for the predicted embedding, and the fMRI's own
    contributions start at zero.

    Parameters
    ----------
    width, length : int
        Width and number of encoder tokens.
    pooled : int
        Width of the pooled embedding.
    context_dim, tokens : int
        Width and number of context tokens.
    time_dim : int
        Length of the UNet's time embedding.
    cross_attention, time : bool
        Whether fMRI enters that way; otherwise the UNet gets the null condition there.
    conditioner : dict, optional
        Arguments of the foundation's `EmbeddingConditioner`.
    subjects : int
        Subjects that the subject classifier tells apart; 0 for no subject token.
    """

    def __init__(
        self,
        width: int,
        length: int,
        pooled: int,
        context_dim: int,
        tokens: int,
        time_dim: int,
        cross_attention: bool = True,
        time: bool = True,
        conditioner: dict[str, Any] | None = None,
        subjects: int = 0,
    ) -> None:
        super().__init__()
        self.arguments = {
            "width": width, "length": length, "pooled": pooled, "context_dim": context_dim, "tokens": tokens, "time_dim": time_dim,
            "cross_attention": cross_attention, "time": time, "conditioner": conditioner,
            "subjects": subjects,
        }  # fmt: skip
        self.cross_attention, self.time = cross_attention, time
        self.conditioner = EmbeddingConditioner(**conditioner) if conditioner else None
        if conditioner:
            tokens = conditioner["tokens"]
        self.norm = nn.LayerNorm(width)
        self.to_context = placed("to context", lambda: nn.Linear(width, context_dim))
        self.mix = placed("mix", lambda: nn.Linear(length, tokens))
        self.to_time = placed("to time", lambda: nn.Sequential(nn.LayerNorm(pooled), nn.Linear(pooled, time_dim), nn.SiLU(), nn.Linear(time_dim, time_dim)))
        self.subject = SubjectHead(pooled, subjects) if subjects else None
        self.to_subject = placed("to subject", lambda: nn.Linear(pooled, context_dim)) if subjects else None
        self.null_context = placed("null context", lambda: nn.Parameter(torch.randn(1, tokens + bool(subjects), context_dim) * 0.02))
        if conditioner:
            for layer in (self.mix, self.to_time[-1], *([self.to_subject] if self.to_subject is not None else [])):
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)

    def start_from(self, conditioner: EmbeddingConditioner) -> None:
        """Take over the foundation's weights."""
        assert self.conditioner is not None
        self.conditioner.load_state_dict(conditioner.state_dict())
        with torch.no_grad():
            self.null_context[:, : conditioner.null_context.shape[1]] = conditioner.null_context

    def forward(self, tokens: Tensor, pooled: Tensor, embedding: Tensor | None = None) -> Conditioning:
        """Conditions of a batch.

        Parameters
        ----------
        tokens : Tensor
            (B, length, width).
        pooled : Tensor
            (B, pooled).
        embedding : Tensor, optional
            (B, d), the predicted image embedding; needed with a conditioner.
        """
        context = self.mix(self.to_context(self.norm(tokens)).transpose(1, 2)).transpose(1, 2)
        time = self.to_time(pooled)
        if self.conditioner is not None:
            assert embedding is not None
            own = self.conditioner(embedding)
            context, time = context + own.context, time + own.time
        if self.subject is not None and self.to_subject is not None:
            context = torch.cat([context, self.to_subject(self.subject.token(pooled))[:, None]], 1)
        null = self.null()
        if not self.cross_attention:
            context = null.context.expand_as(context).clone()  # a view of a parameter asks for its gradient even without gradients
        if not self.time:
            time = torch.zeros_like(time)
        return Conditioning(context, time)

    def null(self) -> Conditioning:
        """The condition of unconditional samples; one row, to be expanded."""
        return Conditioning(self.null_context, self.null_context.new_zeros(1, self.arguments["time_dim"]))

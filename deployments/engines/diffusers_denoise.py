"""One denoising step of many pictures at once, each at its own place in its own schedule.

What the stock pipelines do for one picture is done here row by row in the same order and precision, so that
the result is the same, down to what is rounded to the model's dtype and what is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from deployments.engines.diffusers_attention import RowwiseAttention
from deployments.engines.diffusers_texts import Text

MAX_PADDING = 0.25
"""Rows share a forward pass if at most this share of a row's tokens is padding."""


@dataclass(frozen=True)
class Kept:
    """What an inpainting keeps: packed latents (1, T, C) of the source, its noise, 1 where to repaint."""

    clean: torch.Tensor
    noise: torch.Tensor
    repaint: torch.Tensor


@dataclass(eq=False)
class Latents:
    """One picture between two steps."""

    x: torch.Tensor
    """(1, T, C), packed."""
    sigmas: list[float]
    """Of its schedule, with the final 0."""
    at: int
    """Where in the schedule it stands."""
    texts: list[Text]
    """The prompt and, if guided, the negative prompt."""
    cfg_scale: float
    grid: tuple[tuple[int, int, int], ...]
    """Frames, rows and columns of tokens: the picture's own, then each reference's."""
    references: torch.Tensor | None = None
    """(1, R, C) packed latents of the pictures that an edit model looks at."""
    kept: Kept | None = None
    flow: torch.Tensor | None = None
    """(1, T, C): the last step's direction."""

    def outlook(self) -> torch.Tensor:
        """What it is about to become: x - sigma * v."""
        if self.flow is None:
            return self.x
        return (self.x.float() - self.sigmas[self.at] * self.flow.float()).to(self.x.dtype)


class Denoiser:
    """The transformer, and batches for it."""

    def __init__(self, transformer: Any, row_tokens: int) -> None:
        """Args: `row_tokens` bounds the latent tokens of one forward pass (one row is always allowed)."""
        self._transformer, self._row_tokens = transformer, row_tokens
        self._attention = RowwiseAttention()
        transformer.set_attn_processor(self._attention)
        self._plan: tuple[list[Text], list[_Pass]] = ([], [])

    @torch.no_grad()
    def step(self, batch: Sequence[Latents]) -> list[bool]:
        """Take a step with each; whether it came out finite. All must have the same grid."""
        x = torch.cat([one.x for one in batch])
        flow = self._flow(batch, x)
        drop = [one.sigmas[one.at + 1] - one.sigmas[one.at] for one in batch]
        # The stock scheduler's product is in the model's dtype, its sum in fp32.
        dt = torch.tensor(drop, dtype=torch.float32, device=x.device).to(flow.dtype)[:, None, None]
        after = (x.float() + dt * flow).to(flow.dtype)
        after = torch.cat([_put_back(one, row[None]) for one, row in zip(batch, after, strict=True)])
        finite: list[bool] = after.isfinite().flatten(1).all(1).tolist()  # waits for the device
        for index, one in enumerate(batch):
            one.x, one.flow, one.at = after[index : index + 1], flow[index : index + 1], one.at + 1
        return finite

    def _flow(self, batch: Sequence[Latents], x: torch.Tensor) -> torch.Tensor:
        """(B, T, C): the direction of each, guided where it has a negative prompt."""
        plain, negative = self._rows(batch, x)
        guided = [index for index, one in enumerate(batch) if len(one.texts) > 1]
        if not guided:
            return plain
        scale = torch.tensor([batch[i].cfg_scale for i in guided], dtype=torch.float32, device=x.device)
        cond = plain[guided] if len(guided) < len(batch) else plain
        pushed = negative + (scale[:, None, None] * (cond - negative).float()).to(cond.dtype)
        norms = [torch.norm(t, dim=-1, keepdim=True) for t in (cond, pushed)]
        out = plain.clone()
        out[guided] = pushed * (norms[0] / norms[1])
        return out

    def _rows(self, batch: Sequence[Latents], x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The transformer's output for all prompts, and for those negative prompts that there are."""
        rows = [(index, one.texts[0]) for index, one in enumerate(batch)]
        rows += [(index, one.texts[1]) for index, one in enumerate(batch) if len(one.texts) > 1]
        time = torch.tensor([one.sigmas[one.at] for one in batch], dtype=torch.float32) * 1000
        time = time.to(x.device).to(x.dtype) / 1000
        seen = x
        if batch[0].references is not None:
            seen = torch.cat([x, torch.cat([one.references for one in batch])], dim=1)
        out = torch.empty((len(rows), *x.shape[1:]), dtype=x.dtype, device=x.device)
        for part in self._passes(rows, x.shape[1]):
            picks = [rows[row][0] for row in part.rows]
            self._attention.lengths = part.lengths
            out[part.rows] = self._transformer(
                hidden_states=seen[picks],
                timestep=time[picks],
                encoder_hidden_states=part.states,
                img_shapes=[list(batch[0].grid)] * len(picks),
                return_dict=False,
            )[0][:, : x.shape[1]]
        return out[: len(batch)], out[len(batch) :]

    def _passes(self, rows: list[tuple[int, Text]], tokens: int) -> list[_Pass]:
        """Rows in forward passes, those of like length together; kept while the batch stays the same."""
        texts = [text for _, text in rows]
        if self._plan[0] == texts:
            return self._plan[1]
        order = sorted(range(len(texts)), key=lambda row: -texts[row].tokens)
        most, groups = max(1, self._row_tokens // tokens), [[order[0]]]
        for row in order[1:]:
            longest, own = texts[groups[-1][0]].tokens, texts[row].tokens
            if len(groups[-1]) < most and longest - own <= MAX_PADDING * (tokens + own):
                groups[-1].append(row)
            else:
                groups.append([row])
        passes = [_Pass.of(group, [texts[row].states for row in group]) for group in groups]
        self._plan = (texts, passes)
        return passes


@dataclass(frozen=True)
class _Pass:
    """Rows of one forward pass and their padded texts."""

    rows: list[int]
    states: torch.Tensor
    lengths: list[int]

    @classmethod
    def of(cls, rows: list[int], texts: list[torch.Tensor]) -> _Pass:
        lengths = [text.shape[1] for text in texts]
        states = texts[0].new_zeros((len(texts), max(lengths), texts[0].shape[2]))
        for row, text in enumerate(texts):
            states[row, : text.shape[1]] = text[0]
        return cls(rows, states, lengths)


def _put_back(one: Latents, after: torch.Tensor) -> torch.Tensor:
    """After an inpainting's step, what is kept is the source at the same noise."""
    if one.kept is None:
        return after
    kept, clean = one.kept, one.kept.clean
    if one.at + 1 < len(one.sigmas) - 1:
        sigma = torch.tensor(one.sigmas[one.at + 1], dtype=clean.dtype, device=clean.device)
        clean = sigma * kept.noise + (1.0 - sigma) * clean
    return (1 - kept.repaint) * clean + kept.repaint * after

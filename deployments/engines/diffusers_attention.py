"""Attention for batches whose rows have texts of different lengths.

diffusers pads the texts and masks the padding. Sums then run over other lengths than those of a row alone, so
that a picture depends on its company: in the last bits at first, visibly after some steps. Here each row
attends to its own tokens only, and in bfloat16 on the CPU a picture is bit-equal to the stock pipeline's,
alone and in any batch. Without a mask, faster GPU kernels may run, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_qwenimage import apply_rotary_emb_qwen


class RowwiseAttention:
    """Stands in for QwenDoubleStreamAttnProcessor2_0 in all blocks of a transformer."""

    lengths: Sequence[int] | None = None
    """Text tokens of each row of the pass under way; None: of all as many.

    Not an argument: compiled code would be made for certain numbers, and anew for others.
    """
    _attention_backend: Any = None
    _parallel_config: Any = None

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        encoder_hidden_states_mask: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Image states (B, T, D) and text states (B, S, D), of which row b has `lengths[b]` tokens."""
        padded = encoder_hidden_states.shape[1]
        assert encoder_hidden_states_mask is None
        assert attention_mask is None
        assert image_rotary_emb is not None
        image = self._project(
            attn, hidden_states, "to_q", "to_k", "to_v", "norm_q", "norm_k", image_rotary_emb[0]
        )
        names = ("add_q_proj", "add_k_proj", "add_v_proj", "norm_added_q", "norm_added_k")
        text = self._project(attn, encoder_hidden_states, *names, image_rotary_emb[1])
        joint = [torch.cat(pair, dim=1) for pair in zip(text, image, strict=True)]
        states = self._attend(joint, padded)
        states = states.flatten(2, 3).to(joint[0].dtype)
        image_out = attn.to_out[0](states[:, padded:].contiguous())
        return image_out, attn.to_add_out(states[:, :padded].contiguous())

    @staticmethod
    def _project(
        attn: Any,
        states: torch.Tensor,
        to_q: str,
        to_k: str,
        to_v: str,
        norm_q: str,
        norm_k: str,
        freqs: torch.Tensor,
    ) -> list[torch.Tensor]:
        """Query, key and value as (B, length, heads, head size), normed and rotated."""
        size = attn.inner_dim // attn.heads
        q, k, v = (getattr(attn, name)(states).unflatten(-1, (-1, size)) for name in (to_q, to_k, to_v))
        q, k = getattr(attn, norm_q)(q), getattr(attn, norm_k)(k)
        return [apply_rotary_emb_qwen(t, freqs, use_real=False) for t in (q, k)] + [v]

    @torch.compiler.disable
    def _attend(self, joint: list[torch.Tensor], padded: int) -> torch.Tensor:
        lengths = self.lengths
        if lengths is None or all(length == padded for length in lengths):
            # Copied, as below: for a view, compiled code would be made anew. Flattening copies most anyway.
            return torch.empty_like(joint[0]).copy_(self._kernel(*joint))
        out = torch.zeros_like(joint[0])
        for row, length in enumerate(lengths):
            own = [torch.cat([t[row : row + 1, :length], t[row : row + 1, padded:]], dim=1) for t in joint]
            states = self._kernel(*own)[0]
            out[row, :length], out[row, padded:] = states[:length], states[length:]
        return out

    def _kernel(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return dispatch_attention_fn(
            q, k, v, backend=self._attention_backend, parallel_config=self._parallel_config
        )

"""Prompts, encoded and remembered."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch

from deployments.contracts.messages import ImageRequest

REMEMBERED_TOKENS = 8192
"""Embeddings kept: 60 MB at the full size. Negative prompts, above all, come again and again."""


@dataclass(frozen=True, eq=False)
class Text:
    """One encoded prompt."""

    states: torch.Tensor
    """(1, tokens, width)."""

    @property
    def tokens(self) -> int:
        return self.states.shape[1]


class TextEncoder:
    """Each prompt by itself, as the stock pipeline does for one request: no padding, hence the same bits."""

    def __init__(self, pipe: Any, max_tokens: int) -> None:
        self._pipe, self._max_tokens = pipe, max_tokens
        self._known: OrderedDict[str, Text] = OrderedDict()

    @torch.no_grad()
    def __call__(self, prompt: str, pictures: Any = None) -> Text:
        """Encode a prompt; `pictures` (PIL, for edit models) are read beside it, and then nothing is kept."""
        if pictures is not None:
            states, _ = self._pipe.encode_prompt(prompt=prompt, image=pictures)
            return Text(states)
        if prompt in self._known:
            self._known.move_to_end(prompt)
            return self._known[prompt]
        states, _ = self._pipe.encode_prompt(prompt=prompt, max_sequence_length=self._max_tokens)
        text = self._known[prompt] = Text(states)
        while len(self._known) > 1 and sum(t.tokens for t in self._known.values()) > REMEMBERED_TOKENS:
            self._known.popitem(last=False)
        return text


def prompts(request: ImageRequest) -> list[str]:
    """What is to be encoded: the prompt and, where guidance runs, the negative one."""
    # Guidance runs only above 1 and with a negative prompt, of which a blank is one.
    guided = [printable(request.negative_prompt or " ")] if request.cfg_scale > 1 else []
    return [printable(request.prompt), *guided]


def printable(text: str) -> str:
    """Lone surrogates, which JSON can carry, make the tokenizer fail."""
    return text.encode("utf-8", "replace").decode("utf-8")

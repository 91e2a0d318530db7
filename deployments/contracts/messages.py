"""Frozen messages that cross processes. A text request stays the client's dict, which vLLM itself parses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np

OutputFormat = Literal["png", "webp", "jpeg"]
Surface = Literal[
    "chat",
    "completions",
    "responses",
    "messages",
    "count_tokens",
    "tokenize",
    "tokenize_chat",
    "detokenize",
]
"""The API that a body is written in: OpenAI's three, Anthropic's two, vLLM's own three."""

MAX_PROMPTS = 16
"""Prompts in one completion request: each takes a slot of the engine."""


@dataclass(frozen=True)
class ImageSource:
    """An image as the client named it: exactly one of `url` (http, https or data) or `data` is set."""

    url: str | None = None
    data: bytes | None = None
    param: str | None = None
    """Where it stood in the request, for error messages (`messages.0.content.1.image_url`)."""


@dataclass(frozen=True)
class Picture:
    """A decoded image on its way to a GPU replica."""

    pixels: np.ndarray
    """uint8, shape (height, width, 3), RGB, C-contiguous. Read-only when it arrives by reference."""
    digest: str
    """Hex SHA-256 over shape and pixels: the key of the engine's multimodal cache."""


@dataclass(frozen=True)
class ChatRequest:
    """One request to a language model.

    `body` is the client's request; image parts in it have become `{"type": "picture", "picture": k}`,
    where k counts the pictures passed beside the request. `surface` says whose shape it has.
    """

    request_id: str
    body: dict[str, Any]
    surface: Surface = "chat"


@dataclass(frozen=True)
class ImageRequest:
    """One image generation: `n` pictures of one prompt, sample i seeded with `seed + i`."""

    request_id: str
    prompt: str
    negative_prompt: str | None
    width: int
    height: int
    steps: int
    cfg_scale: float
    seed: int
    n: int = 1
    output_format: OutputFormat = "png"
    output_compression: int | None = None
    """Quality for webp and jpeg, 0 to 100; None for the format's default."""


@dataclass(frozen=True)
class ImageStep:
    """Denoising step `step` of `steps` (counted from 1) of picture `index` is done."""

    index: int
    step: int
    steps: int


@dataclass(frozen=True)
class ImageDone:
    """Picture `index` is finished and encoded."""

    index: int
    data: bytes
    seed: int


@dataclass(frozen=True)
class ImageUsage:
    """Last event: what the request cost. Image tokens are latent tokens, all pictures together."""

    text_tokens: int
    image_tokens: int


ImageEvent = ImageStep | ImageDone | ImageUsage

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

Purpose = Literal["look", "paint", "mask"]
"""What an image is for. look: a language model reads it, at its pixel budget. paint: an image model repaints
it, at its own size. mask: only its alpha counts, 0 where the picture may be repainted."""

Detail = Literal["low", "auto", "high"]
"""How closely a language model looks at a picture: which pixel budget it is reduced to."""


def holds_at_most(body: dict[str, Any], most: int) -> bool:
    """Whether a body has no more than so many characters and items, all of it together."""
    inside: list[Any] = [body]
    while inside:
        item = inside.pop()
        if isinstance(item, str | list | tuple | dict):
            most -= len(item)
            if most < 0:
                return False
        if isinstance(item, dict):
            inside.extend(item.values())
        elif isinstance(item, list | tuple):
            inside.extend(item)
    return True


SMALL_BYTES = 2**20
"""Pictures up to this travel by value between deployments."""

MAX_PROMPTS = 16
"""Prompts in one completion request: each takes a slot of the engine."""


@dataclass(frozen=True)
class ImageSource:
    """An image as the client named it: exactly one of `url` (http, https or data) or `data` is set."""

    url: str | None = None
    data: bytes | None = None
    param: str | None = None
    """Where it stood in the request, for error messages (`messages.0.content.1.image_url`)."""
    purpose: Purpose = "look"
    detail: Detail = "auto"
    """For purpose "look"."""
    scope: str = ""
    """Whose it is. Caches of pictures are not shared between scopes: a quick answer, from one that is
    known, would tell that somebody else has sent it."""
    max_side: int | None = None
    """A picture with a longer side, in pixels, is refused; None: by the general limits alone."""
    sha256: str = ""
    """Hex, of `data`, if whoever sends it has taken it."""


@dataclass(frozen=True)
class Picture:
    """A decoded image on its way to a GPU replica."""

    pixels: np.ndarray
    """uint8, C-contiguous: shape (height, width, 3), RGB; of a mask (height, width), 255 where the picture is
    to be repainted and 0 where it stays. Read-only when it arrives by reference."""
    digest: str
    """Hex SHA-256 over scope, shape and pixels: the key of the engine's multimodal cache."""


@dataclass(frozen=True)
class ChatRequest:
    """One request to a language model.

    `body` is the client's request; image parts in it have become `{"type": "picture", "picture": k}`,
    where k counts the pictures passed beside the request. `surface` says whose shape it has.
    """

    request_id: str
    body: dict[str, Any]
    surface: Surface = "chat"
    affinity: str = ""
    """Requests that share it find more in the caches of one replica; empty where that does not matter."""


@dataclass(frozen=True)
class ImageEdit:
    """How the pictures beside an ImageRequest are used: the first is repainted, more are references for
    models that take several, and the last is the mask if `masked`."""

    strength: float = 1.0
    """Share of the denoising that is done, in (0, 1]: at 1 only unmasked pixels survive."""
    masked: bool = False
    placement: tuple[int, int] | None = None
    """Left and top of the source on a larger canvas (outpainting); None: it is scaled to the canvas."""


@dataclass(frozen=True)
class ImageRequest:
    """One image generation: `n` pictures of one prompt, sample i seeded with `seed + i`.

    An edit of 0x0 keeps the size of its picture: the replica shell fills it in before the engine sees it.
    """

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
    partial_images: int = 0
    """Previews of each picture on its way, evenly over its steps."""
    priority: int = 0
    """Higher goes first; requests of one priority take fair turns."""
    edit: ImageEdit | None = None


@dataclass(frozen=True)
class ImageQueued:
    """First event, and again whenever the position changes: `ahead` requests go before this one."""

    ahead: int
    eta_seconds: float | None
    """Until the last picture should be done, from measured step times; None before anything was measured."""


@dataclass(frozen=True)
class ImageStep:
    """Denoising step `step` of `steps` (counted from 1) of picture `index` is done."""

    index: int
    step: int
    steps: int


@dataclass(frozen=True)
class ImagePreview:
    """What picture `index` is about to become, encoded as the request asks; `partial` counts from 0."""

    index: int
    partial: int
    data: bytes


@dataclass(frozen=True)
class ImageDone:
    """Picture `index` is finished and encoded. `seed` and `steps` are those it was really painted with: after
    a failure that healed they differ from the request's, and `healed` says why."""

    index: int
    data: bytes
    seed: int
    steps: int
    healed: str | None = None


@dataclass(frozen=True)
class ImageUsage:
    """Last event: what the request cost. Image tokens are latent tokens, all pictures together."""

    text_tokens: int
    image_tokens: int
    input_image_tokens: int = 0
    """Latent tokens of the pictures that an edit starts from."""


ImageEvent = ImageQueued | ImageStep | ImagePreview | ImageDone | ImageUsage


@dataclass(frozen=True)
class QueuedImage:
    """One request as the queue sees it."""

    request_id: str
    ahead: int
    """Requests before it; 0 while it is being painted."""
    step: int
    """Denoising steps done, all its pictures together."""
    steps: int
    width: int
    height: int
    n: int
    eta_seconds: float | None


@dataclass(frozen=True)
class ImageQueue:
    """The whole queue of an engine, in the order in which it works."""

    requests: tuple[QueuedImage, ...] = ()
    drain_seconds: float | None = None
    """Until all of it should be done; None before anything was measured."""
    average_seconds: float | None = None
    """Of the last requests that finished, from arrival to end."""
    memory_mb: float = 0.0
    """Held by the engine: GPU memory, or the process's on a CPU."""

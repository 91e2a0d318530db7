"""Body of `POST /v1/images/generations`: OpenAI's fields and the usual extensions for diffusion models."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta


class ImagesGenerations(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Unknown fields are refused: a misspelt `num_inference_steps` must not silently change the picture."""

    prompt: Annotated[str, Meta(min_length=1, max_length=32_000)]
    model: str | None = None
    n: Annotated[int, Meta(ge=1, le=10)] | None = None
    size: str | None = None
    quality: Literal["auto", "low", "medium", "standard", "high", "hd", "xhigh", "max"] | None = None
    background: Literal["auto", "opaque"] | None = None
    output_format: Literal["png", "webp", "jpeg"] | None = None
    output_compression: Annotated[int, Meta(ge=0, le=100)] | None = None
    response_format: Literal["b64_json"] | None = None
    # Extensions.
    seed: Annotated[int, Meta(ge=0, le=2**53)] | None = None
    negative_prompt: Annotated[str, Meta(max_length=32_000)] | None = None
    num_inference_steps: Annotated[int, Meta(ge=1)] | None = None
    guidance: Annotated[float, Meta(ge=1, le=20)] | None = None
    # Of OpenAI's service alone; taken, since its SDK sends them, and without effect here.
    moderation: str | None = None
    style: str | None = None
    user: str | None = None
    safety_identifier: str | None = None
    # Only their neutral values are taken: see the dialect.
    stream: bool | None = None
    partial_images: int | None = None

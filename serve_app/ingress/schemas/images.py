"""Bodies of OpenAI's image APIs: OpenAI's fields and the usual extensions for diffusion models."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta


class Painting(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """What generations and edits share.

    Unknown fields are refused: a misspelt `num_inference_steps` must not silently change the picture.
    """

    prompt: Annotated[str, Meta(min_length=1, max_length=32_000)]
    model: str | None = None
    n: Annotated[int, Meta(ge=1, le=10)] | None = None
    size: str | None = None
    quality: Literal["auto", "low", "medium", "standard", "high", "hd", "xhigh", "max"] | None = None
    background: Literal["auto", "opaque"] | None = None
    output_format: Literal["png", "webp", "jpeg"] | None = None
    output_compression: Annotated[int, Meta(ge=0, le=100)] | None = None
    response_format: Literal["b64_json"] | None = None
    stream: bool | None = None
    partial_images: Annotated[int, Meta(ge=0, le=3)] | None = None
    # Extensions.
    seed: Annotated[int, Meta(ge=0, le=2**53)] | None = None
    negative_prompt: Annotated[str, Meta(max_length=32_000)] | None = None
    num_inference_steps: Annotated[int, Meta(ge=1)] | None = None
    guidance: Annotated[float, Meta(ge=1, le=20)] | None = None
    priority: Annotated[int, Meta(ge=-10, le=10)] = 0
    # Of OpenAI's service alone; taken, since its SDK sends them, and without effect here.
    user: str | None = None
    safety_identifier: str | None = None


class ImagesGenerations(Painting, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """`POST /v1/images/generations`."""

    moderation: str | None = None
    style: str | None = None


class ImageReference(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """An image in a JSON body."""

    image_url: str


class ImagesEdits(Painting, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """`POST /v1/images/edits`. In a form, the images and the mask are files beside these fields."""

    input_fidelity: Literal["high", "low"] | None = None
    images: list[ImageReference] | None = None
    mask: ImageReference | None = None
    # Extensions.
    strength: Annotated[float, Meta(gt=0, le=1)] | None = None
    placement: str | None = None

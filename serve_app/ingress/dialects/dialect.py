"""What every text dialect shares: how it is described, and the checks that all of them make."""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from deployments.contracts.errors import InvalidImage, InvalidRequest
from deployments.contracts.messages import Detail, ImageSource
from deployments.engines.image_headers import sniff
from serve_app.graph.operations import ChatCall
from serve_app.ingress.sse import DATA, Wire

MAX_CHOICES = 16
"""vLLM bounds `n` at 16,384: one request could fill every slot of an engine."""

_DETAILS: dict[str, Detail] = {"low": "low", "auto": "auto", "high": "high", "original": "high"}
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{64}")
_URL_SAFE = str.maketrans("+/", "-_")


@dataclass(frozen=True)
class Dialect:
    """One API of text."""

    call: Callable[[dict[str, Any], int], ChatCall]
    """A body and the most images that it may hold, as a core request. Raises InvalidRequest."""
    wire: Wire | None = DATA
    """How its streams look; None if it has none."""


class Images:
    """Lifts images out of a body.

    Args:
        most: that one request may hold.
        param: the field that holds them all.
    """

    def __init__(self, most: int, param: str) -> None:
        self._most = most
        self._param = param
        self._lifted: list[ImageSource] = []

    def lift(self, url: Any, param: str, detail: Any = None, detail_param: str = "") -> dict[str, Any]:
        """The part that stands where the image stood.

        Args:
            url: an http(s) or data URL, or the image itself as base64.
            param: the field that holds it.
            detail: OpenAI's word for how closely to look, if the API has one.
            detail_param: the field that holds that.

        Raises:
            InvalidImage, InvalidRequest: it is none of these.
        """
        source = ImageSource(url=_image_url(url, param), param=param, detail=_detail(detail, detail_param))
        self._lifted.append(source)
        return {"type": "picture", "picture": len(self._lifted) - 1}

    def all(self) -> tuple[ImageSource, ...]:
        """What was lifted. Raises InvalidImage if it is too much."""
        if len(self._lifted) > self._most:
            raise InvalidImage(
                f"{len(self._lifted)} images in one request; at most {self._most} are allowed.",
                param=self._param,
                code="too_many_images",
            )
        return tuple(self._lifted)


def _image_url(url: Any, param: str) -> str:
    # Only the beginning is looked at here: the rest may be megabytes.
    start = url[:256].lstrip() if isinstance(url, str) else ""
    if start.lower().startswith(("data:", "http://", "https://")):
        return str(url)
    if not _BASE64.match(start):
        raise InvalidImage(
            f"'{param}' must hold an http(s) URL, or the image itself as 'data:image/png;base64,...' or as"
            " plain base64.",
            param=param,
        )
    if sniff(urlsafe_b64decode(start[:16].translate(_URL_SAFE))) is None:
        raise InvalidImage(
            f"'{param}' holds base64, but not of an image. Send a PNG, JPEG, WebP or GIF image.", param=param
        )
    return f"data:;base64,{url}"


def _detail(detail: Any, param: str) -> Detail:
    if detail is None:
        return "auto"
    if not isinstance(detail, str) or detail not in _DETAILS:
        raise InvalidRequest(
            f"'{param}' must be one of {', '.join(_DETAILS)}.", param=param, code="invalid_value"
        )
    return _DETAILS[detail]


def check_model(body: dict[str, Any]) -> None:
    """Raises InvalidRequest for a model that is not a name."""
    model = body.get("model")
    if model is not None and not isinstance(model, str):
        raise InvalidRequest("'model' must be a string: one of the ids in GET /v1/models.", param="model")


def check_choices(body: dict[str, Any]) -> None:
    """Raises InvalidRequest for more answers than one request may ask for."""
    choices = body.get("n")
    if isinstance(choices, int) and choices > MAX_CHOICES:
        raise InvalidRequest(f"'n' may be at most {MAX_CHOICES}.", param="n", code="invalid_value")


def required_list(body: dict[str, Any], name: str, example: str) -> list[Any]:
    """A list with at least one item. Raises InvalidRequest."""
    value = body.get(name)
    if value is None:
        raise InvalidRequest(
            f"'{name}' is missing: send a list such as {example}.",
            param=name,
            code="missing_required_parameter",
        )
    if not isinstance(value, list) or not value:
        raise InvalidRequest(
            f"'{name}' must be a list with at least one item, such as {example}.", param=name
        )
    return value


def wrong_type(param: str, allowed: str) -> InvalidRequest:
    """The error for a part of a type that is not taken."""
    return InvalidRequest(f"'{param}.type' must be {allowed}.", param=f"{param}.type", code="invalid_value")

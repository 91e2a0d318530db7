"""Which replica a conversation or a picture belongs to: the one whose caches already hold it.

Nothing is remembered. A request has a key, and the replicas are ranked by a hash of the key and their own
names (rendezvous hashing): every ingress ranks them alike, and who comes or goes moves its own share only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from deployments.contracts.messages import ImageSource

OVER_MEAN, SLACK = 1.25, 2
"""A replica is passed over while it has more than this share of the mean load and this many requests more."""
ENDS = 64 * 1024
"""Bytes of a picture that are looked at, from each end: a mistake only costs a cache miss."""


def affinity_key(body: Mapping[str, Any], images: Sequence[ImageSource]) -> str:
    """The same for all turns of a conversation, and for all requests that begin with the same picture.

    A conversation is known by what comes up to its first user message, and if that shows a picture, by the
    picture alone: its encoding costs more than the text around it. Empty if there is nothing to go by.
    """
    start = _start(body)
    if not start:
        return ""
    numbers = _pictures(start[-1])
    if numbers and numbers[0] < len(images):
        image = images[numbers[0]]
        data: bytes | str = image.data or image.url or ""
        return _digest(repr((len(data), data[:ENDS], data[-ENDS:])).encode())
    return _digest(msgspec.json.encode(start))


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _start(body: Mapping[str, Any]) -> list[Any]:
    """The conversation up to its first user message."""
    given = body.get("messages") or body.get("input") or body.get("prompt")
    if isinstance(given, str):
        return [given]
    start: list[Any] = [body["system"]] if body.get("system") else []
    for message in given if isinstance(given, list) else []:
        start.append(message)
        if not isinstance(message, dict) or message.get("role") == "user":
            break
    return start


def _pictures(message: Any) -> list[int]:
    content = message.get("content") if isinstance(message, dict) else None
    parts = content if isinstance(content, list) else []
    return [part["picture"] for part in parts if isinstance(part, dict) and part.get("type") == "picture"]


def ranked(key: str, loads: Mapping[str, int]) -> list[str]:
    """Replicas in the order in which a request should try them.

    Args:
        key: of the request; without one only the load counts.
        loads: replica → requests it has.
    """
    by_load = sorted(loads, key=lambda name: loads[name])
    if not key:
        return by_load
    limit = OVER_MEAN * sum(loads.values()) / max(len(loads), 1) + SLACK
    first = max(loads, key=lambda name: hashlib.blake2b(f"{key} {name}".encode(), digest_size=8).digest())
    if loads[first] > limit:
        return by_load
    return [first, *(name for name in by_load if name != first)]

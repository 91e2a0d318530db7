"""Whose request it is, as far as caches care."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping


def scope_of(headers: Mapping[str, str]) -> str:
    """One scope for each bearer token or API key; those who send none share the empty one.

    A hash, since what crosses processes and keys caches should not be the token itself.
    """
    token = headers.get("authorization") or headers.get("x-api-key") or ""
    return hashlib.sha256(token.encode()).hexdigest() if token else ""

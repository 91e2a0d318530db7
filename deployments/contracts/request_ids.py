"""The two ids of a request: the client's, and ours, which is that one with a suffix of our own.

Two clients may send the same id, and an engine must never meet one twice.
"""

from __future__ import annotations

import secrets

_SUFFIX_BYTES = 6
_SUFFIX = 1 + 2 * _SUFFIX_BYTES


def unique_id(client_id: str) -> str:
    """Our id for a request whose client calls it `client_id`."""
    return f"{client_id}-{secrets.token_hex(_SUFFIX_BYTES)}"


def client_id(request_id: str) -> str:
    """What the client calls the request with this id of ours: its `x-request-id`."""
    return request_id[:-_SUFFIX]


def is_named(request_id: str, name: str) -> bool:
    """Whether `name` is the client's id or ours of the request with this id of ours."""
    return name in (request_id, client_id(request_id))

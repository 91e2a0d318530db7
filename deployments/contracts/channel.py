"""What goes over the connection that carries tokens from a replica straight to the ingress.

One connection per pair, for all their streams. The replica dials the address that came with the request and
shows the token that came with it. From then on both send frames: a length, then MessagePack. The replica puts
what one step of its engine gave all streams into one frame; the ingress asks it to pause a stream that is
read too slowly, and sends a lone request ahead of the call that asks for it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec

from deployments.contracts.messages import ChatRequest

TOKEN_BYTES = 32

Part = tuple[int, list[bytes], bool]
"""Stream, its next chunks, and whether it ends with them."""
Word = tuple[int, bool | ChatRequest]
"""Stream, and whether to pause it, or the request that it will be asked for with."""

_LENGTH = struct.Struct(">I")
_encode = msgspec.msgpack.Encoder().encode
parts_of = msgspec.msgpack.Decoder(list[Part]).decode
word_of = msgspec.msgpack.Decoder(Word).decode


@dataclass(frozen=True)
class Address:
    """Where the reader of a stream listens."""

    host: str
    port: int
    token: bytes = field(repr=False)
    stream: int


def frame(payload: list[Part] | Word) -> bytes:
    """One frame.

    Raises:
        ValueError, OverflowError, RecursionError: MessagePack has no form for a request's body.
    """
    data = _encode(payload)
    return _LENGTH.pack(len(data)) + data


class Frames:
    """Cuts received bytes into the payloads of frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Payloads that are complete with `data`."""
        buffer = self._buffer
        buffer += data
        while len(buffer) >= _LENGTH.size:
            end = _LENGTH.size + _LENGTH.unpack_from(buffer)[0]
            if len(buffer) < end:
                return
            payload = bytes(buffer[_LENGTH.size : end])
            del buffer[:end]
            yield payload

"""The program of a decoding process: one image after another, in bounded memory, until its socket closes.

Started by `deployments.engines.decoders` as `python -m deployments.engines.decode_worker FD MEGABYTES`. It
imports Pillow and nothing larger, holds no secrets, and answers in JSON, so that a picture that takes this
process over gets no further.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import sys
import traceback
import warnings
from typing import Any

from deployments.contracts.errors import AtelierError
from deployments.engines.image_files import Wanted, decode_file

YIELDING = 5
"""Added to the process's niceness. Where an engine shares the machine, pictures that are further on go first:
of sixteen that come together, the engine gets one sooner, and 5% more are answered in a second."""
MESSAGE = 65_536
"""Bytes of a message at most. Pixels do not travel in messages but in memory that both sides hold."""


def main(fd: int, megabytes: int) -> None:
    """Serve the socket `fd` until the other side is gone."""
    os.nice(YIELDING)
    warnings.simplefilter("ignore")  # what Pillow has to say about odd files is nobody's news
    _preload()
    _bound(megabytes)
    link = socket.socket(fileno=fd)
    link.send(b"ready")
    while True:
        message, files, _, _ = socket.recv_fds(link, MESSAGE, 2)
        if not message:
            return
        request = json.loads(message)
        # Ends this process if the replica that would have done so is gone.
        signal.alarm(request["alarm"])
        answer = _answer(Wanted(**request["wanted"]), *files)
        signal.alarm(0)
        link.send(json.dumps(answer).encode()[:MESSAGE])


def _preload() -> None:
    from PIL import GifImagePlugin, Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin  # noqa: F401


def _bound(megabytes: int) -> None:
    """Memory beyond what the interpreter and Pillow take; no core dumps."""
    with open("/proc/self/statm") as file:
        taken = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    most = taken + megabytes * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _answer(wanted: Wanted, given: int, room: int) -> dict[str, Any]:
    """Reads the file `given`, writes pixels to the file `room`, and says what they are."""
    try:
        with open(room, "wb") as out:
            with open(given, "rb") as file:
                file.seek(0)  # the position is shared with whoever wrote it
                data = file.read()
            decoded = decode_file(data, wanted)
            out.write(decoded.data)
        return {"shape": decoded.shape, "digest": decoded.digest}
    except AtelierError as error:
        return {"kind": error.kind, "message": error.message, "code": error.code}
    except MemoryError:
        return {"kind": "memory"}
    except Exception:
        return {"kind": "bug", "message": traceback.format_exc()[-8000:]}


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))

"""Decodes images in processes of their own, so that a hostile file costs one of them and not the replica.

Each process is bounded in memory; one that takes too long is killed, and another takes its place. Bytes and
pixels are handed over as anonymous files in memory, which nobody has to serialise.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import math
import mmap
import os
import queue
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

import deployments
from deployments.contracts.errors import AtelierError, EngineFailed, InvalidImage, PayloadTooLarge
from deployments.contracts.messages import Picture
from deployments.contracts.settings import PreprocessingSettings
from deployments.engines.decode_worker import MESSAGE
from deployments.engines.image_files import Wanted

logger = logging.getLogger(__name__)

START_S = 60
"""For a process to import Pillow, on however loaded a machine."""
_ROOT = str(Path(deployments.__path__[0]).parent)
_KEPT = ("PATH", "LD_LIBRARY_PATH", "LANG", "TMPDIR")
"""What a process that reads hostile files gets to see of the environment."""
_MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(32 * 2**20), "MALLOC_TRIM_THRESHOLD_": str(64 * 2**20)}
"""Keep up to 64 MB between pictures: to give all of it back costs 12 ms of page faults per 12 megapixels."""
_KINDS = {"invalid": InvalidImage, "too_large": PayloadTooLarge}


class Decoders:
    """A pool of decoding processes. They start when they are needed, or all at once by `start`.

    Args:
        settings: `decode_workers`, `decode_memory_mb` and `decode_timeout_s` of it.
    """

    def __init__(self, settings: PreprocessingSettings) -> None:
        self._settings = settings
        count = settings.decode_workers or max(2, math.ceil(settings.num_cpus))
        # One thread drives one process: the pool's size bounds how many pictures are in memory at once.
        self._threads = ThreadPoolExecutor(count, "decode")
        self._idle: queue.LifoQueue[_Process] = queue.LifoQueue()
        for _ in range(count):
            self._idle.put(_Process(settings.decode_memory_mb))

    async def start(self) -> None:
        """Returns when every process is up. Raises EngineFailed if one does not come up."""
        loop = asyncio.get_running_loop()
        processes = [self._idle.get_nowait() for _ in range(self._idle.qsize())]
        try:
            await asyncio.gather(*(loop.run_in_executor(self._threads, each.start) for each in processes))
        finally:
            for each in processes:
                self._idle.put(each)

    async def decode(self, data: bytes, wanted: Wanted) -> Picture:
        """The picture in a file.

        Raises:
            InvalidImage, PayloadTooLarge: not an allowed image, or over a limit; without a `param`.
            EngineFailed: no decoding process can be started.
        """
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._decode, data, wanted)

    def _decode(self, data: bytes, wanted: Wanted) -> Picture:
        process = self._idle.get()
        try:
            return process.decode(data, wanted, self._settings.decode_timeout_s)
        finally:
            self._idle.put(process)

    def close(self) -> None:
        """End every process; waits for those at work."""
        self._threads.shutdown(cancel_futures=True)
        while not self._idle.empty():
            self._idle.get_nowait().stop()


class _Process:
    """One decoding process, started anew whenever it is gone. Belongs to one thread at a time."""

    def __init__(self, megabytes: int) -> None:
        self._megabytes = megabytes
        self._child: subprocess.Popen[bytes] | None = None
        self._link: socket.socket | None = None
        self._ready = False

    def start(self) -> socket.socket:
        """The link to the process, once that is ready for work."""
        if self._child is not None and self._child.poll() is not None:
            self.stop()
        link = self._link or self._spawn()
        if not self._ready:
            link.settimeout(START_S)
            with contextlib.suppress(OSError):
                self._ready = link.recv(MESSAGE) != b""
        if not self._ready:
            self.stop()
            raise EngineFailed("The image decoder could not be started.")
        return link

    def _spawn(self) -> socket.socket:
        """Start the process, without waiting for it."""
        link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        words = ["-m", "deployments.engines.decode_worker", str(theirs.fileno()), str(self._megabytes)]
        kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
        with theirs:
            self._child = subprocess.Popen(
                [sys.executable, *words],
                env={**kept, **_MALLOC, "PYTHONPATH": _ROOT},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # an interrupt at the terminal is for the server
            )
        self._link, self._ready = link, False
        return link

    def stop(self) -> None:
        """Kill it, if it is there."""
        child, self._child = self._child, None
        link, self._link = self._link, None
        if link is not None:
            link.close()
        if child is not None:
            child.kill()
            child.wait()

    def _replace(self) -> None:
        self.stop()
        self._spawn()  # at once: the next picture is somebody else's

    def decode(self, data: bytes, wanted: Wanted, seconds: float) -> Picture:
        request = {"wanted": asdict(wanted), "alarm": math.ceil(seconds) + 1}
        link = self.start()
        with _memory_file(data) as given, _memory_file() as room:
            socket.send_fds(link, [json.dumps(request).encode()], [given, room])
            answer = self._receive(link, seconds)
            if "shape" in answer:
                return Picture(_pixels(room, answer["shape"]), str(answer["digest"]))
        if answer["kind"] == "memory":
            self._replace()  # what it could not finish it may not have let go of
        raise _error(answer)

    def _receive(self, link: socket.socket, seconds: float) -> dict[str, Any]:
        link.settimeout(seconds)
        try:
            message = link.recv(MESSAGE)
        except TimeoutError:
            self._replace()
            raise InvalidImage(
                f"The image takes longer than {seconds:g} s to decode. Send a smaller or simpler one.",
                code="image_too_slow",
            ) from None
        except OSError:
            message = b""
        if not message:
            logger.warning("an image ended the process that decoded it")
            self._replace()
            raise InvalidImage("The image is damaged and cannot be decoded.")
        answer: dict[str, Any] = json.loads(message)
        return answer


def _error(answer: dict[str, Any]) -> AtelierError:
    kind = _KINDS.get(answer["kind"])
    if kind is not None:
        return kind(answer["message"], code=answer["code"])
    if answer["kind"] == "memory":
        return InvalidImage("The image takes too much memory to decode. Send a smaller one.")
    logger.error("decoding failed: %s", answer["message"])
    return EngineFailed("Decoding an image failed.")


@contextlib.contextmanager
def _memory_file(data: bytes = b"") -> Iterator[int]:
    fd = os.memfd_create("image", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        yield fd
    finally:
        os.close(fd)


def _pixels(room: int, shape: list[int]) -> np.ndarray:
    """A read-only array over the file's memory, which lives as long as the array."""
    # A file that shrank under its mapping would take this process down.
    fcntl.fcntl(room, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    memory = mmap.mmap(room, 0, prot=mmap.PROT_READ)
    return np.frombuffer(memory, np.uint8).reshape(shape)

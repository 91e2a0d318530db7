"""The pool of decoding processes: what a hostile file may cost, and what it may not."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from deployments.contracts.errors import EngineFailed, InvalidImage, PayloadTooLarge
from deployments.contracts.settings import PreprocessingSettings
from deployments.engines import decoders as module
from deployments.engines.decoders import Decoders
from deployments.engines.image_files import Wanted, decode_file
from tests.engines.hostile import RED, file, noise, slow_jpeg

WANTED = Wanted(max_bytes=20 * 2**20, max_source_pixels=64_000_000, max_frames=10, max_pixels=1_048_576)


@contextmanager
def pool(**settings: Any) -> Iterator[Decoders]:
    decoders = Decoders(PreprocessingSettings(**{"decode_workers": 1, **settings}))
    try:
        yield decoders
    finally:
        decoders.close()


def workers() -> list[psutil.Process]:
    return [
        child
        for child in psutil.Process().children()
        if child.status() != psutil.STATUS_ZOMBIE and "decode_worker" in " ".join(child.cmdline())
    ]


async def one_worker() -> psutil.Process:
    for _ in range(1000):
        if found := workers():
            return found[0]
        await asyncio.sleep(0.01)
    raise AssertionError("no worker")


async def test_pixels_and_digest_are_those_of_decoding_here() -> None:
    with pool() as decoders:
        for data in (file(noise(64, 48)), file(noise(2000, 1500), "JPEG"), file(noise(48, 64), "WEBP")):
            picture, here = await decoders.decode(data, WANTED), decode_file(data, WANTED)
            assert picture.pixels.shape == here.shape
            assert picture.pixels.tobytes() == here.data
            assert picture.digest == here.digest
            assert not picture.pixels.flags.writeable
    # The pixels outlive the process that made them.
    assert picture.pixels.tobytes() == here.data


async def test_processes_start_when_needed_or_beforehand_and_end_with_the_pool() -> None:
    with pool(decode_workers=3) as decoders:
        assert workers() == []
        await decoders.start()
        assert len(workers()) == 3
        await asyncio.gather(*(decoders.decode(file(noise(40 + i, 40)), WANTED) for i in range(12)))
        assert len(workers()) == 3
    assert workers() == []


async def test_limits_and_damage_leave_the_process_alone() -> None:
    with pool() as decoders:
        await decoders.start()
        (before,) = workers()
        for data, kind in ((b"", InvalidImage), (b"x", InvalidImage), (bytes(21 * 2**20), PayloadTooLarge)):
            with pytest.raises(kind):
                await decoders.decode(data, WANTED)
        assert [worker.pid for worker in workers()] == [before.pid]


async def test_too_much_memory_is_refused_and_the_next_image_is_not() -> None:
    with pool(decode_memory_mb=64) as decoders:
        with pytest.raises(InvalidImage, match="too much memory"):
            await decoders.decode(file(Image.new("RGBA", (6000, 5000))), WANTED)
        picture = await decoders.decode(file(Image.new("RGB", (64, 64), RED)), WANTED)
        assert (picture.pixels == RED).all()


async def test_too_much_time_costs_one_process() -> None:
    with pool(decode_timeout_s=0.5) as decoders:
        await decoders.start()
        (before,) = workers()
        began = time.monotonic()
        with pytest.raises(InvalidImage, match=r"longer than 0\.5 s") as caught:
            await decoders.decode(slow_jpeg(), WANTED)
        assert time.monotonic() - began < 3
        assert caught.value.code == "image_too_slow"
        assert not before.is_running()
        assert (await decoders.decode(file(noise(64, 64)), WANTED)).pixels.shape == (64, 64, 3)


async def test_an_image_that_ends_its_process_is_refused() -> None:
    with pool() as decoders:
        await decoders.start()
        task = asyncio.create_task(decoders.decode(slow_jpeg(), WANTED))
        await asyncio.sleep(0.2)
        (await one_worker()).kill()
        with pytest.raises(InvalidImage, match="damaged"):
            await task
        await decoders.decode(file(noise(64, 64)), WANTED)


async def test_a_process_that_died_or_hung_while_idle_is_replaced() -> None:
    with pool(decode_timeout_s=0.5) as decoders:
        await decoders.start()
        worker = await one_worker()
        worker.kill()
        worker.wait()
        await decoders.decode(file(noise(64, 64)), WANTED)
        os.kill((await one_worker()).pid, signal.SIGSTOP)
        with pytest.raises(InvalidImage):
            await decoders.decode(file(noise(64, 64)), WANTED)
        await decoders.decode(file(noise(64, 64)), WANTED)


async def test_a_process_ends_when_its_replica_does() -> None:
    with pool() as decoders:
        await decoders.start()
        worker = await one_worker()
        process = decoders._idle.get_nowait()
        assert process._link is not None
        process._link.close()  # what the kernel does when the replica is gone
        worker.wait(5)
        process.stop()


async def test_a_process_sees_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UPSTREAM_API_KEY", "secret")
    with pool() as decoders:
        await decoders.start()
        worker = await one_worker()
        assert "secret" not in str(worker.environ())
        assert worker.memory_info().rss < 100 * 2**20  # neither torch nor Ray, nor even NumPy


async def test_a_decoder_that_cannot_start_is_the_server_s_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ROOT", "/nowhere")
    monkeypatch.setattr(module.sys, "executable", "/bin/false")
    with pool() as decoders:
        with pytest.raises(EngineFailed):
            await decoders.start()
        monkeypatch.undo()
        await decoders.decode(file(noise(64, 64)), WANTED)


async def test_bytes_are_not_copied_into_messages() -> None:
    """A file larger than any message, and pixels too."""
    data = file(noise(1000, 1000))
    assert len(data) > 2_000_000
    with pool() as decoders:
        assert np.array_equal((await decoders.decode(data, WANTED)).pixels, np.asarray(noise(1000, 1000)))

"""Chat requests that show a picture each: how many a second a server answers.

The pictures are JPEGs of smooth colour with some detail, made anew from a seed: none is like another, so no
cache knows it, unless the run is about pictures that were seen before.
"""

from __future__ import annotations

import asyncio
import base64
import io
import time
from collections.abc import Iterator
from dataclasses import dataclass

import aiohttp
import numpy as np
from PIL import Image


@dataclass(frozen=True)
class PictureRun:
    """What is sent: `requests` pictures of `size`, or one picture again and again."""

    size: tuple[int, int]
    requests: int
    streams: int
    seen: bool = False


RUNS = {
    "new 512x512 pictures": PictureRun((512, 512), requests=160, streams=16),
    "new 12-megapixel pictures": PictureRun((4000, 3000), requests=24, streams=8),
    "a picture seen before": PictureRun((1024, 1024), requests=160, streams=16, seen=True),
}


def picture(size: tuple[int, int], seed: int) -> str:
    """A JPEG as a data URL."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 255, (12, 16, 3), dtype=np.uint8))
    pixels = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC), dtype=np.int16)
    grain = random.integers(-6, 7, (size[1], size[0], 1), dtype=np.int16)
    buffer = io.BytesIO()
    Image.fromarray(np.clip(pixels + grain, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def bodies(run: PictureRun, model: str, seed: int) -> list[dict[str, object]]:
    """The requests of one run; another seed, other pictures."""
    urls = [picture(run.size, seed)] * run.requests if run.seen else []
    urls = urls or [picture(run.size, seed + i) for i in range(run.requests)]
    text = {"type": "text", "text": "Describe the picture."}
    return [
        {
            "model": model,
            "messages": [
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}, text]}
            ],
            "max_tokens": 64,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
        }
        for url in urls
    ]


def requests_per_second(url: str, run: PictureRun, model: str, seed: int) -> float:
    """Raises RuntimeError if a request fails or ends early."""
    asked = bodies(run, model, seed)
    if run.seen:
        asyncio.run(_send(url, asked[:1], 1))
    return asyncio.run(_send(url, asked, run.streams))


async def _send(url: str, asked: list[dict[str, object]], streams: int) -> float:
    left: Iterator[dict[str, object]] = iter(asked)
    timeout = aiohttp.ClientTimeout(total=300)
    async with aiohttp.ClientSession(timeout=timeout) as session:

        async def work() -> None:
            for body in left:
                async with session.post(f"{url}/v1/chat/completions", json=body) as answer:
                    said = await answer.read()
                if answer.status != 200 or not said.rstrip().endswith(b"[DONE]") or b'"error"' in said:
                    raise RuntimeError(f"{url} answered {answer.status}: {said[-500:]!r}")

        began = time.perf_counter()
        await asyncio.gather(*[work() for _ in range(streams)])
        return len(asked) / (time.perf_counter() - began)

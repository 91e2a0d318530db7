"""Images per second and core: from the bytes that a client sends to pixels at a model's budget.

A 12-megapixel JPEG is made here, with the detail of a photograph. Compared are plain Pillow (open, convert,
resize; with LANCZOS, and with the filter that the deployment uses too) in this process, and the decoding
processes of the preprocessing deployment, hand-over, hash and base64 included. Counted is CPU time, of all
processes together, so that a neighbour's load does not matter; the runs take turns.

    python -m benchmarks.decode [--rounds 5] [--pixels 1048576]

Prints a table and, last, one line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import math
import resource
import statistics
import time
from collections.abc import Awaitable, Callable

import numpy as np
import psutil
from PIL import Image

from deployments.contracts.messages import ImageSource
from deployments.contracts.settings import PreprocessingSettings
from deployments.preprocessing import Preprocessing

SIZE = (4000, 3000)
PER_ROUND = 8


def photograph() -> bytes:
    """Smooth shapes under sensor noise: about 2.2 MB at quality 88."""
    x, y = np.meshgrid(np.arange(SIZE[0], dtype=np.float32), np.arange(SIZE[1], dtype=np.float32))
    red = 127 + 80 * np.sin(x / 90) + 40 * np.cos(y / 37)
    green = 127 + 70 * np.sin((x + y) / 120)
    blue = 127 + 90 * np.cos(x * y / 9e5)
    pixels = np.stack([red, green, blue], -1) + np.random.default_rng(0).normal(0, 6, (*SIZE[::-1], 3))
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=88)
    return buffer.getvalue()


def plain(data: bytes, max_pixels: int, method: Image.Resampling) -> np.ndarray:
    """What one writes without thinking of speed."""
    scale = math.sqrt(max_pixels / (SIZE[0] * SIZE[1]))
    target = (round(SIZE[0] * scale), round(SIZE[1] * scale))
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB").resize(target, method))


def cpu_seconds() -> float:
    """Of this process and the decoding processes, user and system."""
    children = psutil.Process().children(recursive=True)
    own = resource.getrusage(resource.RUSAGE_SELF)
    return own.ru_utime + own.ru_stime + sum(sum(child.cpu_times()[:2]) for child in children)


async def main(rounds: int, max_pixels: int) -> None:
    """Measure and print."""
    data = photograph()
    url = "data:image/jpeg;base64," + base64.b64encode(data).decode()
    settings = PreprocessingSettings(max_pixels=max_pixels, cache_mb=0, decode_workers=1)
    replica = Preprocessing.__new__(Preprocessing)
    await Preprocessing.__init__(replica, settings)
    remembering = Preprocessing.__new__(Preprocessing)
    await Preprocessing.__init__(remembering, settings.model_copy(update={"cache_mb": 64}))

    async def by_pillow(method: Image.Resampling) -> None:
        plain(data, max_pixels, method)

    async def by_us(shell: Preprocessing, source: ImageSource) -> None:
        picture = await shell.prepare(source)
        assert picture.pixels.size <= 3.1 * max_pixels

    ways: dict[str, Callable[[], Awaitable[None]]] = {
        "plain, LANCZOS": lambda: by_pillow(Image.Resampling.LANCZOS),
        "plain, BICUBIC": lambda: by_pillow(Image.Resampling.BICUBIC),
        "decoding process, bytes": lambda: by_us(replica, ImageSource(data=data)),
        "decoding process, data URL": lambda: by_us(replica, ImageSource(url=url)),
        "seen before, data URL": lambda: by_us(remembering, ImageSource(url=url)),
    }
    took: dict[str, list[float]] = {way: [] for way in ways}
    walls: dict[str, list[float]] = {way: [] for way in ways}
    for way in ways.values():
        await way()
    for _ in range(rounds):
        for name, way in ways.items():
            began, wall = cpu_seconds(), time.perf_counter()
            for _ in range(PER_ROUND):
                await way()
            took[name].append((cpu_seconds() - began) / PER_ROUND)
            walls[name].append((time.perf_counter() - wall) / PER_ROUND)
    replica.__del__()
    remembering.__del__()
    report(took, walls, len(data), max_pixels)


def report(took: dict[str, list[float]], walls: dict[str, list[float]], size: int, max_pixels: int) -> None:
    """The table and the line of JSON."""
    print(f"12-megapixel JPEG of {size:,} bytes to {max_pixels:,} pixels")
    print(f"{'':>28} {'CPU ms':>8} {'wall ms':>8} {'images/s/core':>14}")
    cost = {name: statistics.median(seconds) for name, seconds in took.items()}
    for name, seconds in cost.items():
        wall = statistics.median(walls[name])
        print(f"{name:>28} {1000 * seconds:8.1f} {1000 * wall:8.1f} {1 / max(seconds, 1e-4):14.1f}")
    ours = cost["decoding process, bytes"]
    figures = {
        "max_pixels": max_pixels,
        "images_per_s_per_core": round(1 / ours, 1),
        "over_plain_lanczos": round(cost["plain, LANCZOS"] / ours, 2),
        "over_plain_bicubic": round(cost["plain, BICUBIC"] / ours, 2),
        "data_url_over_plain_lanczos": round(cost["plain, LANCZOS"] / cost["decoding process, data URL"], 2),
        "seen_before_ms": round(1000 * cost["seen before, data URL"], 1),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pixels", type=int, default=1_048_576)
    options = parser.parse_args()
    asyncio.run(main(options.rounds, options.pixels))

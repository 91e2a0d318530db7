"""The step scheduler against a lock around the stock diffusers pipeline: same weights, same machine, one run.

Eight clients, each with a fixed list of requests of mixed sizes and step counts; two of them want short ones
only. Both sides live in one process and take turns, round by round, so that a neighbour's load hits both.
Before that one client alone, in turns too. Prints a table and, last, one line of JSON.

    python -m benchmarks.images [--rounds 3] [--threads 1] [--unquantized]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from deployments.contracts.messages import ImageDone, ImageQueued, ImageRequest
from deployments.contracts.settings import ModelSettings
from deployments.engines.diffusers_args import DiffusersArgs
from deployments.engines.diffusers_engine import DiffusersEngine
from deployments.engines.image_ops import encode
from serve_app.settings import load_settings, profile_path

SIZES = [(128, 128), (176, 96), (112, 144)]
LONG_STEPS = [16, 24, 32]
SHORT_STEPS = 4
CLIENTS, SHORT_CLIENTS, LONG_REQUESTS = 8, 2, 2
COLOURS = ["red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink", "black", "white"]

Paint = Callable[[ImageRequest], Awaitable[float | None]]
"""Paints one picture to its PNG; returns the seconds foretold for it, if any."""


@dataclass
class Side:
    """What was measured of one side."""

    seconds: list[float] = field(default_factory=list)
    short: list[float] = field(default_factory=list)
    long: list[float] = field(default_factory=list)
    alone: list[float] = field(default_factory=list)
    foretold: list[tuple[float, float]] = field(default_factory=list)


def work() -> list[list[ImageRequest]]:
    """Each client's requests: the same for both sides and all rounds."""
    chance, lists = random.Random(7), []
    for client in range(CLIENTS):
        short = client < SHORT_CLIENTS
        requests = []
        for number in range(LONG_REQUESTS * 4 if short else LONG_REQUESTS):
            steps = SHORT_STEPS if short else chance.choice(LONG_STEPS)
            prompt = "a " + " ".join(chance.choices(COLOURS, k=chance.randint(3, 12)))
            width, height = chance.choice(SIZES)
            name = f"{client}-{number}"
            requests.append(ImageRequest(name, prompt, " ", width, height, steps, 3.0, client * 100 + number))
        lists.append(requests)
    return lists


class Stock:
    """The stock pipeline behind a lock, in a thread of its own so that the clients' loop stays free."""

    def __init__(self, settings: ModelSettings, args: DiffusersArgs) -> None:
        self._settings, self._args, self._lock = settings, args, asyncio.Lock()
        self._worker, self._pipe = ThreadPoolExecutor(1), None

    async def start(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._worker, self._load)

    def _load(self) -> None:
        import torch

        from deployments.engines.quantization import load_pipeline, resolve_source

        torch.set_num_threads(self._args.threads_for(self._settings.num_cpus) or torch.get_num_threads())
        folder = resolve_source(self._settings.source)
        self._pipe = load_pipeline(folder, getattr(torch, self._args.dtype), self._args.quantize)

    async def paint(self, request: ImageRequest) -> None:
        async with self._lock:
            await asyncio.get_running_loop().run_in_executor(self._worker, self._paint, request)

    def _paint(self, request: ImageRequest) -> bytes:
        import numpy as np
        import torch

        pipe: Any = self._pipe
        image = pipe(
            prompt=request.prompt,
            negative_prompt=request.negative_prompt,
            true_cfg_scale=request.cfg_scale,
            width=request.width,
            height=request.height,
            num_inference_steps=request.steps,
            generator=torch.Generator("cpu").manual_seed(request.seed),
        ).images[0]
        return encode(np.asarray(image), "png")


class Scheduled:
    """The engine as the deployment runs it."""

    def __init__(self, settings: ModelSettings) -> None:
        self._engine = DiffusersEngine(settings)
        self.start = self._engine.start
        self.close = self._engine.close

    async def paint(self, request: ImageRequest) -> float | None:
        foretold, done = None, False
        async for event in self._engine.generate(request):
            if isinstance(event, ImageQueued) and foretold is None:
                foretold = event.eta_seconds
            done = done or isinstance(event, ImageDone)
        if not done:
            raise RuntimeError(f"{request.request_id} ended without a picture")
        return foretold


async def round_of(paint: Paint, side: Side) -> None:
    """All clients at once, each one request after the other."""

    async def client(requests: list[ImageRequest]) -> None:
        for request in requests:
            began = time.perf_counter()
            foretold = await paint(request)
            took = time.perf_counter() - began
            (side.short if request.steps == SHORT_STEPS else side.long).append(took)
            if foretold:
                side.foretold.append((foretold, took))

    began = time.perf_counter()
    await asyncio.gather(*(client(requests) for requests in work()))
    side.seconds.append(time.perf_counter() - began)


async def alone(paint: Paint, side: Side, request: ImageRequest) -> None:
    began = time.perf_counter()
    await paint(request)
    side.alone.append(time.perf_counter() - began)


async def measure(rounds: int, singles: int, settings: ModelSettings) -> tuple[Side, Side]:
    ours, stock = Side(), Side()
    engine = Scheduled(settings)
    pipeline = Stock(settings, DiffusersArgs.model_validate(settings.engine_args))
    await engine.start()  # one after the other: transformers does not load in two threads at once
    await pipeline.start()
    one = ImageRequest("one", "a red circle on a blue background", " ", 128, 128, 16, 3.0, 7)
    for paint in (engine.paint, pipeline.paint):
        await alone(paint, Side(), one)  # warm
    for number in range(singles):
        await alone(pipeline.paint, stock, replace(one, seed=number))
        await alone(engine.paint, ours, replace(one, seed=number))
    for number in range(rounds):
        await round_of(pipeline.paint, stock)
        await round_of(engine.paint, ours)
        print(f"round {number + 1} of {rounds} done", file=sys.stderr, flush=True)
    await engine.close()
    return ours, stock


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[round(share * (len(values) - 1))]


def report(ours: Side, stock: Side) -> dict[str, float]:
    """The table; returns the line of JSON."""
    requests = sum(len(client) for client in work())
    rows = {
        "requests/s, 8 clients": [requests / statistics.median(side.seconds) for side in (ours, stock)],
        "short p95 s": [percentile(side.short, 0.95) for side in (ours, stock)],
        "long p95 s": [percentile(side.long, 0.95) for side in (ours, stock)],
        "one client s": [statistics.median(side.alone) for side in (ours, stock)],
    }
    print(f"{'':>24} {'scheduler':>10} {'lock':>10} {'ratio':>7}")
    for title, (mine, theirs) in rows.items():
        print(f"{title:>24} {mine:10.2f} {theirs:10.2f} {mine / theirs:7.2f}")
    errors = [abs(took - foretold) / took for foretold, took in ours.foretold]
    print(f"{'ETA error, median':>24} {statistics.median(errors):10.0%}")
    ratios = {title: round(mine / theirs, 3) for title, (mine, theirs) in rows.items()}
    return ratios | {"eta error median": round(statistics.median(errors), 3)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--singles", type=int, default=9)
    parser.add_argument("--profile", default="demo")
    parser.add_argument("--threads", type=int, help="torch's threads; by default as the profile says")
    parser.add_argument("--unquantized", action="store_true", help="plain bfloat16 weights on both sides")
    options = parser.parse_args()
    models = load_settings(profile_path(options.profile)).models
    model = next(model for model in models if model.task == "image_generation")
    args = dict(model.engine_args)
    if options.threads:
        args["threads"] = options.threads
    if options.unquantized:
        args.pop("quantize", None)
    model = model.model_copy(update={"engine_args": args})
    ours, stock = asyncio.run(measure(options.rounds, options.singles, model))
    print(json.dumps(report(ours, stock)))


if __name__ == "__main__":
    main()

"""What only the diffusers engine has: torch's failures, guidance, the worker thread."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio

from deployments.contracts.errors import (
    ContextTooLong,
    EncodingFailed,
    EngineFailed,
    InvalidRequest,
    OutOfMemory,
)
from deployments.contracts.messages import ImageDone, ImageEdit, ImageUsage
from deployments.engines import diffusers_engine
from deployments.engines.diffusers_args import DiffusersArgs
from deployments.engines.diffusers_engine import DiffusersEngine
from deployments.engines.painting import another_seed
from tests.contracts.test_image_engines import (
    REQUEST,
    a_source,
    collect,
    pictures,
    settings,
    until_painting,
)

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.real]

SHORT = replace(REQUEST, steps=2)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine() -> AsyncIterator[DiffusersEngine]:
    engine = DiffusersEngine(settings("diffusers"))
    await engine.start()
    yield engine
    await engine.close()


def pipe(engine: DiffusersEngine) -> Any:
    executor: Any = engine._executor
    return executor._pipeline.pipe


async def test_guidance_needs_a_scale_above_one(engine: DiffusersEngine) -> None:
    plain = replace(SHORT, cfg_scale=1.0)
    guided = await pictures(engine, SHORT)
    assert await pictures(engine, plain) == await pictures(engine, replace(plain, negative_prompt="red"))
    assert await pictures(engine, plain) != guided


async def test_the_negative_prompt_is_a_blank_by_default(engine: DiffusersEngine) -> None:
    guided = await pictures(engine, SHORT)
    assert await pictures(engine, replace(SHORT, negative_prompt=None)) == guided
    assert await pictures(engine, replace(SHORT, negative_prompt="red circle")) != guided


async def test_text_tokens_are_counted_by_the_tokenizer(engine: DiffusersEngine) -> None:
    tokenizer = pipe(engine).tokenizer
    for text in (REQUEST.prompt, "蓝色背景上的一个红色圆形", "", "{}"):
        usage = (await collect(engine, replace(SHORT, prompt=text)))[-1]
        assert usage == ImageUsage(len(tokenizer.tokenize(text)), 64)


@pytest.mark.parametrize("param", ["prompt", "negative_prompt"])
async def test_a_prompt_is_refused_rather_than_cut(engine: DiffusersEngine, param: str) -> None:
    changes: dict[str, Any] = {param: "red " * 1200}
    with pytest.raises(ContextTooLong, match="at most 1019 tokens") as caught:
        await collect(engine, replace(SHORT, **changes))
    assert caught.value.param == param


async def test_a_closed_request_stops_within_a_step(
    engine: DiffusersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, transformer = 0, pipe(engine).transformer
    forward = transformer.forward

    def count(**kwargs: Any) -> Any:
        nonlocal steps
        steps += 1
        return forward(**kwargs)

    monkeypatch.setattr(transformer, "forward", count)
    events = engine.generate(replace(REQUEST, steps=1000))
    await until_painting(events)
    await events.aclose()
    before = steps
    await pictures(engine, SHORT)
    # Two steps of the next request, and at most the one that was under way.
    assert steps - before <= 3


@pytest.mark.parametrize(
    ("edit", "sources", "param"),
    [
        (None, 1, "image"),
        (ImageEdit(), 0, "image"),
        (ImageEdit(), 2, "image"),
        (ImageEdit(masked=True), 1, "image"),
        (ImageEdit(strength=0), 1, "strength"),
        (ImageEdit(placement=(1, 0)), 1, "placement"),
    ],
)
async def test_an_edit_that_makes_no_sense_is_refused(
    engine: DiffusersEngine, edit: ImageEdit | None, sources: int, param: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await collect(engine, replace(REQUEST, edit=edit), [a_source()] * sources)
    assert caught.value.param == param


async def test_the_event_loop_stays_free(engine: DiffusersEngine) -> None:
    turns, painting = 0, asyncio.create_task(collect(engine, REQUEST))
    while not painting.done():
        turns += 1
        await asyncio.sleep(0.001)
    assert turns > 3 * len(await painting)


def failing(engine: DiffusersEngine, monkeypatch: pytest.MonkeyPatch, prompt: str, how: Any) -> None:
    """The transformer fails in every batch that holds this prompt; `how` is an error, or None for NaN."""
    executor: Any = engine._executor
    step = executor._denoiser.step

    def fail(batch: Any) -> Any:
        bad = [bool(one.texts[0] is executor._texts._known.get(prompt)) for one in batch]
        forward = executor._denoiser._transformer.forward

        def broken(**kwargs: Any) -> Any:
            if how is not None:
                raise how
            (out,) = forward(**kwargs)
            rows = [row for row, text in enumerate(kwargs["encoder_hidden_states"]) if _holds(text, prompt)]
            out[rows] = float("nan")
            return (out,)

        def _holds(states: Any, prompt: str) -> bool:
            own = executor._texts._known[prompt].states[0]
            return bool((states[: len(own)] == own).all()) and not bool(states[len(own) :].any())

        if not any(bad):
            return step(batch)
        with monkeypatch.context() as patch:
            patch.setattr(executor._denoiser._transformer, "forward", broken)
            return step(batch)

    monkeypatch.setattr(executor._denoiser, "step", fail)


def out_of_memory() -> Exception:
    import torch

    return torch.OutOfMemoryError("tried to allocate 12 GiB at 0x7f00")


BAD = "a bad prompt"


@pytest.mark.parametrize("how", ["nan", "oom"])
async def test_the_culprit_fails_alone_with_the_ways_out(
    engine: DiffusersEngine, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    others = [replace(REQUEST, seed=number, steps=4) for number in range(3)]
    undisturbed = [await pictures(engine, request) for request in others]
    with monkeypatch.context() as patch:
        failing(engine, patch, BAD, out_of_memory() if how == "oom" else None)
        bad = asyncio.create_task(pictures(engine, replace(REQUEST, prompt=BAD, steps=10)))
        painted = await asyncio.gather(*(pictures(engine, request) for request in others))
        with pytest.raises(EngineFailed) as caught:
            await bad
    assert list(painted) == undisturbed
    assert "0x7f00" not in str(caught.value)
    assert caught.value.__context__ is None
    if how == "oom":
        assert isinstance(caught.value, OutOfMemory)
        assert "use a smaller size" in caught.value.suggested_fix
    else:
        assert caught.value.code == "image_not_finite"
        assert caught.value.suggested_fix[:2] == ("reduce num_steps to 8", "try a different seed")
    await engine.check_health()
    assert await pictures(engine, others[0]) == undisturbed[0]


async def test_what_fails_once_is_painted_again_with_fewer_steps(
    engine: DiffusersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    vae, failures = pipe(engine).vae, [1]
    decode = vae.decode

    def once(*args: Any, **kwargs: Any) -> Any:
        out = decode(*args, **kwargs)[0]
        return (out * float("nan"),) if failures and failures.pop() else (out,)

    with monkeypatch.context() as patch:
        patch.setattr(vae, "decode", once)
        events = await collect(engine, replace(REQUEST, steps=5))
    (done,) = [event for event in events if isinstance(event, ImageDone)]
    assert (done.steps, done.seed) == (4, another_seed(7))
    assert done.healed == "not finite at step 5 of 5"
    assert [done.data] == await pictures(engine, replace(REQUEST, steps=4, seed=done.seed))


async def test_an_unknown_failure_is_logged_and_not_told(
    engine: DiffusersEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_args: Any, **_kwargs: Any) -> None:
        raise IndexError("secret at 0x7f00")

    with monkeypatch.context() as patch, caplog.at_level(logging.ERROR):
        patch.setattr(pipe(engine).transformer, "forward", fail)
        with pytest.raises(EngineFailed) as caught:
            await collect(engine, SHORT)
    assert "secret" not in str(caught.value)
    assert any(REQUEST.request_id in r.getMessage() and r.exc_info for r in caplog.records)
    assert await pictures(engine, SHORT)


async def test_an_encoder_that_fails_is_a_typed_error(
    engine: DiffusersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: Any) -> bytes:
        raise OSError("secret")

    with monkeypatch.context() as patch:
        patch.setattr(diffusers_engine, "encode", fail)
        with pytest.raises(EncodingFailed, match="as png") as caught:
            await collect(engine, SHORT)
    assert caught.value.__context__ is None
    assert (await engine.queue()).requests == ()


async def test_a_lost_gpu_is_reported_unhealthy(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = DiffusersEngine(settings("diffusers"))
    await engine.start()

    def fail(*_args: Any, **_kwargs: Any) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(pipe(engine).transformer, "forward", fail)
    with pytest.raises(EngineFailed):
        await collect(engine, SHORT)
    with pytest.raises(EngineFailed, match="GPU context is lost"):
        await engine.check_health()
    await engine.close()


async def test_a_hung_step_is_reported_unhealthy(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = DiffusersEngine(settings("diffusers", stuck_after_s=1e-9))
    await engine.start()
    hangs, goes_on = threading.Event(), threading.Event()

    def hang(*_args: Any, **_kwargs: Any) -> None:
        hangs.set()
        goes_on.wait(10)
        raise RuntimeError

    monkeypatch.setattr(pipe(engine).transformer, "forward", hang)
    task = asyncio.create_task(collect(engine, SHORT))
    await asyncio.to_thread(hangs.wait, 10)
    with pytest.raises(EngineFailed, match="no step"):
        await engine.check_health()
    goes_on.set()
    with pytest.raises(EngineFailed):
        await task
    await engine.close()


async def test_a_source_that_is_not_there_is_named() -> None:
    engine = DiffusersEngine(settings("diffusers").model_copy(update={"source": "./no/such/folder"}))
    with pytest.raises(FileNotFoundError, match="no/such/folder"):
        await engine.start()


async def test_a_share_of_a_gpu_that_is_not_there_is_explained() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("needs a machine without a GPU")
    engine = DiffusersEngine(settings("diffusers").model_copy(update={"gpu_fraction": 0.5}))
    with pytest.raises(RuntimeError, match="torch sees no GPU"):
        await engine.start()


async def test_threads_follow_ray_then_num_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert DiffusersArgs().threads_for(8) is None
    assert DiffusersArgs(threads=2).threads_for(8) == 2
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert [DiffusersArgs().threads_for(cpus) for cpus in (0, 0.5, 1, 2.5)] == [1, 1, 1, 2]

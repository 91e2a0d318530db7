"""What only the diffusers engine has: torch's failures, guidance, the worker thread."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio

from deployments.contracts.errors import ContextTooLong, EngineFailed
from deployments.contracts.messages import ImageUsage
from deployments.engines.diffusers_args import DiffusersArgs
from deployments.engines.diffusers_engine import DiffusersEngine
from tests.contracts.test_image_engines import REQUEST, collect, pictures, settings

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.real]

SHORT = replace(REQUEST, steps=2)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine() -> AsyncIterator[DiffusersEngine]:
    engine = DiffusersEngine(settings("diffusers"))
    await engine.start()
    yield engine
    await engine.close()


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
    tokenizer = engine._runner._pipe.tokenizer
    for text in (REQUEST.prompt, "蓝色背景上的一个红色圆形", "", "{}"):
        usage = (await collect(engine, replace(SHORT, prompt=text)))[-1]
        assert usage == ImageUsage(len(tokenizer.tokenize(text)), 64)


@pytest.mark.parametrize("param", ["prompt", "negative_prompt"])
async def test_a_prompt_is_refused_rather_than_cut(engine: DiffusersEngine, param: str) -> None:
    changes: dict[str, Any] = {param: "red " * 1200}
    with pytest.raises(ContextTooLong, match="at most 1019 tokens") as caught:
        await collect(engine, replace(SHORT, **changes))
    assert caught.value.param == param


async def test_a_closed_request_stops_within_a_step(engine: DiffusersEngine) -> None:
    events = engine.generate(replace(REQUEST, steps=1000))
    await anext(events)
    job: Any = engine._job
    await events.aclose()
    await pictures(engine, SHORT)
    left = [job.events.get_nowait() for _ in range(job.events.qsize())]
    # What the thread had sent before it could see the flag, one more step, and the end mark.
    assert left[-1] is None
    assert len(left) <= 4


async def test_the_event_loop_stays_free(engine: DiffusersEngine) -> None:
    turns, painting = 0, asyncio.create_task(collect(engine, REQUEST))
    while not painting.done():
        turns += 1
        await asyncio.sleep(0.001)
    assert turns > 3 * len(await painting)


async def test_not_a_number_is_an_error_not_a_black_picture(
    engine: DiffusersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = engine._runner._pipe
    decode = pipe.vae.decode
    with monkeypatch.context() as patch:
        patch.setattr(pipe.vae, "decode", lambda *a, **k: (decode(*a, **k)[0] * float("nan"),))
        with pytest.raises(EngineFailed, match="NaN") as caught:
            await collect(engine, SHORT)
    assert caught.value.code == "image_not_finite"
    assert await pictures(engine, SHORT)


async def test_out_of_memory_names_the_way_out(
    engine: DiffusersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    def fail(*_args: Any, **_kwargs: Any) -> None:
        raise torch.OutOfMemoryError("tried to allocate 12 GiB at 0x7f00")

    undisturbed = await pictures(engine, SHORT)
    with monkeypatch.context() as patch:
        patch.setattr(engine._runner._pipe.transformer, "forward", fail)
        with pytest.raises(EngineFailed, match="smaller size") as caught:
            await collect(engine, SHORT)
    assert "0x7f00" not in str(caught.value)
    assert caught.value.__context__ is None
    await engine.check_health()
    assert await pictures(engine, SHORT) == undisturbed


async def test_an_unknown_failure_is_logged_and_not_told(
    engine: DiffusersEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_args: Any, **_kwargs: Any) -> None:
        raise IndexError("secret at 0x7f00")

    with monkeypatch.context() as patch, caplog.at_level(logging.ERROR):
        patch.setattr(engine._runner._pipe.scheduler, "step", fail)
        with pytest.raises(EngineFailed) as caught:
            await collect(engine, SHORT)
    assert "secret" not in str(caught.value)
    assert any(REQUEST.request_id in r.getMessage() and r.exc_info for r in caplog.records)
    assert await pictures(engine, SHORT)


async def test_a_lost_gpu_is_reported_unhealthy(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = DiffusersEngine(settings("diffusers"))
    await engine.start()

    def fail(*_args: Any, **_kwargs: Any) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(engine._runner._pipe.scheduler, "step", fail)
    with pytest.raises(EngineFailed):
        await collect(engine, SHORT)
    with pytest.raises(EngineFailed, match="GPU context is lost"):
        await engine.check_health()
    await engine.close()


async def test_a_hung_step_is_reported_unhealthy() -> None:
    engine = DiffusersEngine(settings("diffusers", stuck_after_s=1e-9))
    await engine.start()
    events = engine.generate(replace(REQUEST, steps=1000))
    await anext(events)
    with pytest.raises(EngineFailed, match="no step"):
        await engine.check_health()
    await events.aclose()
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

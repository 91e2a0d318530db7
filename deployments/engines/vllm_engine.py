"""The chat engine on vLLM: AsyncLLM and vLLM's own serving classes, without vLLM's HTTP server.

Parsing, templates, tools, reasoning and structured outputs are therefore vLLM's. What is ours: arguments
from settings, pictures as arrays, one tree of errors, cancellation, and no process left behind.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from types import SimpleNamespace
from typing import Any

from deployments.contracts.errors import AtelierError, EngineFailed, ModelLoading
from deployments.contracts.messages import ChatRequest, Picture, holds_at_most
from deployments.contracts.settings import ModelSettings
from deployments.engines.chunk_size import ChunkSize
from deployments.engines.orphans import OrphanGuard
from deployments.engines.own_core import OwnCore
from deployments.engines.vllm_arguments import computes_in_one_thread, prepare_environment, serve_arguments
from deployments.engines.vllm_rendering import SHORT, prepare_pictures_alone, render_short_inline, short
from deployments.engines.vllm_requests import (
    BROKEN,
    from_exception,
    from_response,
    quiet_client_errors,
    vllm_request,
)
from deployments.engines.vllm_surfaces import SURFACES, is_error, keep_errors, read_item, show_pictures, shown

logger = logging.getLogger(__name__)

WARM_UP_S = 300
"""For both warm-up requests together; kernels may compile on the way."""
EXIT_S = 5
"""For vLLM's processes to end by themselves before they are killed."""


class VllmEngine:
    def __init__(self, settings: ModelSettings) -> None:
        self._settings = settings
        self._guard = OrphanGuard()
        self._core = OwnCore()
        self._chunk_size = ChunkSize()
        self._llm: Any = None
        self._state: Any = None

    async def start(self) -> None:
        began = time.monotonic()
        prepare_environment(self._settings)
        self._guard.start()
        try:
            # Seconds of imports: in a thread, so that the replica still answers its controller.
            arguments, config = await asyncio.to_thread(self._configure)
            await self._launch(arguments, config)
            await asyncio.wait_for(self._warm_up(), WARM_UP_S)
            if computes_in_one_thread(self._settings, arguments):
                self._core.keep(self._llm.engine_core.resources.engine_manager.processes[0].pid)
        except BaseException:
            await self.close()
            raise
        logger.info("vLLM serves %s after %.1f s", self._settings.id, time.monotonic() - began)

    def _configure(self) -> tuple[Any, Any]:
        import vllm.entrypoints.launchers.api_server.app_state
        import vllm.v1.engine.async_llm  # noqa: F401
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.usage.usage_lib import UsageContext

        arguments = serve_arguments(self._settings)
        engine_args = AsyncEngineArgs.from_cli_args(arguments)
        return arguments, engine_args.create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)

    async def _launch(self, arguments: Any, config: Any) -> None:
        from vllm.entrypoints.launchers.api_server.app_state import init_app_state
        from vllm.envs import enable_envs_cache
        from vllm.v1.engine.async_llm import AsyncLLM

        # Built here, in the event loop, which its sockets and its output handler belong to.
        self._llm = AsyncLLM.from_vllm_config(
            config,
            enable_log_requests=arguments.enable_log_requests,
            # Only vLLM's HTTP server shows them, and they take two fifths of its time per token.
            disable_log_stats=True,
        )
        await self._llm.reset_mm_cache()  # holds the dummy pictures of the profiling run
        state: Any = SimpleNamespace()
        await init_app_state(self._llm, state, arguments, await self._llm.get_supported_tasks())
        quiet_client_errors()
        if getattr(state, "openai_serving_chat", None) is None:
            raise ValueError(f"model {self._settings.id!r}: {self._settings.source} cannot chat")
        show_pictures(state.online_renderer)
        render_short_inline(self._llm.renderer)
        if self._takes_pictures():
            prepare_pictures_alone(self._llm.renderer.get_mm_processor())
        keep_errors(state.anthropic_serving_messages)
        enable_envs_cache()  # as vLLM's other processes do: some variables are looked up for each token
        self._state = state

    async def _warm_up(self) -> None:
        """A request of each kind, so that no user waits for what the first one sets up."""
        text = {"type": "text", "text": "Hello"}
        await self.chat(self._warm_up_request([text]), [])
        if self._takes_pictures():
            picture = _plain_picture()
            request = self._warm_up_request([{"type": "picture", "picture": 0}, text])
            async with aclosing(self.stream_chat(request, [picture])) as chunks:
                async for _ in chunks:
                    pass

    def _takes_pictures(self) -> bool:
        config = self._llm.model_config
        multimodal = config.multimodal_config
        return multimodal is not None and multimodal.get_limit_per_prompt("image") > 0

    def _warm_up_request(self, content: list[dict[str, Any]]) -> ChatRequest:
        body = {"messages": [{"role": "user", "content": content}], "max_tokens": 4}
        return ChatRequest(request_id="warm-up", body=body)

    async def chat(self, request: ChatRequest, pictures: Sequence[Picture]) -> bytes:
        finished = False
        try:
            response = await self._create(request, pictures, stream=False)
            finished = True
        finally:
            if not finished:
                await self._abort(request)
        answer: bytes = response.model_dump_json(**SURFACES[request.surface].dump).encode()
        return answer

    async def stream_chat(
        self, request: ChatRequest, pictures: Sequence[Picture]
    ) -> AsyncGenerator[bytes, None]:
        finished = False
        tokens = self._chunk_size.tokens()
        frames = await self._create(request, pictures, stream=True, tokens=tokens)
        try:
            with self._chunk_size.stream(tokens) as chunk:
                async for item in frames:
                    data = read_item(item)
                    if data is None:
                        break
                    if is_error(data):
                        raise self._broken(request, json.loads(data))
                    chunk()
                    yield data.encode()
            finished = True
        except AtelierError:
            raise
        except Exception as error:  # only responses let one through, and it cannot be the client's by now
            logger.error("vLLM failed", exc_info=error, extra={"request_id": request.request_id})
            raise self._broken(request) from None
        finally:
            if not finished:
                # Closing `frames` leaves vLLM's inner generator to the garbage collector; this does not wait.
                await self._abort(request)
            await frames.aclose()

    async def _create(
        self, request: ChatRequest, pictures: Sequence[Picture], *, stream: bool, tokens: int = 1
    ) -> Any:
        """vLLM's response, or its generator of server-sent events."""
        if self._state is None:
            raise ModelLoading(f"{self._settings.id} is not loaded.", retry_after=self._settings.load_seconds)
        surface = SURFACES[request.surface]
        translated = vllm_request(request, pictures, stream=stream, tokens=tokens)
        serving = getattr(self._state, surface.serving)
        # All that vLLM asks of an HTTP request: where messages take their id from.
        http = SimpleNamespace(headers={"X-Request-Id": request.request_id}, state=SimpleNamespace())
        brief = holds_at_most(request.body, SHORT)
        shown_before, short_before = shown.set(pictures), short.set(brief)
        try:
            response = await getattr(serving, surface.method)(translated, http)
        except Exception as error:
            raise from_exception(error, request) from None
        finally:
            shown.reset(shown_before)
            short.reset(short_before)
        _raise_if_cancelled()
        if hasattr(response, "error"):
            raise from_response(response, request)
        return response

    def _broken(self, request: ChatRequest, frame: dict[str, Any] | None = None) -> Exception:
        llm = self._llm
        if llm is None or llm.errored:
            return from_exception(_dead(llm), request)
        return EngineFailed(BROKEN) if frame is None else from_response(frame, request)

    async def _abort(self, request: ChatRequest) -> None:
        llm, ids = self._llm, SURFACES[request.surface].engine_ids(request.request_id)
        if llm is not None and not llm.errored and ids:
            await llm.abort(ids)

    async def check_health(self) -> None:
        """Asks the engine's own process: one that hangs does not answer, and Serve's timeout counts it."""
        if self._llm is None:
            raise EngineFailed(f"{self._settings.id} is not loaded.")
        try:
            await self._llm.check_health()
            await self._llm.is_sleeping()
        except Exception as error:
            logger.error("vLLM is dead", exc_info=error)
            raise EngineFailed(f"The engine of {self._settings.id} died.") from None

    async def close(self) -> None:
        llm, self._llm, self._state = self._llm, None, None
        if llm is not None:
            llm.shutdown(timeout=EXIT_S)
        self._core.release()
        self._guard.close()

    def unfinished(self) -> int:
        """Requests that hold a slot of the engine."""
        return self._llm.get_num_unfinished_requests() if self._llm else 0


def _dead(llm: Any) -> Exception:
    from vllm.v1.engine.exceptions import EngineDeadError

    error: Exception = llm.dead_error if llm is not None else EngineDeadError()
    return error


def _raise_if_cancelled() -> None:
    """vLLM turns a cancellation into an error response: the task's own count still knows."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def _plain_picture() -> Picture:
    import numpy as np

    pixels = np.full((64, 64, 3), 128, dtype=np.uint8)
    return Picture(pixels, hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest())

"""Prompts and pictures made ready for the engine by vLLM's own means, with less around them.

vLLM hands templates and tokenizers to a pool, so that a long prompt does not stop all streams. For a short
one the two hand-overs take longer than the work: 0.3 ms of the time to the first token. And it prepares
pictures by Transformers' processor of text and pictures, with a text that is thrown away: two thirds of the
time for a small one.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextvars import ContextVar
from typing import Any

SHORT = 4096
"""Characters and items of a request: the operator's template (a request brings none) and a tokenizer take
0.2 ms for as much."""

short: ContextVar[bool] = ContextVar("short", default=False)
"""Whether the request that this task is handing to vLLM is a short one."""


class ShortInline(Executor):
    """Does what a short request submits at once, and leaves the rest to a pool.

    Args:
        pool: vLLM's own.
    """

    def __init__(self, pool: Executor) -> None:
        self._pool = pool

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        if not short.get():
            return self._pool.submit(function, *args, **kwargs)
        done: Future[Any] = Future()
        try:
            done.set_result(function(*args, **kwargs))
        except Exception as error:
            done.set_exception(error)
        return done

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._pool.shutdown(wait=wait, cancel_futures=cancel_futures)


def render_short_inline(renderer: Any) -> None:
    """Put it between a renderer of vLLM's and its pool (which vLLM may replace after a time-out)."""
    renderer._executor._inner = ShortInline(renderer._executor._inner)


_SETTLED = {"do_normalize", "do_rescale"}
"""What vLLM itself asks of an image processor: that both be left to the model."""


def prepare_pictures_alone(processor: Any) -> None:
    """Let a multimodal processor of vLLM's give pictures to the image processor, without a text beside them.

    Changes nothing where the operator sets options of it (`mm-processor-kwargs`), nor for requests with some.
    """
    info, inner = processor.info, processor._apply_hf_processor_main
    options = info._merge_and_resolve_mm_processor_kwargs({})
    wanted = options.pop("images_kwargs", {})
    if set(wanted) - _SETTLED or set(options) - {"text_kwargs", "videos_kwargs"}:
        return
    image_processor, dtype = info.get_image_processor(), info.ctx.model_config.dtype

    def apply(mm_items: Any, hf_kwargs: Any) -> Any:
        pictures = mm_items.get("image")
        if hf_kwargs or len(mm_items) != 1 or not pictures or pictures.get_passthrough_data():
            return inner(mm_items, hf_kwargs)
        return image_processor(**pictures.get_processor_data(), **wanted, return_tensors="pt").to(dtype=dtype)

    processor._apply_hf_processor_main = apply

"""Where the prompt of a short request is made, and what is left out when a picture is prepared."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deployments.engines.vllm_rendering import ShortInline, prepare_pictures_alone, short


def test_only_short_work_is_done_at_once() -> None:
    here = threading.get_ident()
    with ThreadPoolExecutor(1) as pool:
        executor = ShortInline(pool)
        assert executor.submit(threading.get_ident).result() != here
        token = short.set(True)
        assert executor.submit(threading.get_ident).result() == here
        with pytest.raises(ZeroDivisionError):
            executor.submit(lambda: 1 // 0).result()
        short.reset(token)


SIZES = [(192, 160), (64, 300), (50, 50)]


def processor(**options: Any) -> Any:
    """vLLM's multimodal processor of the demo model."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.multimodal import MULTIMODAL_REGISTRY

    arguments = AsyncEngineArgs(model="demo_models/vlm", max_model_len=512, **options)
    return MULTIMODAL_REGISTRY.create_processor(arguments.create_model_config())


def prepared(by: Any, sizes: Sequence[tuple[int, int]], options: dict[str, Any] | None = None) -> Any:
    random = np.random.default_rng(0)
    pictures = [Image.fromarray(random.integers(0, 255, (h, w, 3), dtype=np.uint8)) for h, w in sizes]
    return by._apply_hf_processor_main(by.info.parse_mm_data({"image": pictures}), options or {})


@pytest.mark.real
@pytest.mark.parametrize("sizes", [SIZES[:1], SIZES, SIZES[:1] * 2])
def test_a_picture_prepared_alone_is_the_same(sizes: list[tuple[int, int]]) -> None:
    by = processor()
    whole = prepared(by, sizes)
    prepare_pictures_alone(by)
    alone = prepared(by, sizes)
    assert "input_ids" in whole
    assert set(alone) == {"pixel_values", "image_grid_thw"}
    for name, tensor in alone.items():
        assert tensor.dtype == whole[name].dtype
        assert tensor.equal(whole[name])


@pytest.mark.real
def test_options_of_the_operator_and_of_requests_go_the_whole_way() -> None:
    by = processor(mm_processor_kwargs={"max_pixels": 4096})
    prepare_pictures_alone(by)
    assert "input_ids" in prepared(by, SIZES)
    by = processor()
    prepare_pictures_alone(by)
    small = prepared(by, SIZES[:1], {"max_pixels": 4096})
    assert "input_ids" in small
    assert small["pixel_values"].shape[0] < prepared(by, SIZES[:1])["pixel_values"].shape[0]

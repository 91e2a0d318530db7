"""Profile settings as vLLM's own parsed arguments, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from deployments.contracts.settings import ModelSettings
from deployments.engines.vllm_arguments import computes_in_one_thread, serve_arguments

pytestmark = pytest.mark.real  # vLLM's parser takes seconds to import


def model(gpu_fraction: float = 0, **engine_args: Any) -> ModelSettings:
    return ModelSettings(
        id="m",
        aliases=("n",),
        task="vision_language",
        engine="vllm",
        source="demo_models/vlm",
        gpu_fraction=gpu_fraction,
        engine_args=engine_args,
    )


def parsed(**changes: Any) -> Any:
    return serve_arguments(model(**changes))


def test_named_as_in_vllm_serve() -> None:
    arguments = parsed(
        **{
            "max-model-len": 256,
            "limit-mm-per-prompt": {"image": 8, "video": 0},
            "enable_auto_tool_choice": True,
            "tool-call-parser": "hermes",
            "enable-prefix-caching": False,
        }
    )
    assert arguments.max_model_len == 256
    assert arguments.limit_mm_per_prompt == {"image": 8, "video": 0}
    assert arguments.enable_auto_tool_choice
    assert arguments.enable_prefix_caching is False
    assert arguments.model.endswith("demo_models/vlm")
    assert arguments.served_model_name == ["m", "n"]
    assert arguments.allowed_media_domains == ["none.invalid"]


@pytest.mark.parametrize(
    ("share", "memory", "cards"), [(0, 0.1, 1), (0.4, 0.4, 1), (1, 0.95, 1), (2, 0.95, 2)]
)
def test_one_number_for_the_gpu(share: float, memory: float, cards: int) -> None:
    arguments = parsed(gpu_fraction=share)
    assert (arguments.gpu_memory_utilization, arguments.tensor_parallel_size) == (memory, cards)


@pytest.mark.parametrize(
    ("engine_args", "message"),
    [
        ({"max-modl-len": 1, "frobnicate": 2}, "not an argument of `vllm serve`: frobnicate, max-modl-len"),
        ({"model": "x"}, "model cannot be set"),
        ({"allowed_media_domains": ["x"]}, "allowed-media-domains cannot be set"),
        ({"max-model-len": "long"}, "max-model-len"),
    ],
)
def test_what_is_wrong_is_named(engine_args: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parsed(**engine_args)


def test_the_gpu_share_cannot_be_set_twice() -> None:
    with pytest.raises(ValueError, match="follows from gpu_fraction"):
        parsed(gpu_fraction=0.5, **{"gpu-memory-utilization": 0.9})


@pytest.mark.parametrize(
    ("changes", "environment", "one"),
    [
        ({}, {}, True),
        ({}, {"OMP_NUM_THREADS": "2"}, False),
        ({}, {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}, False),
        ({"gpu_fraction": 0.5}, {}, False),
        ({"distributed-executor-backend": "mp"}, {}, False),
    ],
)
def test_only_what_computes_in_one_thread_gets_a_core(
    changes: dict[str, Any], environment: dict[str, str], one: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VLLM_CPU_OMP_THREADS_BIND", raising=False)
    for name, value in ({"OMP_NUM_THREADS": "1"} | environment).items():
        monkeypatch.setenv(name, value)
    settings = model(**{"distributed-executor-backend": "uni", **changes})
    assert computes_in_one_thread(settings, serve_arguments(settings)) is one


def test_adapters_become_lora_modules() -> None:
    entry = {"id": "m", "task": "vision_language", "engine": "vllm", "source": "demo_models/vlm"}
    arguments = serve_arguments(ModelSettings.model_validate({**entry, "adapters": {"n": "/some/folder"}}))
    assert arguments.enable_lora
    assert [(module.name, module.path) for module in arguments.lora_modules] == [("n", "/some/folder")]
    assert not parsed().enable_lora

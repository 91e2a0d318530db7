"""Makes an engine by its name. The engine's module, and torch with it, is imported only when asked for."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from deployments.contracts.engines import ChatEngine, ImageEngine
from deployments.contracts.settings import ModelSettings

CHAT_ENGINES = {
    "vllm": "deployments.engines.vllm_engine:VllmEngine",
    "fake": "deployments.engines.fake:FakeChatEngine",
}
IMAGE_ENGINES = {
    "diffusers": "deployments.engines.diffusers_engine:DiffusersEngine",
    "fake": "deployments.engines.fake_image:FakeImageEngine",
}


def make_chat_engine(settings: ModelSettings) -> ChatEngine:
    engine: ChatEngine = _engine_class(CHAT_ENGINES, settings)(settings)
    return engine


def make_image_engine(settings: ModelSettings) -> ImageEngine:
    engine: ImageEngine = _engine_class(IMAGE_ENGINES, settings)(settings)
    return engine


def _engine_class(table: dict[str, str], settings: ModelSettings) -> Any:
    if settings.engine not in table:
        engines = ", ".join(sorted(table))
        raise ValueError(f"model {settings.id!r}: engine {settings.engine!r} cannot do this; use: {engines}")
    module, _, name = table[settings.engine].partition(":")
    return getattr(import_module(module), name)

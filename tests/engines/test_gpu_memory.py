"""Memory in use on the cards of a process, over a stand-in for NVML."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from deployments.engines.gpu_memory import used_gb

USED = {0: 3_000_000_000, 1: 5_500_000_000, "GPU-abc": 1_250_000_000}


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    calls: list[str] = []
    monkeypatch.setitem(
        sys.modules,
        "pynvml",
        SimpleNamespace(
            nvmlInit=lambda: calls.append("init"),
            nvmlShutdown=lambda: calls.append("shutdown"),
            nvmlDeviceGetHandleByIndex=lambda index: index,
            nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
            nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(used=USED[handle]),
        ),
    )
    return calls


@pytest.mark.parametrize(("cards", "gb"), [("1", 5.5), ("0,1", 8.5), ("GPU-abc", 1.25), (" 0 , 1 ", 8.5)])
def test_sums_the_cards_that_the_process_was_given(
    monkeypatch: pytest.MonkeyPatch, nvml: list[str], cards: str, gb: float
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", cards)
    assert used_gb() == gb
    assert nvml == ["init", "shutdown"]


@pytest.mark.parametrize("cards", ["", None])
def test_no_card_is_nothing_and_needs_no_nvml(monkeypatch: pytest.MonkeyPatch, cards: str | None) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    if cards is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", cards)
    assert used_gb() == 0.0

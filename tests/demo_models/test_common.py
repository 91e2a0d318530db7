"""Schedules, checkpoints and averages of the training loops."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from demo_models.training import common


def test_a_rate_rises_stays_and_falls() -> None:
    schedule = common.Schedule(1.0, steps=100, warmup=10, decay=0.5)
    rates = [schedule.step() for _ in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[20] == 1.0
    assert rates[-1] == pytest.approx(0.02)
    assert schedule.done == 1


def test_a_checkpoint_is_whole_or_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "state.pt"
    assert common.load(path) is None
    common.save(path, {"step": 1})
    common.save(path, {"step": 2})
    assert common.load(path) == {"step": 2}
    assert [file.name for file in path.parent.iterdir()] == ["state.pt"]


def test_an_average_follows() -> None:
    mean, model = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    for step in range(200):
        common.average(mean, model, step, decay=0.9)
    torch.testing.assert_close(mean.weight, model.weight)


def test_plain_attention_is_attention_and_goes_away() -> None:
    query, key, value = (torch.randn(2, 4, 5, 8) for _ in range(3))
    mask = torch.ones(5, 5, dtype=torch.bool).tril()
    attention = torch.nn.functional.scaled_dot_product_attention
    wanted = attention(query, key, value, attn_mask=mask)
    grouped = attention(query, key[:, :2], value[:, :2], enable_gqa=True)
    with common.plain_attention():
        plain = torch.nn.functional.scaled_dot_product_attention
        torch.testing.assert_close(plain(query, key, value, attn_mask=mask), wanted)
        torch.testing.assert_close(plain(query, key, value, is_causal=True), wanted)
        torch.testing.assert_close(plain(query, key[:, :2], value[:, :2], enable_gqa=True), grouped)
    assert torch.nn.functional.scaled_dot_product_attention is attention

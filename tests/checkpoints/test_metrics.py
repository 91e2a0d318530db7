"""PSNR and SSIM against their definitions, written out plainly."""

from __future__ import annotations

import math

import numpy as np
import pytest

from deployments.checkpoints.metrics import psnr, ssim


def noise(seed: int, height: int = 24, width: int = 20) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def plain_ssim(first: np.ndarray, second: np.ndarray) -> float:
    """One window after another."""
    luma = np.array([0.299, 0.587, 0.114])
    x, y = first.astype(float) @ luma, second.astype(float) @ luma
    line = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2
    found = []
    for top in range(x.shape[0] - 10):
        for left in range(x.shape[1] - 10):
            a, b = x[top : top + 11, left : left + 11], y[top : top + 11, left : left + 11]
            mean_a, mean_b = (window * a).sum(), (window * b).sum()
            var_a, var_b = (window * (a - mean_a) ** 2).sum(), (window * (b - mean_b) ** 2).sum()
            both = (window * (a - mean_a) * (b - mean_b)).sum()
            found.append(
                (2 * mean_a * mean_b + 6.5025)
                * (2 * both + 58.5225)
                / ((mean_a**2 + mean_b**2 + 6.5025) * (var_a + var_b + 58.5225))
            )
    return float(np.mean(found))


def test_identical_pictures() -> None:
    assert psnr(noise(1), noise(1)) is None
    assert ssim(noise(1), noise(1)) == pytest.approx(1)


def test_psnr_of_one_grey_level_everywhere() -> None:
    grey = np.full((16, 16, 3), 100, np.uint8)
    assert psnr(grey, grey + 1) == pytest.approx(20 * math.log10(255))
    assert psnr(grey + 1, grey) == pytest.approx(20 * math.log10(255))  # no wrapping around 0


def test_psnr_of_black_and_white_is_zero() -> None:
    black = np.zeros((16, 16, 3), np.uint8)
    assert psnr(black, black + 255) == pytest.approx(0)


@pytest.mark.parametrize("seed", [2, 3])
def test_ssim_is_that_of_the_definition(seed: int) -> None:
    first = noise(seed)
    second = np.clip(first.astype(int) + noise(9).astype(int) // 4 - 32, 0, 255).astype(np.uint8)
    assert ssim(first, second) == pytest.approx(plain_ssim(first, second), abs=1e-9)
    assert ssim(first, second) == pytest.approx(ssim(second, first))
    assert ssim(first, second) < 0.99


def test_sizes_must_match_and_hold_a_window() -> None:
    with pytest.raises(ValueError, match="cannot be compared"):
        psnr(noise(1), noise(1, 20, 24))
    with pytest.raises(ValueError, match="cannot be compared"):
        ssim(noise(1), noise(1, 20, 24))
    with pytest.raises(ValueError, match="at least 11"):
        ssim(noise(1, 10, 30), noise(1, 10, 30))

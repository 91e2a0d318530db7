"""How far two pictures are apart: PSNR and SSIM. Arrays are uint8, shape (height, width, 3), of one size."""

from __future__ import annotations

import math

import numpy as np

_RADIUS, _SIGMA = 5, 1.5
_LUMA = np.array([0.299, 0.587, 0.114])


def psnr(first: np.ndarray, second: np.ndarray) -> float | None:
    """Peak signal-to-noise ratio in dB; None if they are identical.

    Raises:
        ValueError: their shapes differ.
    """
    _require_same_shape(first, second)
    error = float(np.mean((first.astype(np.float64) - second.astype(np.float64)) ** 2))
    return 10 * math.log10(255**2 / error) if error else None


def ssim(first: np.ndarray, second: np.ndarray) -> float:
    """Structural similarity of the luma, 1 for identical pictures.

    As in Wang et al. 2004: Gaussian window of 11 with sigma 1.5, K1 = 0.01, K2 = 0.03, without padding.

    Raises:
        ValueError: their shapes differ, or a side is shorter than the window.
    """
    _require_same_shape(first, second)
    if min(first.shape[:2]) < 2 * _RADIUS + 1:
        raise ValueError(f"SSIM needs sides of at least {2 * _RADIUS + 1} pixels, not {first.shape[:2]}")
    x, y = first @ _LUMA, second @ _LUMA
    mean_x, mean_y = _blur(x), _blur(y)
    var_x, var_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    above = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    below = (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
    return float(np.mean(above / below))


def _blur(image: np.ndarray) -> np.ndarray:
    at = np.arange(-_RADIUS, _RADIUS + 1)
    window = np.exp(-(at**2) / (2 * _SIGMA**2))
    window /= window.sum()
    for axis in (0, 1):
        image = np.lib.stride_tricks.sliding_window_view(image, len(window), axis) @ window
    return image


def _require_same_shape(first: np.ndarray, second: np.ndarray) -> None:
    if first.shape != second.shape:
        raise ValueError(f"pictures of shapes {first.shape} and {second.shape} cannot be compared")

"""Encoding."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deployments.engines.image_ops import encode


@pytest.mark.parametrize("output_format", ["png", "webp", "jpeg"])
def test_encoding(output_format: Any) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    data = encode(pixels, output_format)
    image = Image.open(io.BytesIO(data))
    assert (image.format, image.size) == (output_format.upper(), (64, 48))
    if output_format == "png":
        assert (np.asarray(image) == pixels).all()
        assert encode(pixels, "png", 50) == data
    else:
        qualities = [len(encode(pixels, output_format, quality)) for quality in (0, 50, 100)]
        assert qualities == sorted(set(qualities))

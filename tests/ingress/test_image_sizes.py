"""What a client may say for a size."""

from __future__ import annotations

import pytest

from deployments.contracts.errors import InvalidRequest
from deployments.contracts.settings import GenerationDefaults
from serve_app.ingress.dialects.image_sizes import resolve_size

QWEN = GenerationDefaults(
    size="1328x1328",
    sizes=("1328x1328", "1664x928", "928x1664", "1472x1104", "1104x1472", "1584x1056", "1056x1584"),
    max_pixels=1_763_584,
    steps=50,
    cfg_scale=4,
)


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        (None, (1328, 1328)),
        ("auto", (1328, 1328)),
        ("1024x1024", (1024, 1024)),
        ("1:1", (1328, 1328)),
        ("16:9", (1664, 928)),
        ("9:16", (928, 1664)),
        ("4:3", (1472, 1104)),
        ("3:2", (1584, 1056)),
        ("2:3", (1056, 1584)),
        ("32:18", (1664, 928)),
    ],
)
def test_the_model_s_own_sizes_are_meant_by_their_aspects(said: str | None, meant: tuple[int, int]) -> None:
    assert resolve_size(said, QWEN) == meant


@pytest.mark.parametrize("aspect", ["21:9", "2:1", "1:3", "3:1", "5:4", "7:5"])
def test_other_aspects_are_computed_at_the_model_s_area(aspect: str) -> None:
    width, height = resolve_size(aspect, QWEN)
    wanted = int(aspect[0 : aspect.index(":")]) / int(aspect.partition(":")[2])
    assert width % 16 == height % 16 == 0
    assert abs(width / height / wanted - 1) < 0.03
    assert 0.94 * QWEN.max_pixels < width * height <= QWEN.max_pixels


@pytest.mark.parametrize(
    "said", ["", "big", "1328", "1:4", "16:0", "100x100", "16x64", "4096x4096", "0x0", "1024X1024"]
)
def test_anything_else_is_refused_by_name(said: str) -> None:
    with pytest.raises(InvalidRequest, match="'size'") as caught:
        resolve_size(said, QWEN)
    assert (caught.value.param, caught.value.code) == ("size", "invalid_size")

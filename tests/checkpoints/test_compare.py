"""Comparing two checkpoints on the fake engines: what is measured, counted, written and shown."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deployments.checkpoints.compare import Brush, Painted, compare, paint, with_descriptions
from deployments.checkpoints.contact_sheet import GAIN, write_contact_sheet
from deployments.checkpoints.judge import Judge
from deployments.checkpoints.metrics import psnr, ssim
from deployments.contracts.errors import InvalidRequest
from deployments.contracts.settings import ModelSettings
from deployments.engines.factory import make_chat_engine
from deployments.engines.fake_image import paint as fake_picture

PROMPTS = ["a red circle on a blue background", "a green star", "红色圆形"]
BRUSH = Brush(64, 48, steps=2, cfg_scale=3, seed=7, engine="fake")


async def painted(**changes: object) -> Painted:
    return await paint("folder/image", PROMPTS, replace(BRUSH, **changes))  # type: ignore[arg-type]


async def test_every_prompt_is_painted_with_a_seed_of_its_own() -> None:
    seen: list[str] = []
    result = await paint("folder/image", PROMPTS, BRUSH, seen.append)
    assert seen == ["image"] * 3
    assert result.name == "image"
    for i, pixels in enumerate(result.pictures):
        assert np.array_equal(pixels, fake_picture(PROMPTS[i], 64, 48, 7 + i))


async def test_what_the_engine_refuses_is_raised_and_the_engine_closed() -> None:
    with pytest.raises(InvalidRequest, match="multiples of 16"):
        await painted(width=65)


async def test_a_checkpoint_is_identical_with_itself() -> None:
    a, b = await painted(), await painted()
    result = compare(a, b, PROMPTS, BRUSH)
    assert [(pair.psnr, round(pair.ssim, 9)) for pair in result.pairs] == [(None, 1)] * 3
    assert result.summary["identical"] == 3
    assert result.summary["psnr"] is None
    assert [pair.seed for pair in result.pairs] == [7, 8, 9]


async def test_figures_are_those_of_the_pictures() -> None:
    a, b = await painted(), await painted(seed=99)
    b = replace(b, pictures=(a.pictures[0], *b.pictures[1:]))  # one is the same
    summary = compare(a, b, PROMPTS, BRUSH).summary
    pairs = list(zip(a.pictures, b.pictures, strict=True))
    assert summary["identical"] == 1
    assert summary["psnr"] == pytest.approx(np.mean([psnr(*pair) for pair in pairs[1:]]))
    assert summary["ssim"] == pytest.approx(np.mean([ssim(*pair) for pair in pairs]))
    assert "agree" not in summary


async def test_descriptions_are_counted_and_written(tmp_path: Path) -> None:
    a, b = await painted(), await painted(seed=99)
    result = with_descriptions(
        compare(a, b, PROMPTS, BRUSH),
        ["A red circle on a blue background.", "A green heart", "红色圆形。"],
        ["a red circle on a blue background", "A blue star", "蓝色圆形"],
    )
    summary = result.summary
    assert summary["agree"] == pytest.approx(1 / 3)
    assert summary["adherence_a"] == pytest.approx((1 + 1 / 2 + 1) / 3)
    assert summary["adherence_b"] == pytest.approx((1 + 1 / 2 + 3 / 4) / 3)
    assert summary["complete_a"] == pytest.approx(2 / 3)
    assert summary["complete_b"] == pytest.approx(1 / 3)
    assert summary["overlap"] == pytest.approx((1 + 0 + 3 / 5) / 3)

    result.write(tmp_path / "comparison.json")
    content = json.loads((tmp_path / "comparison.json").read_text("utf-8"))
    assert content["summary"] == summary
    assert content["settings"]["steps"] == 2
    assert content["pictures"][2]["description_b"] == "蓝色圆形"
    assert [picture["agree"] for picture in content["pictures"]] == [True, False, False]


async def test_the_contact_sheet_shows_both_and_the_difference(tmp_path: Path) -> None:
    a = await painted()
    changed = a.pictures[0].copy()
    changed[10:20, 10:20] ^= 16
    b = replace(a, name="other", pictures=(changed, *a.pictures[1:]))
    write_contact_sheet(tmp_path / "sheet.png", compare(a, b, PROMPTS, BRUSH), a, b)

    with Image.open(tmp_path / "sheet.png") as image:
        sheet = np.asarray(image.convert("RGB")).astype(int)
    top, columns = 32, [8 + i * (64 + 8) for i in range(3)]
    first, second, difference = (sheet[top : top + 48, left : left + 64] for left in columns)
    assert np.array_equal(first, a.pictures[0])
    assert np.array_equal(second, changed)
    assert set(np.unique(difference)) == {0, 16 * GAIN}
    assert (difference[10:20, 10:20] == 16 * GAIN).all()


async def test_large_pictures_are_reduced_on_the_sheet(tmp_path: Path) -> None:
    pixels = fake_picture("a red circle", 1024, 512, 1)
    a = Painted("a", (pixels,), 1.0)
    brush = replace(BRUSH, width=1024, height=512)
    write_contact_sheet(tmp_path / "sheet.png", compare(a, a, ["a red circle"], brush), a, a)
    with Image.open(tmp_path / "sheet.png") as image:
        assert image.width == 3 * 256 + 4 * 8
        assert image.height < 256


async def test_the_judge_sees_pictures_and_asks_in_the_prompts_language() -> None:
    engine = make_chat_engine(ModelSettings(id="judge", task="vision_language", engine="fake"))
    await engine.start()
    steps: list[None] = []
    pictures = [fake_picture(prompt, 64, 48, 1) for prompt in PROMPTS]
    said = await Judge(engine).describe(pictures, PROMPTS, lambda: steps.append(None))
    await engine.close()
    assert len(steps) == 3
    for i, (picture, text) in enumerate(zip(pictures, said, strict=True)):
        red, green, blue = (int(mean) for mean in picture.mean(axis=(0, 1)))
        assert f"[64x48 #{red:02x}{green:02x}{blue:02x}]" in text
        assert ("描述这张图片。" if i == 2 else "Describe the picture.") in text


async def test_one_picture_is_described_once() -> None:
    class Counting:
        calls = 0

        async def chat(self, request: object, pictures: object) -> bytes:
            self.calls += 1
            return json.dumps({"choices": [{"message": {"content": f" {self.calls}. "}}]}).encode()

    engine = Counting()
    judge = Judge(engine)  # type: ignore[arg-type]
    picture, other = fake_picture("x", 32, 32, 1), fake_picture("y", 32, 32, 1)
    assert await judge.describe([picture, other], ["x", "y"], lambda: None) == ["1.", "2."]
    assert await judge.describe([picture, other], ["x", "y"], lambda: None) == ["1.", "2."]
    assert engine.calls == 2

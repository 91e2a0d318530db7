"""`atelier compare` from the outside."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from serve_app.cli import app
from serve_app.commands.compare import _brush


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["compare", *map(str, arguments)], env={"COLUMNS": "200"})


def test_a_source_that_a_profile_serves_is_painted_as_it_is_served() -> None:
    for source in ("demo_models/image", str(Path("demo_models/image").resolve())):
        brush = _brush(source, "auto", None, None, 0, "cpu", None)
        assert (brush.width, brush.height, brush.steps, brush.cfg_scale) == (128, 128, 8, 3)
    brush = _brush("somebody/elses", "512x768", 8, None, 3, "cpu", None)
    assert (brush.width, brush.height, brush.steps, brush.cfg_scale, brush.seed) == (512, 768, 8, 4, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--size", "large"], "--size large: write WIDTHxHEIGHT"),
        (["--size", "100x128"], "multiples of 16"),
        (["--count", "0"], "ask for 1 to 810"),
        (["--prompts", "no-such-file"], "no-such-file"),
        (["--device", "tpu"], "--device tpu: use auto, cpu or cuda"),
    ],
)
@pytest.mark.real
def test_wrong_options_are_named(tmp_path: Path, options: list[str], message: str) -> None:
    result = run("demo_models/image", "demo_models/image", "--out", tmp_path, *options)
    assert (result.exit_code, message in result.output) == (2, True), result.output


@pytest.mark.real
def test_a_checkpoint_and_its_quantized_copy(tmp_path: Path) -> None:
    quantized = tmp_path / "quantized"
    runner = CliRunner()
    assert runner.invoke(app, ["quantize", "demo_models/image", str(quantized)]).exit_code == 0
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle on a blue background\n红色圆形\n", "utf-8")
    options = ["--prompts", prompts, "--steps", 8, "--threads", 1, "--out", tmp_path / "out"]
    result = run("demo_models/image", quantized, *options)
    assert result.exit_code == 0, result.output

    content = json.loads((tmp_path / "out" / "comparison.json").read_text("utf-8"))
    assert [picture["prompt"] for picture in content["pictures"]][1] == "红色圆形"
    summary = content["summary"]
    assert summary["identical"] == 0
    assert 25 < summary["psnr"] < 60  # 4 bits show, and little
    assert 0.9 < summary["ssim"] < 1
    assert f"PSNR {summary['psnr']:.2f} dB" in result.output
    assert (tmp_path / "out" / "contact-sheet.png").stat().st_size > 1000

"""`atelier quantize` from the outside: what it says, what it refuses, what it returns."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from serve_app.cli import app


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["quantize", *map(str, arguments)], env={"COLUMNS": "200"})


@pytest.mark.real
def test_it_writes_a_folder_and_says_what_it_did(tmp_path: Path) -> None:
    dest = tmp_path / "dest"
    result = run("demo_models/image", dest, "--dtype", "uint4", "--svd-rank", 16, "--worst", 3)
    assert result.exit_code == 0, result.output
    report = json.loads((dest / "quantization_report.json").read_text())
    assert report["settings"]["svd_rank"] == 16
    worst = max(
        (layer for part in report["components"] for layer in part["layers"]), key=lambda layer: layer["error"]
    )
    said = " ".join(result.output.split())
    assert f"{worst['error']:.4f} {worst['name']}" in said
    assert f"source: {dest}" in said
    ratio = report["bytes_after"] / report["bytes_before"]
    assert f"{ratio:.3f}" in said


@pytest.mark.real
def test_rank_0_leaves_the_svd_out(tmp_path: Path) -> None:
    result = run("demo_models/image", tmp_path / "dest", "--svd-rank", 0, "--component", "transformer")
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "dest" / "quantization_report.json").read_text())
    assert {layer["svd_rank"] for part in report["components"] for layer in part["layers"]} == {0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dtype", "uint9"], "--dtype uint9: use uint2 to uint8"),
        (["--svd-rank", "999"], "--svd-rank 999: Input should be less than or equal to 256"),
        (["--component", "vae"], "--component vae: Input should be 'transformer' or 'text_encoder'"),
        (["--device", "tpu"], "--device tpu: use auto, cpu or cuda"),
    ],
)
def test_wrong_options_are_named(tmp_path: Path, options: list[str], message: str) -> None:
    result = run("demo_models/image", tmp_path / "dest", *options)
    assert (result.exit_code, message in result.output) == (2, True), result.output
    assert not (tmp_path / "dest").exists()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("./no/such", "no checkpoint folder at ./no/such"),
        ("no/such", "no/such is no folder here, and the hub did not give it"),
        ("demo_models/vlm", "no model_index.json"),
    ],
)
def test_wrong_sources_are_named(tmp_path: Path, source: str, message: str) -> None:
    result = run(source, tmp_path / "dest")
    assert (result.exit_code, message in result.output) == (2, True), result.output


def test_without_sdnq_it_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sdnq", None)  # importing it fails
    result = run("demo_models/image", tmp_path / "dest")
    assert (result.exit_code, "requirements/sdnq.in" in result.output) == (2, True), result.output

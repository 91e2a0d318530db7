"""Profiles: all that ship are valid, and what is wrong in one is named with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from serve_app.plan import Card, choose_profile, placement, require_fit
from serve_app.settings import CONFIGS, SettingsError, load_settings, profile_names, profile_path


@pytest.mark.parametrize("name", profile_names())
def test_shipped_profiles_are_valid_and_fit_their_cards(name: str) -> None:
    settings = load_settings(profile_path(name))
    tasks = {model.task for model in settings.models}
    assert tasks == {"vision_language", "image_generation"}
    if name == "demo":
        assert placement(settings) == []
        assert all(Path(model.source).is_dir() for model in settings.models)
    elif name == "gpu-cluster":
        require_fit(settings, [Card("n", "H100", 80)] * 4)
    else:
        require_fit(settings, [Card("n", "card", 24)])
    for model in settings.models:
        assert model.load_seconds <= 600
        assert model.max_ongoing_requests < 1000  # finite: beyond it is backpressure, not memory


def test_serve_config_names_the_builder() -> None:
    from ray.serve.schema import ServeDeploySchema
    from ruamel.yaml import YAML

    tree = YAML(typ="safe").load((CONFIGS.parent / "serve_config.yaml").read_text())
    config = ServeDeploySchema.model_validate(tree)
    assert config.applications[0].import_path == "serve_app.app:build"
    assert config.applications[0].args == {"profile": "auto"}


GOOD = """\
models:
  - id: m
    task: vision_language
    engine: fake
"""


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        (GOOD + "    gpu_fractoin: 1\n", 5, ["gpu_fractoin", "gpu_fraction"]),
        (GOOD.replace("fake", "diffusers"), 2, ["diffusers", "vllm"]),
        (GOOD.replace("fake", "vllm"), 2, ["source"]),
        (GOOD + "    autoscaling: {min_replicas: 3, max_replicas: 2}\n", 5, ["min_replicas"]),
        (GOOD + "    gpu_fraction: 1.5\n", 2, ["gpu_fraction", "whole"]),
        (GOOD + "preprocessing:\n  max_bytes: none\n", 6, ["preprocessing.max_bytes"]),
        (GOOD + GOOD[8:], 1, ["'m'"]),
        ("models: []\n", 1, ["models"]),
        ("models: [\n", 2, ["YAML"]),
        ("- a\n", 1, ["mapping"]),
    ],
)
def test_error_names_file_line_and_key(tmp_path: Path, text: str, line: int, words: list[str]) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(text)
    with pytest.raises(SettingsError) as caught:
        load_settings(file)
    message = str(caught.value)
    assert message.startswith(f"{file}:{line}:"), message
    assert all(word in message for word in words), message


def test_unknown_profile_lists_those_there_are() -> None:
    with pytest.raises(SettingsError, match="demo"):
        load_settings(profile_path("nothing"))


@pytest.mark.parametrize(
    ("cards", "profile"),
    [
        ([], "demo"),
        ([23.6], "gpu-24gb"),
        ([44.5], "gpu-48gb"),
        ([79.6, 79.6], "gpu-80gb"),
        ([139.8], "gpu-141gb"),
        ([79.6] * 8, "gpu-cluster"),
        ([23.6, 139.8], "gpu-24gb"),
    ],
)
def test_auto_takes_the_profile_that_fits_the_smallest_card(cards: list[float], profile: str) -> None:
    assert choose_profile([Card("n", "card", gb) for gb in cards])[0] == profile


def test_card_that_is_too_small_says_what_to_do() -> None:
    with pytest.raises(SettingsError, match="profile: demo"):
        choose_profile([Card("n", "GTX 1080", 8)])


def test_plan_that_cannot_fit_is_refused_with_the_table() -> None:
    settings = load_settings(profile_path("gpu-cluster"))
    with pytest.raises(SettingsError, match=r"(?s)needs 2 GPU.*card 1.*card 2"):
        require_fit(settings, [Card("n", "H100", 80)])


def test_weights_larger_than_their_share_are_refused(tmp_path: Path) -> None:
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(2 * 2**30)  # sparse: takes no room
    profile = tmp_path / "own.yaml"
    model = f"{{id: m, task: vision_language, engine: vllm, source: {tmp_path}, gpu_fraction: 0.1}}"
    profile.write_text(f"models:\n  - {model}\n")
    settings = load_settings(profile)
    require_fit(settings, [Card("n", "card", 24)])
    with pytest.raises(SettingsError, match=r"m: its weights take 2.0 GB.*1.6 GB"):
        require_fit(settings, [Card("n", "card", 16)])


def test_quantizing_at_load_counts_for_the_share(tmp_path: Path) -> None:
    for name, gigabytes in (("transformer", 38), ("text_encoder", 15), ("vae", 1)):
        (tmp_path / name).mkdir()
        with (tmp_path / name / "model.safetensors").open("wb") as file:
            file.truncate(gigabytes * 2**30)  # sparse: takes no room

    def fits(engine_args: str, gigabytes: float) -> None:
        profile = tmp_path / "own.yaml"
        model = f"id: m, task: image_generation, engine: diffusers, source: {tmp_path}, gpu_fraction: 1"
        generation = "generation: {size: 64x64, max_pixels: 4096, steps: 1, cfg_scale: 1}"
        profile.write_text(f"models:\n  - {{{model}, {generation}, engine_args: {{{engine_args}}}}}\n")
        require_fit(load_settings(profile), [Card("n", "card", gigabytes)])

    with pytest.raises(SettingsError, match=r"54.0 GB .*atelier quantize .* makes one"):
        fits("", 48)
    fits("quantize: {}", 24)  # (38 + 15) * 5 / 16 + 1
    with pytest.raises(SettingsError, match=r"weights take 17.6 GB"):
        fits("quantize: {}", 16)
    with pytest.raises(SettingsError, match=r"weights take 27.9 GB"):
        fits("quantize: {components: [transformer]}", 24)
    with pytest.raises(SettingsError, match=r"weights take 30.8 GB"):
        fits("quantize: {weights_dtype: int8}", 24)
    for name in ("transformer", "text_encoder"):  # quantized already: the files are as large as they get
        (tmp_path / name / "quantization_config.json").write_text("{}")
    with pytest.raises(SettingsError, match=r"weights take 54.0 GB"):
        fits("quantize: {}", 48)

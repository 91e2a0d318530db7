"""The installer shows uv what pip is configured with, and leaves the rest to pip."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path

import pytest

Arguments = tuple[list[str], dict[str, str]]
SCRIPT = Path(__file__).parents[2] / "scripts" / "install.py"


@pytest.fixture(scope="module")
def uv_arguments() -> Callable[[dict[str, str]], Arguments | None]:
    return runpy.run_path(str(SCRIPT))["uv_arguments"]


@pytest.mark.parametrize(
    ("configuration", "arguments", "environment"),
    [
        ({}, [], {}),
        ({"index-url": "https://a/simple"}, ["--default-index", "https://a/simple"], {}),
        ({"extra-index-url": "x\ny"}, ["--index", "x", "--index", "y"], {}),
        ({"find-links": "/wheels", "no-index": "true"}, ["--find-links", "/wheels", "--no-index"], {}),
        ({"no-index": "false", "quiet": "1"}, [], {}),
        ({"trusted-host": "mirror"}, ["--allow-insecure-host", "mirror"], {}),
        (
            {"cert": "/ca.pem", "proxy": "http://p:1"},
            [],
            {"SSL_CERT_FILE": "/ca.pem", "ALL_PROXY": "http://p:1"},
        ),
    ],
)
def test_settings_with_a_counterpart_are_translated(
    uv_arguments: Callable[[dict[str, str]], Arguments | None],
    configuration: dict[str, str],
    arguments: list[str],
    environment: dict[str, str],
) -> None:
    assert uv_arguments(configuration) == (arguments, environment)


def test_a_setting_without_one_leaves_the_work_to_pip(
    uv_arguments: Callable[[dict[str, str]], Arguments | None],
) -> None:
    assert uv_arguments({"find-links": "/wheels", "constraint": "constraints.txt"}) is None

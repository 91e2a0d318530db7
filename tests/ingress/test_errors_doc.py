"""docs/errors.md says what the renderers do: its table is compared with them, kind by kind."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from deployments.contracts.errors import AtelierError
from serve_app.ingress.errors import STATUS, Renderer, openai_error
from serve_app.ingress.routes import ERRORS

TEXT = (Path(__file__).parents[2] / "docs" / "errors.md").read_text("utf-8")
COLUMNS: dict[str, Renderer] = {
    "OpenAI": openai_error,
    "Anthropic": ERRORS["/v1/messages"],
    "image service": ERRORS["/api"],
    "VLM service": ERRORS["/v1/chat"],
    "VLM REST": ERRORS["/api/v1"],
}


def table() -> dict[str, dict[str, str]]:
    """Kind → column → cell."""
    lines = TEXT[TEXT.index("| kind") :].partition("\n\n")[0].splitlines()
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0].strip("`"): dict(zip(head, row, strict=True)) for row in rows}


def cell(render: Renderer, kind: str) -> str:
    """Status and code, as the table writes them."""
    error = type("Any", (AtelierError,), {"kind": kind, "default_code": None})("x")
    status, body = render(error, "id")
    inner = body.get("error")
    code = inner["type"] if isinstance(inner, dict) else body.get("code")
    return f"{status}" if code is None else f"{status} `{code}`"


def test_the_table_has_every_kind() -> None:
    assert list(table()) == list(STATUS)


@pytest.mark.parametrize("kind", STATUS)
def test_row(kind: str) -> None:
    row = table()[kind]
    assert {name: row[name] for name in COLUMNS} == {
        name: cell(render, kind) for name, render in COLUMNS.items()
    }


def test_every_number_is_explained() -> None:
    for prefix in ("/api", "/api/v1"):
        module = ERRORS[prefix].__globals__
        for code, _ in {*module["CODES"].values(), (module["MALFORMED"], 400)}:
            assert re.search(rf"^\| {code} \|", TEXT, re.MULTILINE), code

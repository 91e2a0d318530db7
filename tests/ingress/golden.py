"""Golden pairs: requests in YAML beside this file, each with the answer that a client must get.

A pair holds `name`, `given` (what `start` takes), `ask` and `answer`. In `ask`, `${...}` stands for a file of
FILES, or for `${x*513}`, so many of a letter. In `answer`, a string in angle brackets is checked by WILD, one
that starts with `~` is a regular expression; everything else has to be equal.
"""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from PIL import Image
from ruamel.yaml import YAML

FOLDER = Path(__file__).parent / "golden"


def picture(kind: str, width: int = 64, height: int = 48) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "#ff0000").save(buffer, kind)
    return buffer.getvalue()


FILES: dict[str, Callable[[], bytes]] = {
    "png": lambda: picture("PNG"),
    "jpeg": lambda: picture("JPEG"),
    "webp": lambda: picture("WEBP"),
    "gif": lambda: picture("GIF"),
    "bmp": lambda: picture("BMP"),
    "large": lambda: picture("PNG", 4097, 64),
    "cut": lambda: picture("PNG")[:60],
    "svg": lambda: b'<svg xmlns="http://www.w3.org/2000/svg" width="64" height="48"/>',
}

WILD: dict[str, Callable[[Any, httpx.Response], bool]] = {
    "<request id>": lambda value, answer: value == answer.headers["x-request-id"],
    "<seconds to wait>": lambda value, answer: str(value) == answer.headers["retry-after"],
    "<a few seconds>": lambda value, answer: 1 <= int(value) <= 60,
    "<number>": lambda value, answer: type(value) in (int, float) and value >= 0,
    "<more than 0>": lambda value, answer: type(value) in (int, float) and value > 0,
    "<text>": lambda value, answer: isinstance(value, str) and len(value) > 10,
    "<a seed>": lambda value, answer: 0 <= int(value) < 2**31,
}


def pairs(name: str) -> list[dict[str, Any]]:
    """The pairs of one file."""
    found: list[dict[str, Any]] = YAML(typ="safe").load((FOLDER / f"{name}.yaml").read_text("utf-8"))
    return found


async def play(url: str, ask: dict[str, Any]) -> httpx.Response:
    """Send what a pair asks."""
    method, path = next((name.upper(), ask[name]) for name in ("get", "post", "put") if name in ask)
    body: dict[str, Any] = {}
    if "json" in ask:
        body["json"] = _filled(ask["json"])
    if "content" in ask:
        body["content"] = ask["content"].encode()
    async with httpx.AsyncClient(timeout=60) as http:
        return await http.request(method, url + path, headers=ask.get("headers"), **body)


def check(response: httpx.Response, expected: dict[str, Any]) -> None:
    """Compare an answer with the pair's; the assertion says where they differ."""
    assert response.status_code == expected["status"], response.text[:500]
    for name, value in expected.get("headers", {}).items():
        _same(response.headers.get(name), value, response, name)
    if "json" in expected:
        assert response.headers["content-type"] == "application/json"
        _same(response.json(), expected["json"], response, "body")
    if "events" in expected:
        assert response.headers["content-type"].startswith("text/event-stream")
        _same(_events(response.text), expected["events"], response, "events")
    if "png" in expected:
        image = Image.open(io.BytesIO(response.content))
        assert (image.format, list(image.size)) == ("PNG", expected["png"])


def _filled(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _filled(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_filled(inner) for inner in value]
    return re.sub(r"\$\{(.+?)\}", _file, value) if isinstance(value, str) else value


def _file(match: re.Match[str]) -> str:
    letter, star, count = match[1].partition("*")
    return letter * int(count) if star else in_base64(match[1])


def in_base64(name: str) -> str:
    """One of FILES."""
    return base64.b64encode(FILES[name]()).decode()


def _events(text: str) -> list[Any]:
    """The events of a stream; text that came in several is put together, since that is up to chance."""
    events: list[Any] = []
    for frame in text.removesuffix("\n\n").split("\n\n"):
        event = json.loads(frame.removeprefix("data: "))
        part, last = _part(event), _part(events[-1]) if events else None
        if part and last:
            name = next(iter(part))
            last[name] += part[name]
        else:
            events.append(event)
    return events


def _part(event: dict[str, Any]) -> dict[str, Any] | None:
    """Where an event holds more text and nothing else."""
    holder = event.get("data") or event
    return holder if holder.get("done") is False else None


def _same(got: Any, wanted: Any, response: httpx.Response, where: str) -> None:
    if isinstance(wanted, dict):
        assert isinstance(got, dict), f"{where}: {got!r}"
        assert list(got) == list(wanted), f"{where}: {got!r}"
        for key in wanted:
            _same(got[key], wanted[key], response, f"{where}.{key}")
    elif isinstance(wanted, list):
        assert isinstance(got, list), f"{where}: {got!r}"
        assert len(got) == len(wanted), f"{where}: {got!r}"
        for i, inner in enumerate(wanted):
            _same(got[i], inner, response, f"{where}.{i}")
    elif isinstance(wanted, str) and wanted in WILD:
        assert WILD[wanted](got, response), f"{where}: {got!r} is not {wanted}"
    elif isinstance(wanted, str) and wanted.startswith("~"):
        assert re.search(wanted[1:], got), f"{where}: {got!r} does not match {wanted}"
    else:
        assert (type(got), got) == (type(wanted), wanted), f"{where}: {got!r} is not {wanted!r}"

"""The retry loops of the examples, in each language, against a server that answers by script."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.examples.clients import EXAMPLES, Run, program, run

LANGUAGES = {
    ".py": (
        "-c",
        "import os, sys; from retry import call\n"
        "sys.exit(call('POST', os.environ['ATELIER_URL'], json={}).status_code != 200)",
    ),
    ".sh": ("-c", 'source ./retry.sh; call "$ATELIER_URL" -d "{}"'),
    ".mjs": (
        "--input-type=module",
        "-e",
        "import { post } from './retry.mjs';"
        "process.exit((await post(process.env.ATELIER_URL, {})).ok ? 0 : 1)",
    ),
}

FULL = {"code": 3002, "message": "The queue is full.", "request_id": "x", "retry_after": 1}


class Script(ThreadingHTTPServer):
    """Answers with (status, headers, body) in turn, and notes when it was asked."""

    def __init__(self, *answers: tuple[int, dict[str, str], dict[str, Any]]) -> None:
        self.answers, self.times = list(answers), []
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(BaseHTTPRequestHandler):
    server: Script

    def do_POST(self) -> None:
        self.server.times.append(time.monotonic())
        self.rfile.read(int(self.headers["content-length"]))
        status, headers, body = self.server.answers[len(self.server.times) - 1]
        self.send_response(status)
        for name, value in {"content-type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(params=LANGUAGES)
def language(request: pytest.FixtureRequest) -> str:
    program(request.param)
    return request.param


async def play(language: str, script: Script) -> Run:
    thread = threading.Thread(target=script.serve_forever, daemon=True)
    thread.start()
    try:
        url = f"http://127.0.0.1:{script.server_port}/"
        return await run(url, EXAMPLES, program(language), *LANGUAGES[language])
    finally:
        script.shutdown()
        script.server_close()


async def test_waits_as_long_as_it_is_told(language: str) -> None:
    script = Script((503, {"Retry-After": "2"}, {**FULL, "retry_after": 2}), (200, {}, {}))
    assert (await play(language, script)).code == 0
    first, second = script.times
    assert second - first >= 1.9


async def test_waits_longer_each_time_where_it_is_told_nothing(language: str) -> None:
    script = Script((503, {}, {"code": 3001}), (429, {}, {}), (503, {}, {}), (200, {}, {}))
    assert (await play(language, script)).code == 0
    waits = [after - before for before, after in zip(script.times, script.times[1:], strict=False)]
    assert waits[0] >= 0.3
    assert waits[0] < waits[1] < waits[2]


@pytest.mark.parametrize("status", [400, 404, 413, 415, 422, 500, 504])
async def test_repeats_nothing_else(language: str, status: int) -> None:
    script = Script((status, {"Retry-After": "1"}, {"code": 2001}), (200, {}, {}))
    assert (await play(language, script)).code == 1
    assert len(script.times) == 1


async def test_gives_up_in_the_end(language: str) -> None:
    script = Script(*[(503, {"Retry-After": "0"}, FULL)] * 7)
    assert (await play(language, script)).code == 1
    assert len(script.times) == 6

"""What `atelier serve` makes of a server's answers while it starts and stops."""

from __future__ import annotations

import socket
import threading

import pytest

from serve_app.cli import _get


def answer_once(answer: bytes) -> str:
    """A server for one request; its URL."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with server, server.accept()[0] as connection:
            connection.recv(65536)
            connection.sendall(answer)

    threading.Thread(target=serve, daemon=True).start()
    return f"http://127.0.0.1:{server.getsockname()[1]}/ready"


@pytest.mark.parametrize("status", [b"200 OK", b"503 Service Unavailable"])
def test_an_answer_that_breaks_off_is_no_answer(status: bytes) -> None:
    url = answer_once(b"HTTP/1.1 " + status + b"\r\nContent-Length: 89\r\n\r\n{")
    assert _get(url) == {}


def test_a_server_that_is_not_ready_still_says_how_far_it_is() -> None:
    url = answer_once(b'HTTP/1.1 503 Service Unavailable\r\nContent-Length: 15\r\n\r\n{"models": {} }')
    assert _get(url) == {"models": {}}

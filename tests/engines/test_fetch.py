"""Fetching image URLs: what must never be reached, with no network but this machine's."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest

from deployments.contracts.errors import InvalidImage
from deployments.contracts.settings import PreprocessingSettings
from deployments.engines.fetch import Fetcher, ForbiddenAddress, PublicTransport, is_public, resolve_by_system

PUBLIC = "93.184.215.14"


class Recorder(httpx.AsyncBaseTransport):
    """Stands for the network: notes every connection and answers from a list."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.answers = list(answers) or [httpx.Response(200, content=b"image")]
        self.requests: list[httpx.Request] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self.answers[min(len(self.requests), len(self.answers)) - 1]
        if isinstance(answer, Exception):
            raise answer
        return httpx.Response(
            answer.status_code, headers=answer.headers, stream=httpx.ByteStream(answer.content)
        )


def resolving(**hosts: list[str] | str) -> Callable[[str, int], Awaitable[list[str]]]:
    """A resolver that knows these hosts, `_` for a dot; every other name is public; a list is used up."""
    queue = {name.replace("_", "."): value for name, value in hosts.items()}

    async def resolve(host: str, port: int) -> list[str]:
        try:
            return [str(ipaddress.ip_address(host))]
        except ValueError:
            pass
        answer = queue.get(host, PUBLIC)
        return [answer] if isinstance(answer, str) else [answer.pop(0)]

    return resolve


def redirect(to: str, status: int = 302) -> httpx.Response:
    return httpx.Response(status, headers={"location": to})


def fetcher(network: Recorder, resolve: Any = None, **settings: Any) -> Fetcher:
    return Fetcher(PreprocessingSettings(**settings), resolve or resolving(), network)


async def refused(fetcher: Fetcher, url: str) -> InvalidImage:
    with pytest.raises(InvalidImage) as caught:
        await fetcher.fetch(url, "messages.0")
    error = caught.value
    assert error.param == "messages.0"
    assert error.__context__ is None or isinstance(error.__context__, httpx.InvalidURL | ValueError)
    for secret in ("127.0.0.1", "10.0.0", "169.254", "::1", "Errno", "0x"):
        assert secret not in error.message
    return error


# The real resolver reads these: no name here needs DNS.
ATTACKS = [
    "http://127.0.0.1/",
    "http://127.0.0.1:8000/x.png",
    "http://127.1/",
    "http://127.0.1/",
    "http://0/",
    "http://0.0.0.0/",
    "http://0.0.0.0:6379/",
    "http://2130706433/",
    "http://0x7f000001/",
    "http://0x7f.0.0.1/",
    "http://0x7f.0x0.0x0.0x1/",
    "http://017700000001/",
    "http://0177.0.0.1/",
    "http://0177.0.0.01/",
    "http://127.0.0.1./",
    "http://localhost/",
    "http://LOCALHOST/",
    "http://localhost./",
    "http://10.0.0.1/",
    "http://10.255.255.255/",
    "http://172.16.0.1/",
    "http://172.31.255.255/",
    "http://192.168.0.1/",
    "http://192.168.1.1:8080/admin",
    "http://169.254.169.254/latest/meta-data/",
    "http://2852039166/latest/meta-data/",
    "http://0xa9fea9fe/",
    "http://168.63.129.16/",
    "http://100.64.0.1/",
    "http://100.100.100.200/latest/meta-data/",
    "http://100.127.255.255/",
    "http://192.0.0.192/",
    "http://192.0.2.1/",
    "http://192.88.99.1/",
    "http://198.18.0.1/",
    "http://198.51.100.1/",
    "http://203.0.113.1/",
    "http://224.0.0.1/",
    "http://240.0.0.1/",
    "http://255.255.255.255/",
    "http://[::1]/",
    "http://[::]/",
    "http://[0:0:0:0:0:0:0:1]/",
    "http://[::ffff:127.0.0.1]/",
    "http://[::ffff:7f00:1]/",
    "http://[::ffff:169.254.169.254]/",
    "http://[::ffff:10.0.0.1]/",
    "http://[::127.0.0.1]/",
    "http://[64:ff9b::7f00:1]/",
    "http://[64:ff9b::a9fe:a9fe]/",
    "http://[64:ff9b:1::1]/",
    "http://[2002:7f00:1::]/",
    "http://[2002:a00:1::1]/",
    "http://[2001:0:7f00:1::]/",
    "http://[2001:db8::1]/",
    "http://[3fff::1]/",
    "http://[100::1]/",
    "http://[fe80::1]/",
    "http://[fe80::1%25eth0]/",
    "http://[fec0::1]/",
    "http://[fc00::1]/",
    "http://[fd00:ec2::254]/latest/meta-data/",
    "http://[ff02::1]/",
    "http://１２７.0.0.1/",
    "http://①②⑦.⓪.⓪.①/",
    "http://127。0。0。1/",
    "http://127．0．0．1/",
    "http://ⓛⓞⓒⓐⓛⓗⓞⓢⓣ/",
    "http://%31%32%37.0.0.1/",
    "http://user@example.com/",
    "http://user:password@example.com/",
    "http://example.com@127.0.0.1/",
    "http://127.0.0.1@example.com/",
    "http://@127.0.0.1/",
    "http://example.com\\@127.0.0.1/",
    "http://127.0.0.1\\@example.com/",
    "http:\\\\127.0.0.1/",
    "http://example.com\t@127.0.0.1/",
    "http://127.0.0.1\n.example.com/",
    "http://127.0.0.1%00.example.com/",
    "http://exa\u200bmple.com/",
    "http:127.0.0.1",
    "http:/127.0.0.1/",
    "http:///127.0.0.1/",
    "http://",
    "http://:80/",
    "http://example.com:0/",
    "http://example.com:99999/",
    "http://example.com:port/",
    "http://[::1/",
    "//127.0.0.1/",
    "127.0.0.1",
    "/etc/passwd",
    "file:///etc/passwd",
    "file://localhost/etc/passwd",
    "ftp://example.com/x.png",
    "gopher://127.0.0.1:6379/_INFO",
    "dict://127.0.0.1:11211/",
    "ldap://example.com/",
    "jar:http://example.com!/x.png",
    "javascript:alert(1)",
    "blob:https://example.com/1",
    "ws://example.com/",
    "unix:///var/run/docker.sock",
    "http+unix://%2Fvar%2Frun%2Fdocker.sock/",
    "https://127.0.0.1/",
    "HTTP://127.0.0.1/",
    "http://example.com/" + "a" * 9000,
]


@pytest.mark.parametrize("url", ATTACKS)
async def test_attacks_open_no_connection(url: str) -> None:
    network = Recorder()
    error = await refused(fetcher(network, resolve_by_system), url)
    assert network.requests == []
    assert error.code in ("image_url_forbidden", "image_fetch_failed")


@pytest.mark.parametrize("url", ATTACKS)
async def test_attacks_by_redirect_open_no_second_connection(url: str) -> None:
    network = Recorder(redirect(url.replace("\n", "%0A").encode("ascii", "xmlcharrefreplace").decode()))
    resolve = resolving()

    async def first_public(host: str, port: int) -> list[str]:
        return await (resolve if host == "start.example" else resolve_by_system)(host, port)

    await refused(fetcher(network, first_public), "http://start.example/x.png")
    allowed = {PUBLIC}  # a relative or same-host target asks the first server again, which is public
    assert {request.url.host for request in network.requests} <= allowed


@pytest.mark.parametrize(
    "address",
    [
        "8.8.8.8",
        PUBLIC,
        "1.1.1.1",
        "2606:4700::1111",
        "2001:4860:4860::8888",
        "64:ff9b::808:808",
        "::ffff:8.8.8.8",
    ],
)
def test_public_addresses_are_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


async def test_the_checked_address_is_the_one_connected_to() -> None:
    """DNS rebinding: the second answer of the resolver is never asked for."""
    network = Recorder()
    resolve = resolving(rebind_example=[PUBLIC, "127.0.0.1"])
    assert await fetcher(network, resolve).fetch("https://rebind.example:8443/x.png?a=b#c") == b"image"
    (request,) = network.requests
    assert str(request.url) == f"https://{PUBLIC}:8443/x.png?a=b"
    assert request.headers["host"] == "rebind.example:8443"
    assert request.extensions["sni_hostname"] == "rebind.example"
    assert not {"cookie", "authorization", "proxy-authorization", "referer"} & set(request.headers)


async def test_rebinding_between_redirects_is_refused() -> None:
    network = Recorder(redirect("http://rebind.example/y.png"))
    resolve = resolving(rebind_example=[PUBLIC, "127.0.0.1"])
    error = await refused(fetcher(network, resolve), "http://rebind.example/x.png")
    assert error.code == "image_url_forbidden"
    assert len(network.requests) == 1


async def test_one_inner_address_among_public_ones_is_refused() -> None:
    async def mixed(host: str, port: int) -> list[str]:
        return [PUBLIC, "10.0.0.7"]

    network = Recorder()
    await refused(fetcher(network, mixed), "http://mixed.example/")
    assert network.requests == []


async def test_the_next_address_is_tried_when_one_does_not_answer() -> None:
    async def both(host: str, port: int) -> list[str]:
        return ["2606:4700::1111", PUBLIC]

    network = Recorder(httpx.ConnectError("no route"), httpx.Response(200, content=b"image"))
    assert await fetcher(network, both).fetch("http://both.example/") == b"image"
    assert [request.url.host for request in network.requests] == ["2606:4700::1111", PUBLIC]


async def test_international_names_are_asked_for_in_their_ascii_form() -> None:
    asked = []

    async def resolve(host: str, port: int) -> list[str]:
        asked.append(host)
        return [PUBLIC]

    network = Recorder()
    await fetcher(network, resolve).fetch("https://bücher.example/")
    assert asked == ["xn--bcher-kva.example"]
    assert network.requests[0].headers["host"] == "xn--bcher-kva.example"
    assert network.requests[0].extensions["sni_hostname"] == "xn--bcher-kva.example"


async def test_an_unknown_host_is_said_so() -> None:
    async def unknown(host: str, port: int) -> list[str]:
        raise OSError("[Errno -2] Name or service not known")

    error = await refused(fetcher(Recorder(), unknown), "http://nowhere.example/")
    assert error.code == "image_fetch_failed"
    assert "could not be found" in error.message


async def test_three_redirects_are_followed_not_four() -> None:
    final = httpx.Response(200, content=b"image")
    hops = [redirect("/a"), redirect("//other.example/b", 301), redirect("https://third.example/c", 307)]
    network = Recorder(*hops, final)
    assert await fetcher(network).fetch("http://start.example/") == b"image"
    assert [request.headers["host"] for request in network.requests] == [
        "start.example",
        "start.example",
        "other.example",
        "third.example",
    ]
    error = await refused(fetcher(Recorder(redirect("/again"))), "http://start.example/")
    assert "redirects more than 3 times" in error.message


@pytest.mark.parametrize("status", [204, 206, 304, 401, 404, 500])
async def test_other_answers_are_failures(status: int) -> None:
    error = await refused(fetcher(Recorder(httpx.Response(status))), "http://start.example/")
    assert (error.code, str(status) in error.message) == ("image_fetch_failed", True)


async def test_fetching_can_be_switched_off() -> None:
    network = Recorder()
    error = await refused(fetcher(network, fetch_urls=False), "http://start.example/")
    assert error.code == "image_url_forbidden"
    assert "base64 data URL" in error.message
    assert network.requests == []


# ---------------------------------------------------------------------- against a real server
Handler = Callable[[str, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture
async def serve() -> AsyncIterator[Callable[[Handler], Awaitable[int]]]:
    """Starts HTTP servers on this machine: `port = await serve(handler)`."""
    async with AsyncExitStack() as stack:

        async def _serve(handler: Handler) -> int:
            async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                try:
                    request = (await reader.readuntil(b"\r\n\r\n")).decode()
                    await handler(request, writer)
                except (ConnectionError, asyncio.IncompleteReadError):
                    pass
                finally:
                    writer.close()

            server = await asyncio.start_server(connected, "127.0.0.1", 0)
            stack.callback(server.close)
            return int(server.sockets[0].getsockname()[1])

        yield _serve


def answer(body: bytes, head: str = "HTTP/1.1 200 OK\r\n") -> Handler:
    async def handle(request: str, writer: asyncio.StreamWriter) -> None:
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        await writer.drain()

    return handle


def real(*ports: int, **settings: Any) -> Fetcher:
    hosts = tuple(f"127.0.0.1:{port}" for port in ports)
    return Fetcher(PreprocessingSettings(fetch_private_hosts=hosts, **settings))


async def test_a_named_private_host_may_be_fetched_and_only_on_its_port(serve: Any) -> None:
    port, other = await serve(answer(b"image")), await serve(answer(b"secret"))
    fetcher = real(port)
    assert await fetcher.fetch(f"http://127.0.0.1:{port}/x.png") == b"image"
    assert (await refused(fetcher, f"http://127.0.0.1:{other}/")).code == "image_url_forbidden"
    await fetcher.close()


async def test_a_redirect_from_a_named_host_to_loopback_is_refused(serve: Any) -> None:
    reached = []

    async def secret(request: str, writer: asyncio.StreamWriter) -> None:
        reached.append(request)

    inner = await serve(secret)
    for target in (
        f"http://127.0.0.1:{inner}/",
        f"http://localhost:{inner}/",
        f"http://[::ffff:7f00:1]:{inner}/",
    ):
        port = await serve(answer(b"", f"HTTP/1.1 302 Found\r\nLocation: {target}\r\n"))
        assert (await refused(real(port), f"http://127.0.0.1:{port}/")).code == "image_url_forbidden"
    assert reached == []


async def test_the_environment_s_proxy_is_not_used(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    port, proxy = await serve(answer(b"image")), await serve(answer(b"proxied"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{proxy}")
    assert await real(port).fetch(f"http://127.0.0.1:{port}/") == b"image"


async def test_announced_and_streamed_bytes_are_capped(serve: Any) -> None:
    async def endless(request: str, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(bytes(65_536))
            await writer.drain()

    for handler in (answer(bytes(1001)), endless):
        port = await serve(handler)
        error = await refused(real(port, max_bytes=1000), f"http://127.0.0.1:{port}/")
        assert "larger than 1,000 bytes" in error.message
    port = await serve(answer(bytes(1000)))
    assert len(await real(port, max_bytes=1000).fetch(f"http://127.0.0.1:{port}/")) == 1000


async def test_a_drip_ends_at_the_total_time(serve: Any) -> None:
    async def drip(request: str, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.01)

    port = await serve(drip)
    error = await refused(real(port, fetch_timeout_s=0.3), f"http://127.0.0.1:{port}/")
    assert "longer than 0.3 s" in error.message


async def test_broken_answers_are_failures(serve: Any) -> None:
    for head in (b"nonsense\r\n\r\n", b"", b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nshort"):

        async def broken(request: str, writer: asyncio.StreamWriter, head: bytes = head) -> None:
            writer.write(head)
            await writer.drain()

        port = await serve(broken)
        assert (await refused(real(port), f"http://127.0.0.1:{port}/")).code == "image_fetch_failed"


async def test_no_cookies_are_kept(serve: Any) -> None:
    seen = []

    async def cookies(request: str, writer: asyncio.StreamWriter) -> None:
        seen.append(request.lower())
        await answer(b"image", "HTTP/1.1 200 OK\r\nSet-Cookie: a=b\r\n")(request, writer)

    port = await serve(cookies)
    fetcher = real(port)
    for _ in range(2):
        await fetcher.fetch(f"http://127.0.0.1:{port}/")
    assert len(seen) == 2
    assert not any("cookie" in request for request in seen)
    assert all(f"host: 127.0.0.1:{port}\r\n" in request for request in seen)


async def test_the_transport_alone_refuses_too() -> None:
    network = Recorder()
    async with httpx.AsyncClient(transport=PublicTransport(inner=network), trust_env=False) as client:
        with pytest.raises(ForbiddenAddress):
            await client.get("http://127.0.0.1/")
    assert network.requests == []

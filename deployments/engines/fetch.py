"""Fetch image URLs that a client names, without becoming its door to the inner network.

A URL is parsed once; its host is resolved once per hop; every address must be public; the connection goes to
the very address that was checked. Redirects go through the same check. No cookies, proxies, or credentials.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import ssl
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import httpx

from deployments.contracts.errors import InvalidImage
from deployments.contracts.settings import PreprocessingSettings

Resolve = Callable[[str, int], Awaitable[list[str]]]
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

MAX_REDIRECTS = 3
MAX_ADDRESSES = 3
MAX_URL = 8192
HEADERS = {
    "Accept": "image/png, image/jpeg, image/webp, image/gif",
    "Accept-Encoding": "identity",  # a compressed body could be a bomb, and images gain nothing
    "User-Agent": "atelier",
}
_CONTROL = re.compile(r"[\x00-\x20\x7f-\x9f\\\u200b-\u200f\u2028\u2029\ufeff]")
_PUBLIC_V6 = ipaddress.IPv6Network("2000::/3")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
# What Python 3.11's is_global lets through: tunnels, relays, documentation, and Azure's host agent.
_REFUSED = [
    ipaddress.ip_network(net)
    for net in (
        *("192.0.0.0/24", "192.88.99.0/24", "100.64.0.0/10", "168.63.129.16/32"),
        *("2001::/23", "2002::/16", "3fff::/20"),
    )
]


class ForbiddenAddress(Exception):
    """A host resolved to an address that is not public."""


class UnknownHost(Exception):
    """A host did not resolve."""


def is_public(address: Address) -> bool:
    """Whether an address is on the open Internet. One that carries an IPv4 address is judged by that."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(inner)
        if address not in _PUBLIC_V6 or address.scope_id is not None:
            return False
    if not address.is_global or address.is_multicast or address.is_reserved:
        return False
    return not any(address in net for net in _REFUSED)


async def resolve_by_system(host: str, port: int) -> list[str]:
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    return [str(entry[4][0]) for entry in found]


class PublicTransport(httpx.AsyncBaseTransport):
    """Connects to the address that it checked, with the host's name kept for Host and TLS."""

    def __init__(
        self,
        private_hosts: tuple[str, ...] = (),
        resolve: Resolve = resolve_by_system,
        inner: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._private = {name.lower() for name in private_hosts}
        self._resolve = resolve
        self._inner = inner or _direct_transport()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        addresses = await self._addresses(request.url)
        for address in addresses[:-1]:
            try:
                return await self._send(request, address)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                continue  # e.g. no route for IPv6
        return await self._send(request, addresses[-1])

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def _send(self, request: httpx.Request, address: str) -> httpx.Response:
        extensions = dict(request.extensions)
        if request.url.scheme == "https":
            extensions["sni_hostname"] = request.url.raw_host.decode("ascii")
        url = request.url.copy_with(host=address)
        # The headers are the old request's, so Host still names the host.
        return await self._inner.handle_async_request(
            httpx.Request(request.method, url, headers=request.headers, extensions=extensions)
        )

    async def _addresses(self, url: httpx.URL) -> list[str]:
        host, port = url.raw_host.decode("ascii"), url.port or (443 if url.scheme == "https" else 80)
        try:
            found = list(dict.fromkeys(await self._resolve(host, port)))
        except (OSError, UnicodeError, ValueError):
            found = []
        if not found:
            raise UnknownHost
        named = f"{url.host}:{port}".lower() in self._private
        # One inner address among public ones is an attack or a mistake; neither deserves a try.
        if not named and not all(is_public(ipaddress.ip_address(address)) for address in found):
            raise ForbiddenAddress
        return found[:MAX_ADDRESSES]


def _direct_transport() -> httpx.AsyncBaseTransport:
    """No proxies and no kept connections: one is never reused under another host's name."""
    context: ssl.SSLContext = httpx.create_ssl_context(trust_env=False)
    limits = httpx.Limits(max_connections=64, max_keepalive_connections=0)
    return httpx.AsyncHTTPTransport(verify=context, limits=limits, trust_env=False)


class Fetcher:
    """Bytes behind a URL, within limits. Raises InvalidImage that never tells what lies inside."""

    def __init__(
        self,
        settings: PreprocessingSettings,
        resolve: Resolve = resolve_by_system,
        inner: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._settings = settings
        # TLS settings cost 20 ms: not before the first fetch.
        self._make = partial(PublicTransport, settings.fetch_private_hosts, resolve, inner)
        self._transport: PublicTransport | None = None

    async def fetch(self, url: str, param: str | None = None) -> bytes:
        settings = self._settings
        if not settings.fetch_urls:
            raise forbidden("This server fetches no image URLs: send the image as a base64 data URL.", param)
        target = parse(url, param)
        if self._transport is None:
            self._transport = self._make()
        try:
            async with asyncio.timeout(settings.fetch_timeout_s):
                return await self._follow(target, param)
        except ForbiddenAddress:
            error = forbidden("The image URL does not lead to a public address.", param)
        except UnknownHost:
            error = failed("The image URL's host could not be found.", param)
        except (TimeoutError, httpx.TimeoutException):
            error = failed(f"Fetching the image took longer than {settings.fetch_timeout_s:g} s.", param)
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError, ValueError):
            error = failed("The image URL's server did not answer properly.", param)
        raise error  # outside of the except blocks: without the cause in its context

    async def close(self) -> None:
        if self._transport is not None:
            await self._transport.aclose()

    async def _follow(self, url: httpx.URL, param: str | None) -> bytes:
        for _ in range(MAX_REDIRECTS + 1):
            response = await self._get(url)
            try:
                if not response.has_redirect_location:
                    return await self._body(response, param)
                url = parse(str(url.join(response.headers["location"])), param)
            finally:
                await response.aclose()
        raise failed(f"The image URL redirects more than {MAX_REDIRECTS} times.", param)

    async def _get(self, url: httpx.URL) -> httpx.Response:
        assert self._transport is not None
        timeouts = dict.fromkeys(("connect", "read", "write", "pool"), self._settings.fetch_timeout_s)
        extensions: dict[str, Any] = {"timeout": timeouts}
        request = httpx.Request("GET", url, headers=HEADERS, extensions=extensions)
        return await self._transport.handle_async_request(request)

    async def _body(self, response: httpx.Response, param: str | None) -> bytes:
        limit = self._settings.max_bytes
        if response.status_code != 200:
            raise failed(f"The image URL's server answered {response.status_code}.", param)
        announced = response.headers.get("content-length", "")
        body = bytearray()
        if not (announced.isdecimal() and int(announced) > limit):
            async for chunk in response.aiter_raw():
                body += chunk
                if len(body) > limit:
                    break
            else:
                return bytes(body)
        raise failed(f"The image behind the URL is larger than {limit:,} bytes.", param)


def parse(url: str, param: str | None) -> httpx.URL:
    """The one reading of a URL that both the check and the connection use (CVE-2026-24779)."""
    text = url.strip(" ")
    if len(text) > MAX_URL or _CONTROL.search(text):
        raise forbidden("The image URL is too long or holds characters that a URL cannot.", param)
    try:
        parsed = httpx.URL(text)
        port = parsed.port
    except (httpx.InvalidURL, ValueError, TypeError):
        raise forbidden("The image URL cannot be read.", param) from None
    if parsed.scheme not in ("http", "https"):
        raise forbidden("Only http, https and data URLs are allowed for images.", param)
    if not parsed.host or port == 0:
        raise forbidden("The image URL names no host.", param)
    if "@" in re.split(r"[/?#]", text)[2]:
        raise forbidden("The image URL must not hold a user name or password.", param)
    return parsed.copy_with(fragment=None)


def forbidden(message: str, param: str | None) -> InvalidImage:
    return InvalidImage(message, param=param, code="image_url_forbidden")


def failed(message: str, param: str | None) -> InvalidImage:
    hint = " Check it, or send the image as a data URL."
    return InvalidImage(message + hint, param=param, code="image_fetch_failed")

"""Images from other hosts: only allowed names, only public addresses, no redirects, bounded bytes and time."""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import time
import urllib.parse
from collections.abc import Callable

from emu_jax.serving.config import Limits
from emu_jax.serving.errors import ApiError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_PART = 2**16
_IPV6_PUBLIC = ipaddress.IPv6Network("2000::/3")  # the only range with addresses of hosts (RFC 4291)
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # leads to the IPv4 address in its last 32 bits (RFC 6052)
# Protocol assignments, among them Teredo; 6to4, which leads to an IPv4 address; documentation (RFC 9637).
_IPV6_NOT_PUBLIC = tuple(map(ipaddress.IPv6Network, ("2001::/23", "2002::/16", "3fff::/20")))


def is_public(address: Address) -> bool:
    """Return False for private, loopback, link-local, multicast and reserved addresses, and for tunnels to any."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(address.ipv4_mapped)
        if address in _NAT64:
            return is_public(ipaddress.IPv4Address(int(address) % 2**32))
        if address not in _IPV6_PUBLIC or any(address in network for network in _IPV6_NOT_PUBLIC):
            return False
    return address.is_global and not address.is_multicast and not address.is_reserved


def fetch(url: str, *, field: str, limits: Limits, allowed: Callable[[Address], bool] = is_public) -> bytes:
    """Return what a URL on one of `limits.url_hosts` holds.

    The name is resolved once and the connection made to that address, so that a second answer of the name server
    cannot lead elsewhere.

    Raises:
      ApiError: another scheme or host, an address that is not `allowed`, a redirect or other status, or too much.
    """
    refuse = lambda reason: ApiError(400, f"{field}: {reason}", param=field)
    if not limits.url_hosts:
        raise refuse("only data URLs are accepted (data:image/...;base64,...).")
    try:
        parts = urllib.parse.urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise refuse("the URL is malformed.") from None
    if parts.scheme not in ("http", "https") or host is None or parts.username is not None:
        raise refuse("the URL must begin with data:, https:// or http:// and hold no user name.")
    if host not in map(str.lower, limits.url_hosts):
        raise refuse(f"images from {host} are not accepted; allowed are {', '.join(limits.url_hosts)}.")
    secure = parts.scheme == "https"
    port = port or (443 if secure else 80)
    try:
        address = _resolve(host, port, allowed)
    except OSError as error:
        raise refuse(f"{host} cannot be resolved ({error}).") from None
    if address is None:
        raise refuse(f"{host} resolves to an address that is not public.")
    path = urllib.parse.urlunsplit(("", "", parts.path or "/", parts.query, ""))
    connection = _Pinned(host, port, address=address, secure=secure, timeout=limits.fetch_seconds)
    try:
        return _read(connection, path, limits=limits, field=field)
    except (OSError, http.client.HTTPException) as error:
        raise refuse(f"{host} did not deliver the image ({type(error).__name__}).") from None
    finally:
        connection.close()


def _resolve(host: str, port: int, allowed: Callable[[Address], bool]) -> str | None:
    """The first address of a host; None where any of its addresses is not allowed."""
    found = [entry[4][0] for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    addresses = [str(address) for address in found]
    if not all(allowed(ipaddress.ip_address(address.partition("%")[0])) for address in addresses):
        return None
    return addresses[0] if addresses else None


def _read(connection: http.client.HTTPConnection, path: str, *, limits: Limits, field: str) -> bytes:
    deadline = time.monotonic() + limits.fetch_seconds
    connection.request("GET", path, headers={"Accept": "image/*, video/*", "User-Agent": "emu_jax"})
    response = connection.getresponse()
    if response.status != 200:
        kind = "redirects are not followed" if 300 <= response.status < 400 else "expected 200"
        raise ApiError(400, f"{field}: the host answered with status {response.status} ({kind}).", param=field)
    received = bytearray()
    while part := response.read1(_PART):
        received += part
        if len(received) > limits.max_image_bytes:
            raise ApiError(413, f"{field} has more than {limits.max_image_bytes} bytes.", param=field)
        if time.monotonic() > deadline:
            raise TimeoutError
    return bytes(received)


class _Pinned(http.client.HTTPConnection):
    """A connection to one address, with the host's name in the request and in the certificate's check."""

    def __init__(self, host: str, port: int, *, address: str, secure: bool, timeout: float) -> None:
        super().__init__(host, port, timeout=timeout)
        self._address, self._secure = address, secure

    def connect(self) -> None:
        self.sock = socket.create_connection((self._address, self.port), self.timeout)
        if self._secure:
            self.sock = ssl.create_default_context().wrap_socket(self.sock, server_hostname=self.host)

"""What a reverse proxy in front changes: the path may keep a prefix, and the client's address is in a header."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

from starlette.types import ASGIApp, Receive, Scope, Send

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


class ProxyMiddleware:
    """An ASGI middleware that removes the prefix of the path, and replaces a proxy's address by that of its client."""

    def __init__(self, app: ASGIApp, *, root_path: str, proxies: Sequence[Network], own_paths: frozenset[str]) -> None:
        """Wraps an application.

        Args:
            app: The application, which knows paths without the prefix.
            root_path: The prefix: "" or "/PREFIX".
            proxies: The addresses whose forwarding headers are trusted.
            own_paths: The paths of the application, which are never taken for one with the prefix.
        """
        self._app = app
        self._root_path = root_path
        self._proxies = proxies
        self._own_paths = own_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one connection."""
        if scope["type"] == "http":
            scope = {**scope, "path": self._strip_prefix(scope["path"])}
            peer = scope.get("client")
            if peer and self._proxies:
                scope["client"] = (find_client(peer[0], scope["headers"], self._proxies), 0)
        await self._app(scope, receive, send)

    def _strip_prefix(self, path: str) -> str:
        """Returns the path without the prefix; a proxy that removes the prefix itself sends the path as it is."""
        if not self._root_path or path in self._own_paths:
            return path
        if path == self._root_path:
            return "/"
        return path.removeprefix(self._root_path) if path.startswith(f"{self._root_path}/") else path


def find_client(peer: str, headers: Sequence[tuple[bytes, bytes]], proxies: Sequence[Network]) -> str:
    """Returns the address of the client behind the configured proxies; the peer itself if it is not one of them.

    Each proxy appends the address of its peer, so the addresses are read from the last to the first while they are those of
    proxies: a client that invents earlier ones is not believed. If X-Forwarded-For and Forwarded (RFC 7239) disagree, the proxy
    writes only one of them and the client may have sent the other, so neither is believed.
    """
    if not _is_proxy(_parse_address(peer), proxies):
        return peer
    clients = {
        _follow(peer, nodes, proxies)
        for nodes in (_x_forwarded_for(headers), _forwarded(headers))
        if any(nodes)  # an absent header says nothing
    }
    return clients.pop() if len(clients) == 1 else peer


def _follow(peer: str, nodes: Sequence[str], proxies: Sequence[Network]) -> str:
    client = peer
    for node in reversed(nodes):
        address = _parse_address(node)
        if address is None:  # unknown, or obfuscated
            break
        client = str(address)
        if not _is_proxy(address, proxies):
            break
    return client


def _x_forwarded_for(headers: Sequence[tuple[bytes, bytes]]) -> list[str]:
    return [node for node in _header_items(headers, b"x-forwarded-for") if node]


def _forwarded(headers: Sequence[tuple[bytes, bytes]]) -> list[str]:
    nodes = []
    for element in _header_items(headers, b"forwarded"):
        pairs = (pair.partition("=") for pair in element.split(";"))
        clients = (value.strip().strip('"') for name, _, value in pairs if name.strip().lower() == "for")
        nodes.append(next(clients, ""))  # a proxy that does not name its peer ends the chain
    return nodes


def _header_items(headers: Sequence[tuple[bytes, bytes]], name: bytes) -> list[str]:
    values = [value.decode("latin-1") for header, value in headers if header == name]
    return [item.strip() for item in ",".join(values).split(",")] if values else []


def _parse_address(node: str) -> Address | None:
    """Parses an address with or without a port; None for anything else."""
    host = node
    if node.startswith("["):
        host = node[1:].partition("]")[0]
    elif node.count(":") == 1:
        host = node.partition(":")[0]
    try:
        address = ip_address(host)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def _is_proxy(address: Address | None, proxies: Sequence[Network]) -> bool:
    return address is not None and any(address in network for network in proxies)

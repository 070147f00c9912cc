"""Reads the version of an alias from an MLflow server: one request, and no import of MLflow, which takes 150 MB.

The settings are MLflow's: environment variables or ~/.mlflow/credentials. Where they ask for more than this client does (plugins,
AWS signatures, a proxy, .netrc), `RestClient.supports` returns False, and the caller uses MLflow's client.
"""

from __future__ import annotations

import base64
import configparser
import http.client
import json
import socket
import ssl
import threading
from collections.abc import Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import SplitResult, urlencode, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

from forecaster.errors import NoSuchModel, RegistryError
from forecaster.registry.time_limit import measure_call_limit
from forecaster.registry.version import BundleVersion
from forecaster.storage.addresses import redact_addresses

_PATH = "/api/2.0/mlflow/registered-models/alias"
_MAX_RESPONSE_BYTES = 1 << 20
_MAX_REDIRECTS = 3
_PLUGINS = ("MLFLOW_TRACKING_AUTH", "MLFLOW_TRACKING_AWS_SIGV4")
_TRUE = ("1", "true")


class Response(NamedTuple):
    """What a server responded: the status, the target of a redirect ("" if there is none), and the body."""

    status: int
    location: str
    body: bytes


class RestClient:
    """A client of one MLflow server. Its methods may be called in any thread."""

    def __init__(
        self, uri: str, *, headers: Mapping[str, str], context: ssl.SSLContext | None = None, limit_s: float = 12.0
    ) -> None:
        """Creates a client.

        Args:
            uri: The address of the server, such as https://host/mlflow.
            headers: Headers of every request, such as Authorization.
            context: Certificates of https.
            limit_s: Seconds until a request is abandoned, however slowly the response arrives.
        """
        self._uri = uri.rstrip("/")
        self._headers = headers
        self._context = context
        self._limit_s = limit_s

    @staticmethod
    def supports(uri: str, environ: Mapping[str, str]) -> bool:
        """Returns whether this client can be used for an address with MLflow's settings."""
        address = urlsplit(uri)
        if address.scheme not in ("http", "https") or not address.hostname or "@" in address.netloc:
            return False
        proxies = getproxies()
        if (address.scheme in proxies or "all" in proxies) and not proxy_bypass(address.hostname):
            return False
        if any(environ.get(name, "").lower() not in ("", "0", "false") for name in _PLUGINS):
            return False
        if metadata.entry_points(group="mlflow.request_header_provider"):
            return False
        has_netrc = "NETRC" in environ or any(Path.home().joinpath(name).exists() for name in (".netrc", "_netrc"))
        return not has_netrc or _read_authorization(environ) is not None

    @classmethod
    def from_environment(cls, uri: str, environ: Mapping[str, str]) -> RestClient:
        """Returns a client with MLflow's settings; raises OSError if their certificates cannot be read."""
        headers = {"Accept": "application/json", "User-Agent": "forecaster"}
        if authorization := _read_authorization(environ):
            headers["Authorization"] = authorization
        if workspace := environ.get("MLFLOW_WORKSPACE", "").strip():
            headers["X-MLFLOW-WORKSPACE"] = workspace
        return cls(uri, headers=headers, context=_read_certificates(environ), limit_s=measure_call_limit())

    def resolve(self, name: str, alias: str) -> BundleVersion:
        """Returns the version of an alias, as `Registry.resolve` does; raises NoSuchModel or RegistryError."""
        where = f"the store '{redact_addresses(self._uri)}'"
        try:
            response = self._follow_redirects(f"{self._uri}{_PATH}?{urlencode({'name': name, 'alias': alias})}", where)
        except (OSError, http.client.HTTPException, ValueError) as error:
            # A ValueError of http.client repeats the header that is invalid, and so the credentials.
            reason = "" if isinstance(error, ValueError) else redact_addresses(str(error))
            reason = reason or type(error).__name__
            raise RegistryError(
                f"Expected {where} to respond; it did not: {reason}. Check the address of the store and that it is running.",
                where=where,
            ) from error
        fields = _parse_object(response.body)
        if response.status == 200 and isinstance(fields.get("model_version"), dict):
            return _parse_version(fields["model_version"], where)
        code, message = str(fields.get("error_code", "")), " ".join(str(fields.get("message", "")).split())
        if code == "RESOURCE_DOES_NOT_EXIST" or (code == "INVALID_PARAMETER_VALUE" and "not found" in message):
            raise NoSuchModel(
                f"Model '{name}' needs a version with the alias '{alias}'; {where} has none. "
                "Promote or register a version first, or use another alias.",
                where=name,
            )
        found = f"the status {response.status}" + (f" ({redact_addresses(message)[:200]})" if message else "")
        raise RegistryError(
            f"Expected {where} to return the version of '{name}' with the alias '{alias}'; it returned {found}. "
            "Check the address and the credentials, MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD.",
            where=where,
        )

    def _follow_redirects(self, url: str, where: str) -> Response:
        for _ in range(_MAX_REDIRECTS + 1):
            address = urlsplit(url)
            response = self._get(address)
            if not 300 <= response.status < 400 or not response.location:
                return response
            url = urljoin(url, response.location)
            target = urlsplit(url)
            if not _is_same_server(address, target):  # the credentials are sent to no other one
                break
        raise RegistryError(
            f"Expected {where} to respond; it redirects to '{redact_addresses(url)}'. Set the address of the registry to the "
            "one that responds.",
            where=where,
        )

    def _get(self, address: SplitResult) -> Response:
        assert address.hostname is not None
        connection: http.client.HTTPConnection
        if address.scheme == "https":
            context = self._context or ssl.create_default_context()
            connection = http.client.HTTPSConnection(
                address.hostname, address.port, timeout=self._limit_s, context=context
            )
        else:
            connection = http.client.HTTPConnection(address.hostname, address.port, timeout=self._limit_s)
        expired = threading.Event()
        connected: list[
            socket.socket
        ] = []  # kept, because the connection forgets its socket when the response has begun

        def abandon() -> None:  # a response of which a byte arrives every few seconds never times out by itself
            expired.set()
            for open_socket in connected or filter(None, [connection.sock]):
                with suppress(OSError):
                    open_socket.shutdown(socket.SHUT_RDWR)

        timer = threading.Timer(self._limit_s, abandon)
        timer.daemon = True
        timer.start()
        try:
            connection.connect()
            connected.append(connection.sock)
            connection.request("GET", f"{address.path or '/'}?{address.query}", headers=dict(self._headers))
            response = connection.getresponse()
            body = response.read(_MAX_RESPONSE_BYTES + 1)
            if expired.is_set():
                raise TimeoutError(f"its response was not complete after {self._limit_s:.0f} s")
            if len(body) > _MAX_RESPONSE_BYTES:
                raise http.client.HTTPException(f"its response has more than {_MAX_RESPONSE_BYTES} bytes")
            return Response(response.status, response.getheader("location") or "", body)
        except (OSError, http.client.HTTPException) as error:
            if expired.is_set():
                raise TimeoutError(f"its response was not complete after {self._limit_s:.0f} s") from error
            raise
        finally:
            timer.cancel()
            connection.close()


def _is_same_server(address: SplitResult, target: SplitResult) -> bool:
    """Whether a redirect stays at host and port; it may turn http into https, on the usual ports too."""
    if target.hostname != address.hostname or target.scheme not in ("https", address.scheme):
        return False
    usual_ports = {"http": 80, "https": 443}
    port, target_port = (each.port or usual_ports[each.scheme] for each in (address, target))
    return target_port == port or (address.scheme, port, target.scheme, target_port) == ("http", 80, "https", 443)


def _read_authorization(environ: Mapping[str, str]) -> str | None:
    """Returns the Authorization header of MLflow's settings; variables take precedence over the file."""
    credentials = configparser.ConfigParser(interpolation=None)
    with suppress(OSError, configparser.Error, UnicodeDecodeError):
        credentials.read(Path.home() / ".mlflow" / "credentials")

    def read(variable: str) -> str:
        return environ.get(variable) or credentials.get("mlflow", variable.lower(), fallback=None) or ""

    user, password = read("MLFLOW_TRACKING_USERNAME"), read("MLFLOW_TRACKING_PASSWORD")
    if user and password:
        return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
    token = environ.get("MLFLOW_TRACKING_TOKEN", "").strip()
    return f"Bearer {token}" if token else None


def _read_certificates(environ: Mapping[str, str]) -> ssl.SSLContext:
    """Returns the certificates of MLflow's settings and those of requests, which MLflow uses."""
    names = ("MLFLOW_TRACKING_SERVER_CERT_PATH", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
    authorities = next((environ[name] for name in names if environ.get(name)), None)
    is_folder = authorities is not None and Path(authorities).is_dir()
    context = ssl.create_default_context(
        cafile=None if is_folder else authorities, capath=authorities if is_folder else None
    )
    if authorities is None:
        with suppress(ImportError):  # the authorities that requests trusts
            import certifi

            context.load_verify_locations(cafile=certifi.where())
    if environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in _TRUE:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if client_certificate := environ.get("MLFLOW_TRACKING_CLIENT_CERT_PATH"):
        context.load_cert_chain(client_certificate)
    return context


def _parse_object(body: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}


def _parse_version(fields: Mapping[str, Any], where: str) -> BundleVersion:
    try:
        tags = {str(tag["key"]): str(tag.get("value", "")) for tag in fields.get("tags") or ()}
        return BundleVersion.from_tags(
            str(fields["name"]), str(fields["version"]), tags, run_id=str(fields.get("run_id") or "") or None
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise RegistryError(
            f"Expected {where} to return a version with name, number and tags; found other fields. Check that it is an MLflow "
            "server.",
            where=where,
        ) from error

"""API keys and their scopes. Only sha256 hashes are stored, which for random keys of 256 bits is as good as a slow hash.

A key file has one key per line, `NAME SCOPE[,SCOPE] sha256:DIGEST`; `#` starts a comment. Several keys may be valid at the same
time, so a key is rotated without downtime: add the new key, move the clients, remove the old line.
`python -m serving.asgi.auth` creates a key.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from forecaster.storage import atomic
from serving.errors import ApiError
from serving.settings import Settings

LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})
SCOPES = ("read", "actuals", "observe", "admin")
"""The scopes of a key: forecasts, the model and its accuracy; reporting actuals; metrics; everything."""
RELOAD_INTERVAL_S = 1.0  # between checks of the key file
_KEY_PREFIX = "fck_"  # makes leaked keys searchable
_MAX_KEY_LENGTH = 200
_LINE_PATTERN = re.compile(r"(?P<name>[A-Za-z0-9._-]{1,64})\s+(?P<scopes>[a-z,]+)\s+sha256:(?P<digest>[0-9a-f]{64})")

log = logging.getLogger(__name__)


class InvalidKeys(Exception):
    """The configured keys are invalid; the message names the location and never the content."""


class ApiKey(NamedTuple):
    """A key's name, scopes and sha256; the key itself is not stored."""

    name: str
    scopes: frozenset[str]
    digest: str


class Keyring:
    """The keys of a server. A key file is reloaded when it changes, so adding or removing a key needs no restart."""

    def __init__(self, inline_keys: str = "", file: Path | None = None) -> None:
        """Reads the keys; raises InvalidKeys if there are none, or one cannot be parsed."""
        self._inline_keys = inline_keys
        self._file = file
        self._fingerprint = self._file_fingerprint()
        self._keys = self._load_keys()
        self._checked_at = time.monotonic()

    def authorize(self, scope: str | None, headers: Mapping[bytes, bytes]) -> str:
        """Returns the name of the key that authorizes a request. Raises ApiError (401, 403).

        Args:
            scope: The scope that the path needs; None for a path that does not exist, where any valid key is enough.
            headers: The request headers, with names in lower case.
        """
        key = self._find_key(_extract_key(headers))
        if key is None:
            raise ApiError(
                "unauthorized",
                "Expected a valid API key. Send it as `Authorization: Bearer KEY` or `X-API-Key: KEY`.",
                headers={"www-authenticate": "Bearer"},
            )
        if scope is not None and not {scope, "admin"} & key.scopes:
            raise ApiError("forbidden", f"Expected a key with the scope {scope!r}; this key lacks it. Use another key.")
        return key.name

    def _find_key(self, presented_key: bytes) -> ApiKey | None:
        """Compares all keys, each in constant time, so that the delay of the response reveals nothing."""
        digest, match = hashlib.sha256(presented_key).hexdigest(), None
        for key in self._current_keys():
            if hmac.compare_digest(key.digest, digest):
                match = key
        return match

    def _current_keys(self) -> Sequence[ApiKey]:
        now = time.monotonic()
        if self._file is not None and now - self._checked_at > RELOAD_INTERVAL_S:
            self._checked_at = now
            try:
                fingerprint = self._file_fingerprint()
                if fingerprint != self._fingerprint:
                    self._keys, self._fingerprint = self._load_keys(), fingerprint
                    log.info("keys were reloaded: %s", ", ".join(key.name for key in self._keys))
            except (InvalidKeys, OSError) as error:
                log.error("the keys could not be reloaded; the previous keys remain valid: %s", error)
        return self._keys

    def _file_fingerprint(self) -> tuple[int, int, int] | None:
        if self._file is None:
            return None
        try:
            stat = self._file.stat()
        except OSError as error:
            raise InvalidKeys(
                f"Expected keys in {self._file}; it cannot be read ({error.strerror}). Correct the path or its permissions."
            ) from error
        return stat.st_mtime_ns, stat.st_size, stat.st_ino

    def _load_keys(self) -> list[ApiKey]:
        keys = parse_keys(self._inline_keys.replace(";", "\n"), source="the environment")
        if self._file is not None:
            try:
                text = self._file.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise InvalidKeys(
                    f"Expected keys in {self._file}; it cannot be read as UTF-8 text. Correct the file or its permissions."
                ) from error
            keys += parse_keys(text, source=str(self._file))
        if not keys:
            raise InvalidKeys("Expected at least one key; found none. Create one: forecaster key new NAME --keys FILE.")
        return keys


def build_keyring(settings: Settings) -> Keyring | None:
    """Returns the keys of a server; None if it needs none. Raises InvalidKeys, also for a public address without keys."""
    if settings.keys or settings.keys_file is not None:
        return Keyring(settings.keys, settings.keys_file)
    if not settings.host.is_loopback and not settings.without_keys:
        raise InvalidKeys(
            f"Expected keys, because {settings.host} is reachable from other machines; found none. Create one (forecaster key "
            "new NAME --keys FILE) and serve with --keys FILE or, as a Bento, with FORECASTER_SERVING_KEYS_FILE=FILE; or, if a "
            "proxy in front authenticates clients, set "
            "FORECASTER_SERVING_WITHOUT_KEYS=true."
        )
    return None


def find_allowed_hosts(settings: Settings) -> frozenset[str] | None:
    """Returns the names in the Host header that are served; None for all.

    By default a server without keys serves loopback names only, so that no web page can reach it under a name that its author
    makes resolve to this machine (DNS rebinding).
    """
    names = frozenset(filter(None, (name.strip().lower() for name in settings.allowed_hosts.split(";"))))
    if names:
        return None if "*" in names else names
    has_keys = settings.keys or settings.keys_file is not None
    return None if has_keys or settings.without_keys else LOOPBACK_HOSTS


def parse_keys(text: str, *, source: str) -> list[ApiKey]:
    """Parses the lines of a key file; raises InvalidKeys with the number of the first invalid line."""
    keys: list[ApiKey] = []
    for number, line in enumerate(text.splitlines(), 1):
        content = line.partition("#")[0].strip()
        match = _LINE_PATTERN.fullmatch(content)
        scopes = frozenset(match["scopes"].split(",")) if match else frozenset()
        if content and (match is None or not scopes <= set(SCOPES)):
            raise InvalidKeys(
                f"Expected `NAME SCOPE[,SCOPE] sha256:DIGEST` with scopes among {', '.join(SCOPES)}; line {number} of {source} "
                "has another format. Correct or remove it; the key itself must not be stored there."
            )
        if match:
            keys.append(ApiKey(match["name"], scopes, match["digest"]))
    return keys


def create_key(name: str, scopes: Sequence[str], file: Path) -> str:
    """Creates a key, appends its hash to the file and returns the key, which cannot be recovered later. Raises InvalidKeys."""
    key = _KEY_PREFIX + secrets.token_urlsafe(32)
    line = f"{name} {','.join(scopes)} sha256:{hashlib.sha256(key.encode()).hexdigest()}"
    content = file.read_text(encoding="utf-8") if file.exists() else ""
    if name in {other.name for other in parse_keys(content, source=str(file))}:
        raise InvalidKeys(
            f"Expected an unused key name; {name!r} is already in {file}. Choose another name, or remove its line."
        )
    parse_keys(line, source="the command")
    separator = "\n" if content and content[-1] != "\n" else ""
    atomic.write_text(file, content + separator + line + "\n")  # a new file gets mode 0600
    return key


def _extract_key(headers: Mapping[bytes, bytes]) -> bytes:
    scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
    key = token.strip() if scheme.lower() == b"bearer" else headers.get(b"x-api-key", b"")
    return key[:_MAX_KEY_LENGTH]


def main(argv: Sequence[str]) -> int:
    """`python -m serving.asgi.auth NAME SCOPES FILE`: prints only the key, once, to standard output."""
    if len(argv) != 3:
        sys.stderr.write("usage: python -m serving.asgi.auth NAME SCOPE[,SCOPE] FILE\n")
        return 2
    name, scopes, file = argv
    try:
        key = create_key(name, scopes.split(","), Path(file))
    except (InvalidKeys, OSError) as error:
        sys.stderr.write(f"forecaster: {error}\n")
        return 2
    sys.stderr.write(f"Its hash is in {file}. The key itself, which is shown only once:\n")
    sys.stdout.write(f"{key}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

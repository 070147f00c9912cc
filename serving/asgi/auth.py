"""API keys: who may ask what. Only their sha256 is kept, which for random keys of 256 bits is as good as a slow hash.

A file has one key a line, `RELEASE SCOPE[,SCOPE] sha256:DIGEST`; `#` begins a comment. Several keys may be good at once, so one is
replaced without a pause: add the new key, move the clients, remove the old line. `python -m serving.asgi.auth` makes a key.
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

SCOPES = ("read", "actuals", "observe", "admin")
"""What a key opens: forecasts, the model and its accuracy; telling what came; the counters; everything."""
RELOAD_INTERVAL_S = 1.0  # between looks at the file
_KEY_PREFIX = "fck_"  # so that a key that leaked can be searched for
_MAX_KEY_LENGTH = 200
_LINE_PATTERN = re.compile(r"(?P<name>[A-Za-z0-9._-]{1,64})\s+(?P<scopes>[a-z,]+)\s+sha256:(?P<digest>[0-9a-f]{64})")

log = logging.getLogger(__name__)


class InvalidKeys(Exception):
    """The keys that a server was told cannot be used; the message names the place and never what is there."""


class ApiKey(NamedTuple):
    """One key, as far as we know it."""

    name: str
    scopes: frozenset[str]
    digest: str


class Keyring:
    """The keys of a server; those of a file are followed, so that adding and removing one needs no restart."""

    def __init__(self, inline_keys: str = "", file: Path | None = None) -> None:
        """Raises BadKeys if there is none, or one cannot be read."""
        self._inline_keys = inline_keys
        self._file = file
        self._fingerprint = self._file_fingerprint()
        self._keys = self._load_keys()
        self._checked_at = time.monotonic()

    def authorize(self, scope: str | None, headers: Mapping[bytes, bytes]) -> str:
        """The name of the key that lets a request in. Raises Problem (401, 403).

        Args:
            scope: What the path needs; None for one that is not there, of which whoever has a key may learn that.
            headers: Of the request, names in lower case.
        """
        key = self._find_key(_extract_key(headers))
        if key is None:
            raise ApiError(
                "unauthorized",
                "Expected a key that this server knows. Send it as `Authorization: Bearer KEY` or `X-API-Key: KEY`.",
                headers={"www-authenticate": "Bearer"},
            )
        if scope is not None and not {scope, "admin"} & key.scopes:
            raise ApiError("forbidden", f"Expected a key with the scope {scope!r}; this one has not. Use another.")
        return key.name

    def _find_key(self, presented_key: bytes) -> ApiKey | None:
        """Every key is compared, each in constant time: the answer's delay tells nothing."""
        digest, found = hashlib.sha256(presented_key).hexdigest(), None
        for key in self._current_keys():
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found

    def _current_keys(self) -> Sequence[ApiKey]:
        now = time.monotonic()
        if self._file is not None and now - self._checked_at > RELOAD_INTERVAL_S:
            self._checked_at = now
            try:
                sign = self._file_fingerprint()
                if sign != self._fingerprint:
                    self._keys, self._fingerprint = self._load_keys(), sign
                    log.info("keys were read again: %s", ", ".join(key.name for key in self._keys))
            except (InvalidKeys, OSError) as error:
                log.error("the keys stay as they were: %s", error)
        return self._keys

    def _file_fingerprint(self) -> tuple[int, int, int] | None:
        if self._file is None:
            return None
        try:
            found = self._file.stat()
        except OSError as error:
            raise InvalidKeys(f"Expected keys in {self._file}; it cannot be read ({error.strerror}).") from error
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _load_keys(self) -> list[ApiKey]:
        keys = parse_keys(self._inline_keys.replace(";", "\n"), source="the environment")
        if self._file is not None:
            try:
                text = self._file.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise InvalidKeys(f"Expected keys in {self._file}; it cannot be read.") from error
            keys += parse_keys(text, source=str(self._file))
        if not keys:
            raise InvalidKeys("Expected one key at least; found none. Make one: forecaster key new NAME --keys FILE.")
        return keys


def build_keyring(settings: Settings) -> Keyring | None:
    """The keys of a server, None where it needs none. Raises BadKeys, also for an open door to the world."""
    if settings.keys or settings.keys_file is not None:
        return Keyring(settings.keys, settings.keys_file)
    if not settings.host.is_loopback and not settings.without_keys:
        raise InvalidKeys(
            f"Expected keys, because {settings.host} can be reached from other machines; found none. Make one (forecaster key "
            "new NAME --keys FILE) and serve with --keys FILE; or, if something in front asks who comes, set "
            "FORECASTER_SERVING_WITHOUT_KEYS=true."
        )
    return None


def parse_keys(text: str, *, source: str) -> list[ApiKey]:
    """The keys of some lines; raises BadKeys with the number of the first that is none."""
    keys: list[ApiKey] = []
    for number, line in enumerate(text.splitlines(), 1):
        told = line.partition("#")[0].strip()
        match = _LINE_PATTERN.fullmatch(told)
        scopes = frozenset(match["scopes"].split(",")) if match else frozenset()
        if told and (match is None or not scopes <= set(SCOPES)):
            raise InvalidKeys(
                f"Expected `NAME SCOPE[,SCOPE] sha256:DIGEST` with scopes of {', '.join(SCOPES)}; line {number} of {source} is "
                "something else. Correct or remove it; a key itself does not belong there."
            )
        if match:
            keys.append(ApiKey(match["name"], scopes, match["digest"]))
    return keys


def create_key(name: str, scopes: Sequence[str], file: Path) -> str:
    """Makes a key, adds its hash to the file, and answers the key: nobody can read it there later. Raises BadKeys."""
    key = _KEY_PREFIX + secrets.token_urlsafe(32)
    line = f"{name} {','.join(scopes)} sha256:{hashlib.sha256(key.encode()).hexdigest()}"
    before = file.read_text(encoding="utf-8") if file.exists() else ""
    if name in {known.name for known in parse_keys(before, source=str(file))}:
        raise InvalidKeys(
            f"Expected a name that no key has; {name!r} is in {file} already. Take another, or remove its line."
        )
    parse_keys(line, source="the command")
    atomic.write_text(
        file, before + ("\n" if before and before[-1] != "\n" else "") + line + "\n"
    )  # made with mode 0600
    return key


def _extract_key(headers: Mapping[bytes, bytes]) -> bytes:
    kind, _, key = headers.get(b"authorization", b"").partition(b" ")
    found = key.strip() if kind.lower() == b"bearer" else headers.get(b"x-api-key", b"")
    return found[:_MAX_KEY_LENGTH]


def main(argv: Sequence[str]) -> int:
    """`python -m serving.asgi.auth RELEASE SCOPES FILE`: says the key once, and nothing else, on standard output."""
    if len(argv) != 3:
        sys.stderr.write("usage: python -m serving.asgi.auth NAME SCOPE[,SCOPE] FILE\n")
        return 2
    name, scopes, file = argv
    try:
        key = create_key(name, scopes.split(","), Path(file))
    except (InvalidKeys, OSError) as error:
        sys.stderr.write(f"forecaster: {error}\n")
        return 2
    sys.stderr.write(f"Its hash is in {file}. The key itself, which is shown this once:\n")
    sys.stdout.write(f"{key}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

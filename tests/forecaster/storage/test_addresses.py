"""Addresses in messages are shown without user info, query and fragment."""

from __future__ import annotations

import pytest

from forecaster.storage.addresses import redact_addresses


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("postgresql://u:secret@host/name", "postgresql://host/name"),
        ("postgresql+psycopg://u:se@cr/et@host:5432/name", "postgresql+psycopg://host:5432/name"),
        ("postgresql://u:se?cr#et@host/name", "postgresql://host/name"),
        ("postgresql://user@host/name?password=secret&sslmode=require", "postgresql://host/name"),
        ("https://host/data.csv?token=secret", "https://host/data.csv"),
        ("https://host/data.csv#secret", "https://host/data.csv"),
        ("https://:secret@host", "https://host"),
        ("https://secret@host", "https://host"),
        ("simplecache::s3://key:secret@bucket/x", "simplecache::s3://bucket/x"),
        ("found 'https://u:secret@host/x?y=1' (https://host?a=secret).", "found 'https://host/x' (https://host)."),
        ("https://host:5000/path@version and a@b", "https://host:5000/path@version and a@b"),
        ("sqlite:////var/lib/a b/ledger.db", "sqlite:////var/lib/a b/ledger.db"),
        ("is it? yes: a/b?c=d", "is it? yes: a/b?c=d"),
    ],
)
def test_an_address_keeps_only_scheme_host_and_path(text: str, expected: str) -> None:
    assert redact_addresses(text) == expected

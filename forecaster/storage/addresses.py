"""Addresses in messages: shown without user info, query and fragment, any of which may hold a password or a token."""

from __future__ import annotations

import re

# After a colon that starts no port, up to the last @ (a password may contain a slash); else up to the last @ before the path.
_USER_INFO = re.compile(r"(?<=://)(?:[^/\s@]*:(?!\d+(?:[/\s]|$))\S*@|[^/?#\s]*@)")
_QUERY = re.compile(r"(://[^\s?#'\"]*)[?#][^\s'\")\]]*")


def redact_addresses(text: str) -> str:
    """Returns a text whose addresses (scheme://...) have neither user info nor query nor fragment."""
    return _QUERY.sub(r"\1", _USER_INFO.sub("", text))

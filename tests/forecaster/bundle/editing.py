"""Edits of a saved bundle that keep the digests in its manifest true, as in a hostile bundle."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


def read_json(bundle: Path, name: str) -> Any:
    return json.loads((bundle / name).read_bytes())


def write_signed(bundle: Path, name: str, content: bytes | str) -> None:
    """Writes a file and its entry in the manifest."""
    data = content.encode() if isinstance(content, str) else content
    (bundle / name).write_bytes(data)
    manifest = read_json(bundle, "manifest.json")
    manifest["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def edit_json(bundle: Path, name: str, **fields: Any) -> None:
    write_signed(bundle, name, json.dumps(read_json(bundle, name) | fields))


def edit_manifest(bundle: Path, **fields: Any) -> None:
    (bundle / "manifest.json").write_text(json.dumps(read_json(bundle, "manifest.json") | fields))

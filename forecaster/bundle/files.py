"""The files of a bundle: `manifest.json` names all others, and each is verified against it before anything is parsed.

A bundle may come from anyone. Its folder holds exactly the files of its manifest, all of them regular; sizes are limited before
a file is read, and JSON is limited in its nesting and its numbers.

| file | content |
|---|---|
| `manifest.json` | the fields below, with the digest and the size of every other file; its own digest identifies the bundle |
| `spec.json` | the specification |
| `encoding.json` | calendar, covariates, channels and static features as inputs of the network: their scales and categories |
| `conformal.json` | the calibration of the intervals; `null` without one |
| `weights.safetensors` | the weights of all members |
| `golden.json` | golden requests with their forecasts, which are replayed when the bundle is loaded |
| `card.md` | the model card |
| `rollout.onnx`, `rollout-1.onnx`, ... | the rollout of each member as a graph, for machines without torch (optional) |
| `blend.json` | the weights of a blend with statistical models (only of a blend) |
| `histories.safetensors` | the histories of the fit (only if they were saved with the model) |
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import from_json

from forecaster.errors import BundleDamaged
from forecaster.spec import StepCount
from forecaster.storage.limits import MAX_BUNDLE_BYTES, MAX_FILE_BYTES, MAX_FILES, MAX_TEXT_BYTES
from forecaster.storage.regular_files import list_folder, read_regular_file

SCHEMA_VERSION = 1
MANIFEST_FILE = "manifest.json"
CARD_FILE = "card.md"
REQUIRED_FILES = ("spec.json", "encoding.json", "conformal.json", "weights.safetensors", "golden.json", CARD_FILE)
ONNX_FILE = "rollout.onnx"  # optional, as are those of further members; without them the bundle is served by PyTorch
BLEND_FILE = "blend.json"  # only in the bundle of a blend
MAX_SEASON = 1_000_000  # steps

_OPTIONAL_FILE = re.compile(r"blend\.json|histories\.safetensors|rollout(?:-[1-9]\d?)?\.onnx", re.ASCII)
_MAX_INTEGER = 2**63 - 1  # larger integers in JSON cannot be passed on by the service


class FileEntry(BaseModel):
    """The digest and size of one file in the manifest."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    size: int = Field(ge=0)


class Manifest(BaseModel):
    """`manifest.json`: a description of the bundle, and the digest of every other file."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    schema_version: int = Field(description="version of this format")
    name: str = Field(description="name of the model")
    freq: str = Field(description="frequency of the training data")
    season: int = Field(ge=1, le=MAX_SEASON, description="steps of a season")
    context: StepCount = Field(description="steps of history that the network is trained on")
    horizon: StepCount = Field(description="steps ahead that validation and backtests score")
    levels: tuple[float, ...] = Field(description="levels of the calibration; empty without one")
    cutoff: str = Field(description="last timestamp of the training data")
    code_version: str = Field(description="version of this package that wrote the bundle")
    torch_version: str = Field(description="version of torch that trained the network")
    facts: dict[str, Any] = Field(
        description="facts about data, training and test, from which the model card is rendered"
    )
    files: dict[str, FileEntry] = Field(
        description="digest (`sha256`) and `size` in bytes of every other file, by name"
    )

    @field_validator("files")
    @classmethod
    def _check_files(cls, files: dict[str, FileEntry]) -> dict[str, FileEntry]:
        missing = [name for name in REQUIRED_FILES if name not in files]
        if missing:
            raise ValueError(f"expected an entry for {missing[0]}, found none")
        unknown = [name for name in files if name not in REQUIRED_FILES and not _OPTIONAL_FILE.fullmatch(name)]
        if unknown:
            raise ValueError(f"expected the names of a bundle's files only, found {unknown[0][:100]!r}")
        for name, entry in files.items():
            if entry.size > max_bytes(name):
                raise ValueError(f"expected at most {max_bytes(name)} bytes for {name}, found {entry.size}")
        total = sum(entry.size for entry in files.values())
        if total > MAX_BUNDLE_BYTES:
            raise ValueError(f"expected at most {MAX_BUNDLE_BYTES} bytes in all files, found {total}")
        return files


def max_bytes(name: str) -> int:
    """Returns the limit of a file's size."""
    return min(MAX_FILE_BYTES, MAX_TEXT_BYTES if name.endswith((".json", ".md")) else MAX_FILE_BYTES)


def compute_bundle_digest(folder: Path) -> str:
    """Returns the identity of a bundle: the sha256 of its manifest, which contains the digests of all other files."""
    return compute_sha256(_read_file(folder, MANIFEST_FILE, max_bytes(MANIFEST_FILE)))


def compute_sha256(content: bytes) -> str:
    """Returns the sha256 of a content, in hex."""
    return hashlib.sha256(content).hexdigest()


def read_manifest(folder: Path) -> Manifest:
    """Reads the manifest of a bundle; raises BundleDamaged if it is missing, invalid, or has another schema version."""
    content = _read_file(folder, MANIFEST_FILE, max_bytes(MANIFEST_FILE))
    with reject_invalid_content(folder, MANIFEST_FILE):
        fields = parse_json(content)
        version = fields.get("schema_version", SCHEMA_VERSION) if isinstance(fields, dict) else SCHEMA_VERSION
        if isinstance(version, int) and version != SCHEMA_VERSION:
            raise BundleDamaged(
                f"Expected a bundle of schema {SCHEMA_VERSION}; {folder} has schema {version}. "
                "Use the version of forecaster that wrote it, or train the model again.",
                where=MANIFEST_FILE,
            )
        return Manifest.model_validate_json(content)


def read_verified_files(folder: Path, manifest: Manifest) -> dict[str, bytes]:
    """Returns the content of every file of the manifest; raises BundleDamaged unless the folder holds exactly these."""
    return dict(_iter_verified_files(folder, manifest))


def read_verified_file(folder: Path, name: str, manifest: Manifest) -> bytes:
    """Returns the content of one file of the manifest; raises BundleDamaged if it is not what the manifest says."""
    entry = manifest.files[name]
    content = _read_file(folder, name, entry.size)
    if len(content) != entry.size or compute_sha256(content) != entry.sha256:
        raise BundleDamaged(
            f"Expected {name} in {folder} to match the manifest; its digest differs. Fetch the bundle again.",
            where=name,
        )
    return content


def verify_files(folder: Path) -> Manifest:
    """Verifies every file against the manifest without loading the model; raises BundleDamaged."""
    manifest = read_manifest(folder)
    for _ in _iter_verified_files(folder, manifest):
        pass
    return manifest


def read_card(folder: Path) -> str:
    """Returns the model card of a bundle (Markdown); raises BundleDamaged if it cannot be read or is not UTF-8."""
    return decode_card(folder, _read_file(folder, CARD_FILE, max_bytes(CARD_FILE)))


def decode_card(folder: Path, content: bytes) -> str:
    """Decodes the model card; raises BundleDamaged if it is not UTF-8."""
    with reject_invalid_content(folder, CARD_FILE):
        return content.decode("utf-8")


def parse_json(content: bytes) -> Any:
    """Parses JSON strictly, in UTF-8; raises ValueError for anything that two readers could understand differently.

    Rejected are keys that occur twice, NaN and infinities, integers beyond 64 bits, and deep nesting.
    """
    try:
        json.loads(
            content.decode("utf-8"),
            object_pairs_hook=_reject_duplicate_keys,
            parse_constant=_parse_finite,
            parse_float=_parse_finite,
            parse_int=_parse_integer,
        )
    except RecursionError:
        raise ValueError("expected at most 200 nested levels, found more") from None
    return from_json(content, allow_inf_nan=False)


@contextmanager
def reject_invalid_content(folder: Path, name: str) -> Iterator[None]:
    """Translates the errors of invalid content to BundleDamaged."""
    try:
        yield
    except ValidationError as error:
        raise _invalid_content(folder, name, format_first_error(error)) from error
    except ValueError as error:
        raise _invalid_content(folder, name, str(error)[:300]) from error


def format_first_error(error: ValidationError) -> str:
    """Describes the first error of a validation."""
    detail = error.errors()[0]
    return f"{'.'.join(map(str, detail['loc']))[:200] or 'the file'}: {detail['msg'][:300]}"


def _invalid_content(folder: Path, name: str, cause: str) -> BundleDamaged:
    what = "the manifest of a bundle" if name == MANIFEST_FILE else f"{name} of a bundle"
    return BundleDamaged(f"Expected {what} in {folder}; {cause}. Fetch the bundle again.", where=name)


def _iter_verified_files(folder: Path, manifest: Manifest) -> Iterator[tuple[str, bytes]]:
    _check_names(folder, manifest.files)
    for name in manifest.files:
        yield name, read_verified_file(folder, name, manifest)


def _check_names(folder: Path, files: Mapping[str, FileEntry]) -> None:
    """Raises BundleDamaged if the folder holds a file that the manifest does not name."""
    try:
        names = list_folder(folder, max_entries=MAX_FILES)
    except OSError as error:
        raise _unreadable(folder, folder.name, error) from error
    extra = [name for name in names if name not in files and name != MANIFEST_FILE]
    if extra:
        raise BundleDamaged(
            f"Expected exactly the files of the manifest in {folder}; found {extra[0]!r} as well. Fetch the bundle again.",
            where=extra[0],
        )


def _read_file(folder: Path, name: str, limit: int) -> bytes:
    try:
        return read_regular_file(folder, name, max_bytes=limit)
    except OSError as error:
        raise _unreadable(folder / name, name, error) from error


def _unreadable(path: Path, name: str, error: OSError) -> BundleDamaged:
    return BundleDamaged(
        f"Expected the file {path} of a bundle; it cannot be read ({error.strerror}). Fetch the bundle again.",
        where=name,
    )


def _reject_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"expected every key once, found {twice[:100]!r} twice")
    return fields


def _parse_finite(text: str) -> float:
    value = float(text)
    if value - value != 0:
        raise ValueError(f"expected finite numbers, found {text[:100]}")
    return value


def _parse_integer(text: str) -> int:
    if len(text) > 20 or abs(int(text)) > _MAX_INTEGER:
        raise ValueError(f"expected integers of 64 bits, found {text[:100]}")
    return int(text)

"""The command `forecaster doctor`, and what it looks at: nothing is changed, and no more is opened than has to be."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from contextlib import closing
from importlib.util import find_spec
from json import dumps, loads
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

from cyclopts import Parameter

from forecaster.errors import ForecasterError
from pipelines.commands.options import RootOptions
from pipelines.settings import Root, validate_tracking_uri

if TYPE_CHECKING:
    import sqlite3

DiagnosticStatus = Literal["ok", "note", "bad"]
_ROOT_OPTIONS = RootOptions()
_SUPPORTED_PYTHONS = ((3, 11), (3, 12))
_MIN_FREE_BYTES = 1e9  # bytes
_TIMEOUT_S = 1.0
_DEFAULT_PORT = 3000  # of the service, unless it is told otherwise


class Diagnostic(NamedTuple):
    """What one look found: `note` is worth knowing, `bad` has to be mended."""

    name: str
    word: DiagnosticStatus
    told: str


class DiagnosticContext(NamedTuple):
    """Where to look."""

    root: Root
    environ: Mapping[str, str]

    @property
    def slot(self) -> Path:
        """The slot of the service."""
        return Path(self.environ.get("FORECASTER_SERVING_SLOT") or self.root.slot)

    @property
    def service_url(self) -> str:
        """The service on this machine."""
        return f"http://127.0.0.1:{self.environ.get('FORECASTER_SERVING_PORT') or _DEFAULT_PORT}"


def doctor(
    *,
    deep: Annotated[bool, Parameter(negative="")] = False,
    json: Annotated[bool, Parameter(negative="")] = False,
    where: RootOptions = _ROOT_OPTIONS,
) -> None:
    """Looks at what this machine has, and at the stores of a root; ends with 1 if something has to be mended.

    Parameters
    ----------
    deep
        Load PyTorch and the model in use too, which takes seconds.
    json
        Print the findings as JSON.
    """
    validate_tracking_uri(where.tracking_uri)
    place = DiagnosticContext(Root(where.root.expanduser().absolute(), where.tracking_uri), os.environ)
    found = [finding for look in (*CHECKS, *(DEEP_CHECKS if deep else ())) for finding in _run_check(look, place)]
    if json:
        print(dumps([finding._asdict() for finding in found], indent=2))
    else:
        print("\n".join(f"{one.word:6}{one.name:12}{one.told}" for one in found))
    if any(finding.word == "bad" for finding in found):
        sys.exit(1)


def _run_check(check: Callable[[DiagnosticContext], list[Diagnostic]], context: DiagnosticContext) -> list[Diagnostic]:
    import sqlite3

    try:
        return check(context)
    except (
        ForecasterError,
        OSError,
        sqlite3.Error,
        ValueError,
    ) as error:  # what a look did not foresee is a finding too
        return [Diagnostic(check.__name__.removeprefix("_check_"), "bad", _mask_credentials(str(error)))]


def _check_python(_: DiagnosticContext) -> list[Diagnostic]:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] not in _SUPPORTED_PYTHONS:
        return [Diagnostic("python", "bad", f"{version}; 3.11 or 3.12 is needed")]
    return [Diagnostic("python", "ok", version)]


def _check_packages(_: DiagnosticContext) -> list[Diagnostic]:
    """Those of the installed project's own metadata: what is needed, and by extra what may be left out."""
    from importlib import metadata

    try:
        lines = metadata.requires("forecaster") or []
    except metadata.PackageNotFoundError:
        return [
            Diagnostic("packages", "note", "run from a checkout: versions cannot be checked; pip install . would tell")
        ]
    if find_spec("packaging") is None:
        return [Diagnostic("packages", "note", "versions cannot be checked without the package 'packaging'")]
    from packaging.requirements import Requirement

    missing: dict[str, list[str]] = {}
    wrong: dict[str, list[str]] = {}
    groups = set()
    for requirement in map(Requirement, lines):
        extra = re.search(r"extra == ['\"]([^'\"]+)", str(requirement.marker or ""))
        group = extra[1] if extra else ""
        if group in ("all", "dev") or not (requirement.marker is None or requirement.marker.evaluate({"extra": group})):
            continue
        groups.add(group)
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            missing.setdefault(group, []).append(requirement.name)
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.setdefault(group, []).append(f"{requirement.name} {version}, needed is {requirement.specifier}")
    # An extra of which something is missing is not in use: what others brought of it may have any version.
    bad = [f"{', '.join(missing[''])} missing"] if "" in missing else []
    bad += [told for group, all_told in wrong.items() if not group or group not in missing for told in all_told]
    if bad:
        return [Diagnostic("packages", "bad", f"{'; '.join(bad)}: install forecaster and its extras again")]
    whole = ", ".join(sorted(groups - set(missing) - {""})) or "none"
    partly = "; ".join(f"{group} lacks {', '.join(names)}" for group, names in sorted(missing.items()))
    return [Diagnostic("packages", "ok", f"extras: {whole}{f' ({partly})' if partly else ''}")]


def _check_kernel(_: DiagnosticContext) -> list[Diagnostic]:
    from forecaster.model.recurrence.library import load_library

    if load_library() is None:
        return [
            Diagnostic(
                "kernel", "note", "not compiled: graphs and PyTorch compute instead; a C compiler and pip install"
            )
        ]
    return [Diagnostic("kernel", "ok", "compiled")]


def _check_processors(context: DiagnosticContext) -> list[Diagnostic]:
    cores, told = len(os.sched_getaffinity(0)), context.environ.get("OMP_NUM_THREADS")
    threads = f"OMP_NUM_THREADS={told}" if told else "OMP_NUM_THREADS is not set"
    cards = len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
    gpu = f"{cards} GPU" if cards else "no GPU"
    if told and told.isdecimal() and int(told) > cores:
        return [Diagnostic("processors", "note", f"{cores} cores, {threads}: threads would wait for each other; {gpu}")]
    return [Diagnostic("processors", "ok", f"{cores} cores, {threads}; {gpu}")]


def _check_root(context: DiagnosticContext) -> list[Diagnostic]:
    path = context.root.path
    there = next(folder for folder in (path, *path.parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        return [Diagnostic("root", "bad", f"{path} cannot be written; name another with --root")]
    free = shutil.disk_usage(there).free
    told = f"{path}{'' if there == path else ' (not made yet)'}, {free / 1e9:.1f} GB free"
    return [Diagnostic("root", "bad" if free < _MIN_FREE_BYTES else "ok", told)]


def _check_store(context: DiagnosticContext) -> list[Diagnostic]:
    """The registry. MLflow itself is not loaded: of a database its migration is read, a server is asked for its health."""
    uri = context.root.store_uri
    scheme, _, rest = uri.partition("://")
    if scheme in ("http", "https"):
        status = _request_status(f"{uri.rstrip('/')}/health")
        word: DiagnosticStatus = "ok" if status == 200 else "bad"
        return [
            Diagnostic(
                "store",
                word,
                f"{_mask_credentials(uri)} {'answers' if status == 200 else f'does not answer as MLflow ({status})'}",
            )
        ]
    if scheme != "sqlite":
        return [Diagnostic("store", "note", f"{_mask_credentials(uri)}: databases other than SQLite are not looked at")]
    path = Path(rest.removeprefix("/"))
    if not path.exists():
        return [Diagnostic("store", "ok", f"{path}: none yet; the first training makes it")]
    with closing(_open_read_only(path)) as database:
        [revision] = database.execute("SELECT version_num FROM alembic_version").fetchone()
        names = [name for (name,) in database.execute("SELECT DISTINCT name FROM registered_models ORDER BY name")]
    behind = _has_later_migration(str(revision))
    if behind:
        return [
            Diagnostic("store", "note", f"{path}: of another MLflow ({revision}), which migrates it when it is opened")
        ]
    frozen = "" if os.access(path, os.W_OK) else ", read-only: forecaster rollback NAME --local works all the same"
    models = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return [
        Diagnostic("store", "note" if frozen else "ok", f"{path}: {len(names)} models ({models or 'none'}){frozen}")
    ]


def _has_later_migration(revision: str) -> bool:
    """Whether the MLflow that is installed knows later tables; it is not imported for that."""
    package = find_spec("mlflow")
    if package is None or not package.submodule_search_locations:
        return False
    versions = Path(package.submodule_search_locations[0]) / "store" / "db_migrations" / "versions"
    texts = [path.read_text(encoding="utf-8") for path in versions.glob("*.py")]
    return any(re.search(rf"^down_revision\b.*[\"']{revision}[\"']", text, re.MULTILINE) for text in texts)


def _check_slot(context: DiagnosticContext) -> list[Diagnostic]:
    from forecaster.bundle.artifact import compute_bundle_digest, verify_files

    current = context.slot / "current"
    if not current.exists():
        return [Diagnostic("slot", "ok", f"{context.slot}: nothing served yet")]
    release = loads((current / "release.json").read_bytes())
    manifest = verify_files(current / "bundle")
    if compute_bundle_digest(current / "bundle") != release["digest"]:
        return [Diagnostic("slot", "bad", f"{context.slot}: the bundle is not the one that release.json names")]
    pinned = ", rolled back here (forecaster rollback --local)" if (context.slot / "pinned.json").exists() else ""
    told = f"{release['name']} version {release['version']} ({release['digest'][:12]}), every {manifest.freq}{pinned}"
    return [Diagnostic("slot", "note" if pinned else "ok", told)]


def _check_ledger(context: DiagnosticContext) -> list[Diagnostic]:
    said = context.environ.get("FORECASTER_SERVING_LEDGER") or "off"
    if said not in ("on", "off") and not said.startswith("sqlite:///"):
        return [Diagnostic("ledger", "note", "in a database other than SQLite, which is not looked at")]
    path = Path(said.removeprefix("sqlite:///")) if said not in ("on", "off") else context.slot / "ledger.db"
    if not path.exists():
        return [Diagnostic("ledger", "ok", f"none at {path}")]
    with closing(_open_read_only(path)) as database:
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    return [
        Diagnostic(
            "ledger", "ok" if tables else "bad", f"{path}: {len(tables)} tables, {path.stat().st_size / 1e6:.1f} MB"
        )
    ]


def _check_port(context: DiagnosticContext) -> list[Diagnostic]:
    status = _request_status(f"{context.service_url}/livez")
    if status == 0:
        return [Diagnostic("port", "ok", f"{context.service_url} is free")]
    if status != 200:
        return [
            Diagnostic("port", "bad", f"{context.service_url} belongs to another program ({status}); serve with --port")
        ]
    ready = _request_status(f"{context.service_url}/readyz")
    return [
        Diagnostic(
            "port", "ok", f"{context.service_url}: a service, {'ready' if ready == 200 else f'not ready ({ready})'}"
        )
    ]


def _check_torch(_: DiagnosticContext) -> list[Diagnostic]:
    import torch

    cards = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    told = f"{torch.__version__}, {torch.get_num_threads()} threads, {', '.join(cards) or 'no GPU'}"
    return [Diagnostic("torch", "ok", told)]


def _check_model(context: DiagnosticContext) -> list[Diagnostic]:
    from forecaster.bundle import artifact

    if not (context.slot / "current").exists():
        return []
    artifact.load_predictor(context.slot / "current" / "bundle")
    return [Diagnostic("model", "ok", "the model in use answers its golden requests")]


CHECKS = (
    _check_python,
    _check_packages,
    _check_kernel,
    _check_processors,
    _check_root,
    _check_store,
    _check_slot,
    _check_ledger,
    _check_port,
)
DEEP_CHECKS = (_check_torch, _check_model)


def _open_read_only(path: Path) -> sqlite3.Connection:
    """A SQLite database, to be read alone."""
    import sqlite3

    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=_TIMEOUT_S)


def _request_status(url: str) -> int:
    """The status of an answer; 0 where nobody listens, -1 where nobody answers in HTTP or in time."""
    import urllib.error
    import urllib.request

    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=_TIMEOUT_S) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except urllib.error.URLError as error:
        return 0 if isinstance(error.reason, ConnectionRefusedError) else -1
    except Exception:  # of any kind: whoever answers there may say anything
        return -1


def _mask_credentials(text: str) -> str:
    """Without user and password in an address."""
    return re.sub(r"//[^/\s@]*@", "//", " ".join(text.split()))

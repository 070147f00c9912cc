"""The command `forecaster doctor` and its checks. The checks change nothing, and open no more than necessary."""

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

from forecaster.errors import ForecasterError, InputError
from forecaster.installation import DISTRIBUTION, is_installed
from forecaster.storage.addresses import redact_addresses
from pipelines.commands.options import RootOptions
from pipelines.settings import Root, validate_tracking_uri

if TYPE_CHECKING:
    import sqlite3

DiagnosticStatus = Literal["ok", "note", "bad"]
_ROOT_OPTIONS = RootOptions()
_SUPPORTED_PYTHONS = tuple((3, minor) for minor in range(11, 15))
_MIN_FREE_BYTES = 1e9
_TIMEOUT_S = 1.0
_RESPONSE_LIMIT_S = 5.0  # of a whole response, which may arrive byte by byte
_DEFAULT_PORT = 3000  # the default port of the service


class Diagnostic(NamedTuple):
    """The result of one check: `note` is information, `bad` needs to be fixed."""

    name: str
    status: DiagnosticStatus
    message: str


class DiagnosticContext(NamedTuple):
    """The root and the environment that are checked."""

    root: Root
    environ: Mapping[str, str]

    @property
    def slot(self) -> Path:
        """The folder of the service's slot."""
        return Path(self.environ.get("FORECASTER_SERVING_SLOT") or self.root.slot)

    @property
    def service_url(self) -> str:
        """The URL of the service on this machine."""
        return f"http://127.0.0.1:{self.environ.get('FORECASTER_SERVING_PORT') or _DEFAULT_PORT}"


def doctor(
    *,
    deep: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    move_root: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    json: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    root_options: RootOptions = _ROOT_OPTIONS,
) -> None:
    """Checks this machine and the stores of a root; exits with 1 if something needs to be fixed.

    Parameters
    ----------
    deep
        Also load PyTorch and the model in use, which takes seconds.
    move_root
        First rewrite the absolute paths in the root's database, which are those of the old folder after the root was copied or
        moved. Stop everything that uses the root before.
    json
        Print the results as JSON.
    """
    validate_tracking_uri(root_options.tracking_uri)
    root = Root(root_options.root.expanduser().absolute(), root_options.tracking_uri)
    if move_root:
        _move_paths(root)
    context = DiagnosticContext(root, os.environ)
    checks = (*CHECKS, *(DEEP_CHECKS if deep else ()))
    diagnostics = [diagnostic for check in checks for diagnostic in _run_check(check, context)]
    if json:
        rows = [{"name": entry.name, "word": entry.status, "told": entry.message} for entry in diagnostics]
        print(dumps(rows, indent=2))
    else:
        print("\n".join(f"{entry.status:6}{entry.name:12}{entry.message}" for entry in diagnostics))
    if any(entry.status == "bad" for entry in diagnostics):
        sys.exit(1)


def _move_paths(root: Root) -> None:
    """Rewrites the paths in the database of a root, and prints how many there were to standard error."""
    from pipelines.tracking.artifact_paths import move_paths

    database_path = root.path / "mlflow.db"
    if root.tracking_uri is not None or not database_path.is_file():
        raise InputError(
            f"Expected a root with a database; found {_mask_credentials(root.store_uri)}. Use --root with the folder that was "
            "copied, and no tracking server.",
            where="root",
        )
    print(f"forecaster: {move_paths(database_path, root.path)} paths moved to {root.path}", file=sys.stderr)


def _run_check(check: Callable[[DiagnosticContext], list[Diagnostic]], context: DiagnosticContext) -> list[Diagnostic]:
    import sqlite3

    try:
        return check(context)
    except (
        ForecasterError,
        OSError,
        sqlite3.Error,
        ValueError,
    ) as error:  # an unexpected error of a check is reported as its result
        return [Diagnostic(check.__name__.removeprefix("_check_"), "bad", _mask_credentials(str(error)))]


def _check_python(_: DiagnosticContext) -> list[Diagnostic]:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] not in _SUPPORTED_PYTHONS:
        return [Diagnostic("python", "bad", f"{version}; expected 3.11 to 3.14")]
    return [Diagnostic("python", "ok", version)]


def _check_packages(_: DiagnosticContext) -> list[Diagnostic]:
    """Compares the installed packages with the requirements in the project's metadata: the mandatory ones, and each extra."""
    from importlib import metadata

    try:
        lines = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return [
            Diagnostic("packages", "note", "running from a checkout, so versions cannot be checked; run pip install .")
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
    # An incomplete extra is not in use, so the versions of its other packages do not matter.
    bad = [f"{', '.join(missing[''])} missing"] if "" in missing else []
    bad += [fault for group, faults in wrong.items() if not group or group not in missing for fault in faults]
    if bad:
        return [Diagnostic("packages", "bad", f"{'; '.join(bad)}: install {DISTRIBUTION} and its extras again")]
    complete = ", ".join(sorted(groups - set(missing) - {""})) or "none"
    incomplete = "; ".join(f"{group} lacks {', '.join(names)}" for group, names in sorted(missing.items()))
    return [Diagnostic("packages", "ok", f"extras: {complete}{f' ({incomplete})' if incomplete else ''}")]


def _check_kernel(_: DiagnosticContext) -> list[Diagnostic]:
    from forecaster.model.recurrence.library import find_library, load_library

    if find_library() is None or load_library() is None:
        return [
            Diagnostic(
                "kernel",
                "note",
                "not compiled, so ONNX graphs and PyTorch are used; install the wheel for this machine, or a C compiler "
                f"and then {DISTRIBUTION}",
            )
        ]
    return [Diagnostic("kernel", "ok", "compiled")]


def _check_processors(context: DiagnosticContext) -> list[Diagnostic]:
    cores, omp_threads = len(os.sched_getaffinity(0)), context.environ.get("OMP_NUM_THREADS")
    threads = f"OMP_NUM_THREADS={omp_threads}" if omp_threads else "OMP_NUM_THREADS is not set"
    num_gpus = len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
    gpu = f"{num_gpus} GPU" if num_gpus else "no GPU"
    if omp_threads and omp_threads.isdecimal() and int(omp_threads) > cores:
        return [
            Diagnostic(
                "processors", "note", f"{cores} cores, {threads}: more threads than cores slow each other down; {gpu}"
            )
        ]
    return [Diagnostic("processors", "ok", f"{cores} cores, {threads}; {gpu}")]


def _check_root(context: DiagnosticContext) -> list[Diagnostic]:
    path = context.root.path
    existing = next(folder for folder in (path, *path.parents) if folder.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        return [Diagnostic("root", "bad", f"{path} cannot be written; use another one with --root")]
    free = shutil.disk_usage(existing).free
    message = f"{path}{'' if existing == path else ' (not created yet)'}, {free / 1e9:.1f} GB free"
    return [Diagnostic("root", "bad" if free < _MIN_FREE_BYTES else "ok", message)]


def _check_store(context: DiagnosticContext) -> list[Diagnostic]:
    """Checks the store of runs and models, and the registry of the service if it is another one."""
    stores = {"store": context.root.store_uri}
    registry_uri = context.environ.get("FORECASTER_SERVING_REGISTRY")
    if registry_uri and registry_uri != context.root.store_uri:
        stores["registry"] = registry_uri
    return [_check_one_store(name, uri) for name, uri in stores.items()]


def _check_one_store(name: str, uri: str) -> Diagnostic:
    """Checks a store without importing MLflow: the migration of a database, or the health of a server."""
    import sqlite3

    from forecaster.registry.connection import DATABASE_SCHEMES

    scheme, _, rest = uri.partition("://")
    try:
        if scheme in ("http", "https"):
            http_status = _request_status(f"{uri.rstrip('/')}/health")
            if http_status == 200:
                return Diagnostic(name, "ok", f"{_mask_credentials(uri)} responds")
            return Diagnostic(name, "bad", f"{_mask_credentials(uri)} does not respond as MLflow ({http_status})")
        if scheme == "sqlite":
            return _check_sqlite_store(name, Path(rest.removeprefix("/")))
        if scheme.partition("+")[0] not in DATABASE_SCHEMES:
            return Diagnostic(name, "note", f"{_mask_credentials(uri)}: stores of this kind are not checked")
        revision = _connect_to_database(uri)
        message = "connected, no tables yet" if revision is None else f"connected (revision {revision})"
        return Diagnostic(name, "ok", f"{_mask_credentials(uri)}: {message}")
    except (ForecasterError, OSError, sqlite3.Error, ValueError) as error:
        return Diagnostic(name, "bad", _mask_credentials(str(error)))


def _connect_to_database(url: str) -> str | None:
    """Connects to a database other than SQLite; returns the revision of MLflow's tables, None without such tables."""
    from forecaster.registry.connection import connect_to_database

    return connect_to_database(url, where=f"the database '{_mask_credentials(url)}'")


def _check_sqlite_store(name: str, path: Path) -> Diagnostic:
    if not path.exists() or path.stat().st_size == 0:  # SQLite opens a new database as an empty file
        return Diagnostic(name, "ok", f"{path}: none yet; the first training creates it")
    with closing(_open_read_only(path)) as database:
        [revision] = database.execute("SELECT version_num FROM alembic_version").fetchone()
        query = "SELECT DISTINCT name FROM registered_models ORDER BY name"
        model_names = [model_name for (model_name,) in database.execute(query)]
    if _has_later_migration(str(revision)):
        message = f"from an older MLflow (revision {revision}); the installed MLflow migrates it on first use"
        return Diagnostic(name, "note", f"{path}: {message}")
    read_only = "" if os.access(path, os.W_OK) else ", read-only: use forecaster rollback NAME --local for a rollback"
    models = ", ".join(model_names[:5]) + (", ..." if len(model_names) > 5 else "")
    message = f"{path}: {len(model_names)} models ({models or 'none'}){read_only}"
    return Diagnostic(name, "note" if read_only else "ok", message)


def _check_artifacts(context: DiagnosticContext) -> list[Diagnostic]:
    """Checks that the files that the database of the root names are in the root."""
    import sqlite3

    from pipelines.tracking.artifact_paths import find_wrong_paths

    path = context.root.path / "mlflow.db"
    if context.root.tracking_uri is not None or not path.exists():
        return []
    try:
        with closing(_open_read_only(path)) as database:
            outside, missing = find_wrong_paths(database, context.root.path)
    except sqlite3.Error:  # the check of the store reports it
        return []
    if outside:
        advice = "if the root was copied or moved here, run forecaster doctor --move-root"
        return [Diagnostic("artifacts", "bad", f"{len(outside)} paths outside the root ({outside[0]}, ...); {advice}")]
    if missing:
        advice = "restore it from a backup, or register the bundle again"
        return [Diagnostic("artifacts", "bad", f"the folder of a model version is missing ({missing[0]}); {advice}")]
    return [Diagnostic("artifacts", "ok", "every model version has its files in the root")]


def _has_later_migration(revision: str) -> bool:
    """Whether the installed MLflow, which is not imported, has a migration after this revision."""
    package = find_spec("mlflow")
    if package is None or not package.submodule_search_locations:
        return False
    versions = Path(package.submodule_search_locations[0]) / "store" / "db_migrations" / "versions"
    texts = [path.read_text(encoding="utf-8") for path in versions.glob("*.py")]
    return any(re.search(rf"^down_revision\b.*[\"']{revision}[\"']", text, re.MULTILINE) for text in texts)


def _check_slot(context: DiagnosticContext) -> list[Diagnostic]:
    from forecaster.bundle.artifact import compute_bundle_digest, verify_files
    from forecaster.storage.regular_files import read_regular_file

    current = context.slot / "current"
    if current.is_symlink() and not current.exists():
        message = f"{current}: the link leads to no folder; remove it, and the service deploys its model again"
        return [Diagnostic("slot", "bad", message)]
    if not current.exists():
        return [Diagnostic("slot", "ok", f"{context.slot}: no model served yet")]
    release = loads(read_regular_file(current, "release.json", max_bytes=1 << 20))
    manifest = verify_files(current / "bundle")
    if compute_bundle_digest(current / "bundle") != release["digest"]:
        return [Diagnostic("slot", "bad", f"{context.slot}: the bundle does not have the digest in release.json")]
    pinned = ", rolled back here (forecaster rollback --local)" if (context.slot / "pinned.json").exists() else ""
    message = (
        f"{release['name']} version {release['version']} ({release['digest'][:12]}), every {manifest.freq}{pinned}"
    )
    return [Diagnostic("slot", "note" if pinned else "ok", message)]


def _check_ledger(context: DiagnosticContext) -> list[Diagnostic]:
    setting = context.environ.get("FORECASTER_SERVING_LEDGER") or "off"
    if setting not in ("on", "off") and not setting.startswith("sqlite:///"):
        _connect_to_database(setting)
        return [Diagnostic("ledger", "ok", f"{_mask_credentials(setting)}: connected")]
    path = Path(setting.removeprefix("sqlite:///")) if setting not in ("on", "off") else context.slot / "ledger.db"
    if not path.exists():
        return [Diagnostic("ledger", "ok", f"no ledger at {path}")]
    with closing(_open_read_only(path)) as database:
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    return [
        Diagnostic(
            "ledger", "ok" if tables else "bad", f"{path}: {len(tables)} tables, {path.stat().st_size / 1e6:.1f} MB"
        )
    ]


def _check_port(context: DiagnosticContext) -> list[Diagnostic]:
    http_status = _request_status(f"{context.service_url}/livez")
    if http_status == 0:
        return [Diagnostic("port", "ok", f"{context.service_url} is free")]
    if http_status != 200:
        return [
            Diagnostic(
                "port", "bad", f"{context.service_url} is used by another program ({http_status}); use serve --port"
            )
        ]
    ready_status = _request_status(f"{context.service_url}/readyz")
    readiness = "ready" if ready_status == 200 else f"not ready ({ready_status})"
    return [Diagnostic("port", "ok", f"{context.service_url}: a service, {readiness}")]


def _check_torch(_: DiagnosticContext) -> list[Diagnostic]:
    if not is_installed("torch"):
        return [Diagnostic("torch", "note", "not installed; forecasts and the service do not need it, training does")]
    import torch

    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    message = f"{torch.__version__}, {torch.get_num_threads()} threads, {', '.join(gpus) or 'no GPU'}"
    return [Diagnostic("torch", "ok", message)]


def _check_model(context: DiagnosticContext) -> list[Diagnostic]:
    from forecaster.bundle import artifact

    if not (context.slot / "current").exists():
        return []
    artifact.load_predictor(context.slot / "current" / "bundle")
    return [Diagnostic("model", "ok", "the model in use reproduces its golden forecasts")]


CHECKS = (
    _check_python,
    _check_packages,
    _check_kernel,
    _check_processors,
    _check_root,
    _check_store,
    _check_artifacts,
    _check_slot,
    _check_ledger,
    _check_port,
)
DEEP_CHECKS = (_check_torch, _check_model)


def _open_read_only(path: Path) -> sqlite3.Connection:
    """Opens a SQLite database in read-only mode."""
    import sqlite3

    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=_TIMEOUT_S)


def _request_status(url: str) -> int:
    """Returns the HTTP status of a URL; 0 if the connection is refused, -1 if there is no HTTP response in time."""
    import urllib.error
    import urllib.request

    from forecaster.registry.time_limit import limit_time

    try:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with limit_time(url, limit_s=_RESPONSE_LIMIT_S), opener.open(url, timeout=_TIMEOUT_S) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except urllib.error.URLError as error:
        return 0 if isinstance(error.reason, ConnectionRefusedError) else -1
    except Exception:  # any class: the program on the port may send anything
        return -1


def _mask_credentials(text: str) -> str:
    """Returns a text in one line, and its addresses without user info and query."""
    return redact_addresses(" ".join(text.split()))

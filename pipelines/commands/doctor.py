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
from pipelines.commands.options import Where
from pipelines.settings import Root, check_address

if TYPE_CHECKING:
    import sqlite3

Word = Literal["ok", "note", "bad"]
_WHERE = Where()
_PYTHONS = ((3, 11), (3, 12))
_LEAST_FREE = 1e9  # bytes
_PATIENCE_S = 1.0
_PORT = 3000  # of the service, unless it is told otherwise


class Finding(NamedTuple):
    """What one look found: `note` is worth knowing, `bad` has to be mended."""

    name: str
    word: Word
    told: str


class Place(NamedTuple):
    """Where to look."""

    root: Root
    environ: Mapping[str, str]

    @property
    def slot(self) -> Path:
        """The slot of the service."""
        return Path(self.environ.get("FORECASTER_SERVING_SLOT") or self.root.slot)

    @property
    def address(self) -> str:
        """The service on this machine."""
        return f"http://127.0.0.1:{self.environ.get('FORECASTER_SERVING_PORT') or _PORT}"


def doctor(
    *,
    deep: Annotated[bool, Parameter(negative="")] = False,
    json: Annotated[bool, Parameter(negative="")] = False,
    where: Where = _WHERE,
) -> None:
    """Looks at what this machine has, and at the stores of a root; ends with 1 if something has to be mended.

    Parameters
    ----------
    deep
        Load PyTorch and the model in use too, which takes seconds.
    json
        Print the findings as JSON.
    """
    check_address(where.tracking_uri)
    place = Place(Root(where.root.expanduser().absolute(), where.tracking_uri), os.environ)
    found = [finding for look in (*LOOKS, *(DEEP if deep else ())) for finding in _looked(look, place)]
    if json:
        print(dumps([finding._asdict() for finding in found], indent=2))
    else:
        print("\n".join(f"{one.word:6}{one.name:12}{one.told}" for one in found))
    if any(finding.word == "bad" for finding in found):
        sys.exit(1)


def _looked(look: Callable[[Place], list[Finding]], place: Place) -> list[Finding]:
    import sqlite3

    try:
        return look(place)
    except (
        ForecasterError,
        OSError,
        sqlite3.Error,
        ValueError,
    ) as error:  # what a look did not foresee is a finding too
        return [Finding(look.__name__.strip("_"), "bad", _clean(str(error)))]


def _python(_: Place) -> list[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] not in _PYTHONS:
        return [Finding("python", "bad", f"{version}; 3.11 or 3.12 is needed")]
    return [Finding("python", "ok", version)]


def _packages(_: Place) -> list[Finding]:
    """Those of the installed project's own metadata: what is needed, and by extra what may be left out."""
    from importlib import metadata

    try:
        lines = metadata.requires("forecaster") or []
    except metadata.PackageNotFoundError:
        return [
            Finding("packages", "note", "run from a checkout: versions cannot be checked; pip install . would tell")
        ]
    if find_spec("packaging") is None:
        return [Finding("packages", "note", "versions cannot be checked without the package 'packaging'")]
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
        return [Finding("packages", "bad", f"{'; '.join(bad)}: install forecaster and its extras again")]
    whole = ", ".join(sorted(groups - set(missing) - {""})) or "none"
    partly = "; ".join(f"{group} lacks {', '.join(names)}" for group, names in sorted(missing.items()))
    return [Finding("packages", "ok", f"extras: {whole}{f' ({partly})' if partly else ''}")]


def _kernel(_: Place) -> list[Finding]:
    from forecaster.model.recurrence.library import library

    if library() is None:
        return [
            Finding("kernel", "note", "not compiled: graphs and PyTorch compute instead; a C compiler and pip install")
        ]
    return [Finding("kernel", "ok", "compiled")]


def _processors(place: Place) -> list[Finding]:
    cores, told = len(os.sched_getaffinity(0)), place.environ.get("OMP_NUM_THREADS")
    threads = f"OMP_NUM_THREADS={told}" if told else "OMP_NUM_THREADS is not set"
    cards = len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
    gpu = f"{cards} GPU" if cards else "no GPU"
    if told and told.isdecimal() and int(told) > cores:
        return [Finding("processors", "note", f"{cores} cores, {threads}: threads would wait for each other; {gpu}")]
    return [Finding("processors", "ok", f"{cores} cores, {threads}; {gpu}")]


def _root(place: Place) -> list[Finding]:
    path = place.root.path
    there = next(folder for folder in (path, *path.parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        return [Finding("root", "bad", f"{path} cannot be written; name another with --root")]
    free = shutil.disk_usage(there).free
    told = f"{path}{'' if there == path else ' (not made yet)'}, {free / 1e9:.1f} GB free"
    return [Finding("root", "bad" if free < _LEAST_FREE else "ok", told)]


def _store(place: Place) -> list[Finding]:
    """The registry. MLflow itself is not loaded: of a database its migration is read, a server is asked for its health."""
    uri = place.root.store
    scheme, _, rest = uri.partition("://")
    if scheme in ("http", "https"):
        status = _status(f"{uri.rstrip('/')}/health")
        word: Word = "ok" if status == 200 else "bad"
        return [
            Finding(
                "store",
                word,
                f"{_clean(uri)} {'answers' if status == 200 else f'does not answer as MLflow ({status})'}",
            )
        ]
    if scheme != "sqlite":
        return [Finding("store", "note", f"{_clean(uri)}: databases other than SQLite are not looked at")]
    path = Path(rest.removeprefix("/"))
    if not path.exists():
        return [Finding("store", "ok", f"{path}: none yet; the first training makes it")]
    with closing(_opened(path)) as database:
        [revision] = database.execute("SELECT version_num FROM alembic_version").fetchone()
        names = [name for (name,) in database.execute("SELECT DISTINCT name FROM registered_models ORDER BY name")]
    behind = _behind(str(revision))
    if behind:
        return [
            Finding("store", "note", f"{path}: of another MLflow ({revision}), which migrates it when it is opened")
        ]
    frozen = "" if os.access(path, os.W_OK) else ", read-only: forecaster rollback NAME --local works all the same"
    models = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return [Finding("store", "note" if frozen else "ok", f"{path}: {len(names)} models ({models or 'none'}){frozen}")]


def _behind(revision: str) -> bool:
    """Whether the MLflow that is installed knows later tables; it is not imported for that."""
    package = find_spec("mlflow")
    if package is None or not package.submodule_search_locations:
        return False
    versions = Path(package.submodule_search_locations[0]) / "store" / "db_migrations" / "versions"
    texts = [path.read_text(encoding="utf-8") for path in versions.glob("*.py")]
    return any(re.search(rf"^down_revision\b.*[\"']{revision}[\"']", text, re.MULTILINE) for text in texts)


def _slot(place: Place) -> list[Finding]:
    from forecaster.bundle.artifact import check_files, digest

    current = place.slot / "current"
    if not current.exists():
        return [Finding("slot", "ok", f"{place.slot}: nothing served yet")]
    release = loads((current / "release.json").read_bytes())
    manifest = check_files(current / "bundle")
    if digest(current / "bundle") != release["digest"]:
        return [Finding("slot", "bad", f"{place.slot}: the bundle is not the one that release.json names")]
    pinned = ", rolled back here (forecaster rollback --local)" if (place.slot / "pinned.json").exists() else ""
    told = f"{release['name']} version {release['version']} ({release['digest'][:12]}), every {manifest.freq}{pinned}"
    return [Finding("slot", "note" if pinned else "ok", told)]


def _ledger(place: Place) -> list[Finding]:
    said = place.environ.get("FORECASTER_SERVING_LEDGER") or "off"
    if said not in ("on", "off") and not said.startswith("sqlite:///"):
        return [Finding("ledger", "note", "in a database other than SQLite, which is not looked at")]
    path = Path(said.removeprefix("sqlite:///")) if said not in ("on", "off") else place.slot / "ledger.db"
    if not path.exists():
        return [Finding("ledger", "ok", f"none at {path}")]
    with closing(_opened(path)) as database:
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    return [
        Finding(
            "ledger", "ok" if tables else "bad", f"{path}: {len(tables)} tables, {path.stat().st_size / 1e6:.1f} MB"
        )
    ]


def _port(place: Place) -> list[Finding]:
    status = _status(f"{place.address}/livez")
    if status == 0:
        return [Finding("port", "ok", f"{place.address} is free")]
    if status != 200:
        return [Finding("port", "bad", f"{place.address} belongs to another program ({status}); serve with --port")]
    ready = _status(f"{place.address}/readyz")
    return [Finding("port", "ok", f"{place.address}: a service, {'ready' if ready == 200 else f'not ready ({ready})'}")]


def _torch(_: Place) -> list[Finding]:
    import torch

    cards = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    told = f"{torch.__version__}, {torch.get_num_threads()} threads, {', '.join(cards) or 'no GPU'}"
    return [Finding("torch", "ok", told)]


def _model(place: Place) -> list[Finding]:
    from forecaster.bundle import artifact

    if not (place.slot / "current").exists():
        return []
    artifact.predictor(place.slot / "current" / "bundle")
    return [Finding("model", "ok", "the model in use answers its golden requests")]


LOOKS = (_python, _packages, _kernel, _processors, _root, _store, _slot, _ledger, _port)
DEEP = (_torch, _model)


def _opened(path: Path) -> sqlite3.Connection:
    """A SQLite database, to be read alone."""
    import sqlite3

    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=_PATIENCE_S)


def _status(url: str) -> int:
    """The status of an answer; 0 where nobody listens, -1 where nobody answers in HTTP or in time."""
    import urllib.error
    import urllib.request

    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=_PATIENCE_S) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except urllib.error.URLError as error:
        return 0 if isinstance(error.reason, ConnectionRefusedError) else -1
    except Exception:  # of any kind: whoever answers there may say anything
        return -1


def _clean(text: str) -> str:
    """Without user and password in an address."""
    return re.sub(r"//[^/\s@]*@", "//", " ".join(text.split()))

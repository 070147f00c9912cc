"""Installs the wheels of this project into new environments without torch, measures them, and runs tests there.

    python requirements/try_wheels.py              with each Python of 3.11 to 3.14 that is found
    python requirements/try_wheels.py 3.12 3.13    with these
    python requirements/try_wheels.py --measure    without the tests

Run it with the Python of `make install`, which writes the bundles that the tests read. For each Python it measures core, and the
extras `client` and `serve`, each in an environment of its own; tests run with each of the two wheels. It needs a
package index, a C compiler, auditwheel and patchelf, and is faster with uv on the PATH. A Python fails if a requirement has no
wheel for it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "requirements"))
import build_wheels  # noqa: E402

PYTHONS = ("3.11", "3.12", "3.13", "3.14")
EXTRAS = ("", "client", "serve")
TEST_EXTRAS = "client,serve,cli,postgres"
TEST_PACKAGES = ("beartype", "hypothesis", "jaxtyping", "psutil", "pyarrow", "pytest", "schemathesis")
TESTS = ("tests/torch_free", "tests/serving", "tests/forecaster")
TESTS_WITHOUT_KERNEL = ("tests/torch_free", "tests/serving/forecasting")
# Tests of the checkout itself, and of a registry that writes: it needs the extra `track`, and bundles that it trains.
EXCLUDED_TESTS = ("tests/forecaster/registry/test_registry.py", "tests/forecaster/storage/test_failpoints.py")
IMPORT_LIMIT_S, FORECAST_LIMIT_S = 0.1, 1.5
HEADER = "| Python | installed | MB | packages | `import forecaster`, s | load a model, s | first forecast, s |"
REPEATS = 5  # of a measured time; the smallest counts, and CPU time, because other programs run too

TIMES = """
import json, sys, time
start = time.process_time()
import forecaster
imported = time.process_time()
from forecaster import Series, load_predictor
import numpy as np, pandas as pd
model = load_predictor(__import__("pathlib").Path(sys.argv[1]))
loaded = time.process_time()
model.forecast(Series("a", pd.Timestamp("2026-01-01"), "h", np.arange(40.0)), 7)
end = time.process_time()
print(json.dumps([imported - start, loaded - imported, end - loaded]))
"""


class Environment(NamedTuple):
    """An environment with one of the wheels, and what was measured in it."""

    python: str
    requirement: str
    megabytes: int
    packages: int
    import_s: float
    load_s: float
    forecast_s: float

    def __str__(self) -> str:
        times = f"{self.import_s:.3f} | {self.load_s:.2f} | {self.forecast_s:.3f}"
        return f"| {self.python} | {self.requirement} | {self.megabytes} | {self.packages} | {times} |"


def main(*arguments: str) -> None:
    """Measures and tests each Python; exits with 1 if a test fails or a limit is exceeded."""
    versions = tuple(argument for argument in arguments if argument != "--measure")
    with tempfile.TemporaryDirectory(prefix="try-wheels-") as folder:
        work = Path(folder)
        pure = build_wheels.build_pure_wheel(work / "wheels")
        compiled = build_wheels.build_compiled_wheel(work / "wheels")
        run(sys.executable, "-m", "tests.torch_free.bundles", str(work / "bundles"), cwd=ROOT)
        copy_tests(work / "checkout")
        rows, failed = [], []
        for version, python in find_pythons(versions or PYTHONS).items():
            for extra in EXTRAS:
                rows.append(measure(python, version, compiled, extra, work))
                failed += check_limits(rows[-1])
                print(rows[-1], flush=True)
            for wheel, paths in ((compiled, TESTS), (pure, TESTS_WITHOUT_KERNEL)):
                if "--measure" not in arguments and not test(python, wheel, paths, work):
                    failed.append(f"tests of {wheel.name} on Python {version}")
    print("\n".join(["", HEADER, "|---|---|---|---|---|---|---|", *map(str, rows)]))
    if failed:
        raise SystemExit("failed: " + "; ".join(failed))


def find_pythons(versions: tuple[str, ...]) -> dict[str, str]:
    """Returns the executables of these versions that are on the PATH or were installed by pyenv."""
    pyenv = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser() / "versions"
    found = {}
    for version in versions:
        candidates = [*pyenv.glob(f"{version}.*/bin/python"), *filter(None, [shutil.which(f"python{version}")])]
        runnable = [
            str(path)
            for path in candidates
            if subprocess.run([path, "--version"], capture_output=True, check=False).returncode == 0
        ]
        if runnable:
            found[version] = runnable[0]
        else:
            print(f"Python {version} was not found, and is not tried.", flush=True)
    return found


def measure(python: str, version: str, wheel: Path, extra: str, work: Path) -> Environment:
    """Installs a wheel with one extra, and measures size and times; the environment is removed afterwards."""
    environment = create_environment(python, work / "environment")
    requirement = f"recurrent-forecaster[{extra}]" if extra else "recurrent-forecaster"
    install(environment, f"{requirement} @ {wheel.as_uri()}")
    [packages_folder] = (work / "environment/lib").glob("python*/site-packages")
    for name in ("pip", "setuptools"):  # of the environment, not of the project
        for path in packages_folder.glob(f"{name}*"):
            shutil.rmtree(path, ignore_errors=True)
    names = [path.name for path in packages_folder.glob("*.dist-info")]
    assert not any(name.startswith(("torch-", "triton-")) for name in names), "torch was installed"
    size = sum(
        path.stat().st_size for path in packages_folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    )
    command = [environment, "-c", TIMES, str(work / "bundles/plain")]
    with_bytecode = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONDONTWRITEBYTECODE", "PYTHONPATH")
    }
    times = [json.loads(subprocess.check_output(command, cwd=work, env=with_bytecode)) for _ in range(REPEATS)]
    shutil.rmtree(work / "environment")
    return Environment(
        version, requirement, round(size / 1e6), len(names), *(min(column) for column in zip(*times, strict=True))
    )


def check_limits(environment: Environment) -> list[str]:
    """Returns a message for each limit that an environment exceeds."""
    is_slow = environment.import_s > IMPORT_LIMIT_S or environment.forecast_s > FORECAST_LIMIT_S
    return [f"times of {environment}"] if is_slow else []


def test(python: str, wheel: Path, paths: Sequence[str], work: Path) -> bool:
    """Installs a wheel with the extras of a service, and runs the tests that need no torch; returns whether all pass."""
    environment = create_environment(python, work / "environment")
    requirement = f"recurrent-forecaster[{TEST_EXTRAS}] @ {wheel.as_uri()}"
    install(environment, requirement, *TEST_PACKAGES)
    ignored = [f"--ignore={path}" for path in EXCLUDED_TESTS]
    command = [environment, "-m", "pytest", "-q", "--no-header", "-m", "not nightly", *ignored, *paths]
    variables = os.environ | {"FORECASTER_TORCH_FREE_BUNDLES": str(work / "bundles")}
    variables.pop("PYTHONPATH", None)
    process = subprocess.run(command, cwd=work / "checkout", env=variables, check=False)
    shutil.rmtree(work / "environment")
    return process.returncode == 0


def copy_tests(folder: Path) -> None:
    """Copies the checkout without the packages, so that the installed ones are tested."""
    packages = shutil.ignore_patterns(
        "forecaster", "pipelines", "serving", ".*", "build", "dist", "__pycache__", "*.egg-info"
    )
    shutil.copytree(
        ROOT,
        folder,
        ignore=lambda path, names: packages(path, names) if Path(path) == ROOT else {"__pycache__"} & {*names},
    )


def create_environment(python: str, folder: Path) -> str:
    """Creates an environment; returns its Python."""
    run(python, "-m", "venv", str(folder))
    return str(folder / "bin/python")


def install(python: str, *requirements: str) -> None:
    """Installs packages and their requirements into the environment of a Python, with uv if it is on the PATH."""
    uv = shutil.which("uv")
    installer = [python, "-m", "pip"] if uv is None else [uv, "pip"]
    target = [] if uv is None else ["--python", python]
    run(*installer, "install", "--quiet", *target, *requirements)


def run(*command: str, cwd: Path | None = None) -> None:
    """Runs a command that has to succeed."""
    subprocess.run(command, cwd=cwd, check=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

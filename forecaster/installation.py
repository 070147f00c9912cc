"""What is installed: the name of the distribution, its extras, and the optional packages that each of them brings."""

from __future__ import annotations

from importlib import import_module

from forecaster.errors import MissingPackage

DISTRIBUTION = (
    "recurrent-forecaster"  # the name on package indexes; docs/decisions/0034 says why it is not `forecaster`
)

# The extra that brings a module, for the message of a command or function that misses it.
EXTRA_OF_MODULE = {
    "bentoml": "serve",
    "cronsim": "schedule",
    "cyclopts": "cli",
    "fsspec": "sources",
    "holidays": "train",
    "httpx": "client",
    "matplotlib": "train",
    "mcp": "mcp",
    "mlflow": "track",
    "onnx": "train",
    "optuna": "tune",
    "orjson": "serve",
    "prefect": "prefect",
    "psycopg": "postgres",
    "pyarrow": "train",
    "pytorch_lightning": "train",
    "ray": "ray",
    "rich": "cli",
    "scipy": "train",
    "sklearn": "tune",
    "sqlalchemy": "sources",
    "starlette": "serve",
    "statsforecast": "baselines",
    "torch": "train",
    "uvicorn": "serve",
    "xarray": "explain",
    "yaml": "cli",
}


def require_package(name: str, *, purpose: str) -> None:
    """Imports a package of EXTRA_OF_MODULE. Raises MissingPackage, with the extra that brings it, if it is not installed."""
    try:
        import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:  # the package is installed, and lacks something itself
            raise
        raise describe_missing_module(name, purpose=purpose) from error


def is_installed(name: str) -> bool:
    """Whether a module can be imported; imports it."""
    try:
        import_module(name)
    except ModuleNotFoundError:
        return False
    return True


def describe_missing_module(name: str, *, purpose: str) -> MissingPackage:
    """Returns the error for a module that is not installed; it names the extra that brings it, if there is one."""
    package = name.partition(".")[0]
    extra = EXTRA_OF_MODULE.get(package)
    requirement = package if extra is None else f"{DISTRIBUTION}[{extra}]"
    return MissingPackage(
        f"Expected the package {package!r} for {purpose}; it is not installed. Install it with: pip install '{requirement}'.",
        where=package,
    )

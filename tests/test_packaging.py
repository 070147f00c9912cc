"""What a fresh clone relies on: the lock files, the Makefile, the image."""

from __future__ import annotations

import os
import re
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
LOCKS = [
    "lock.txt",
    "lock-cpu.txt",
    "lock-cuda.txt",
    "lock-train.txt",
    "lock-serve.txt",
    "lock-registry.txt",
    "lock-docs.txt",
]
PYTHONS = ["3.11", "3.12", "3.13", "3.14"]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
TRAIN_EXTRAS = sorted(Requirement(PROJECT["optional-dependencies"]["all"][0]).extras - {"registry", "dev"})
# Lowest accepted versions, whatever the resolver selects (lightning: the first releases after two malicious ones).
MINIMUM_VERSIONS = {
    "mlflow": "3.17.2",
    "mlflow-skinny": "3.17.2",
    "pytorch-lightning": "2.6.6",
    "bentoml": "1.4.39",
    "torch": "2.11",
}


def read_hashes(lock: str) -> dict[Requirement, list[str]]:
    """Returns the hashes of every requirement of a lock file."""
    blocks = re.split(r"\n(?=[a-z0-9])", (ROOT / "requirements" / lock).read_text())[1:]
    return {
        Requirement(block.splitlines()[0].removesuffix("\\")): re.findall(r"--hash=(\S+)", block) for block in blocks
    }


def applies(requirement: Requirement, python: str) -> bool:
    """Whether a requirement applies on Linux with this Python version."""
    machine = {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64"}
    environment = default_environment() | machine | {"python_version": python, "python_full_version": f"{python}.0"}
    return requirement.marker is None or requirement.marker.evaluate(environment)


def read_versions(lock: str, python: str) -> dict[str, Version]:
    """Returns what a lock file installs on Linux with this Python version."""
    pins = [pin for pin in read_hashes(lock) if applies(pin, python)]
    names = [canonicalize_name(pin.name) for pin in pins]
    assert len(names) == len(set(names)), "one package is pinned twice"
    return {name: Version(next(iter(pin.specifier)).version) for name, pin in zip(names, pins, strict=True)}


@pytest.mark.parametrize("lock", LOCKS)
def test_every_pin_is_exact_and_hashed(lock: str) -> None:
    for pin, hashes in read_hashes(lock).items():
        assert [clause.operator for clause in pin.specifier] == ["=="], pin
        assert hashes, pin
        assert all(re.fullmatch("sha256:[0-9a-f]{64}", digest) for digest in hashes), pin


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_does_not_fix_the_package_index(lock: str) -> None:
    """A lock file has only comments, pins and hashes; no option of pip and no address."""
    text = (ROOT / "requirements" / lock).read_text()
    assert "://" not in text
    allowed = re.compile(r"\s*#.*|[a-z0-9._-]+==[^\s@]+( ; [^@]+)?( \\)?|    --hash=sha256:[0-9a-f]{64}( \\)?|")
    invalid_lines = [line for line in text.splitlines() if not allowed.fullmatch(line)]
    assert not invalid_lines


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize(
    ("lock", "extras"),
    [
        ("lock.txt", ["train", "cli", "track", "serve", "dev"]),
        ("lock-train.txt", TRAIN_EXTRAS),
        ("lock-serve.txt", ["cli", "serve", "postgres"]),
        ("lock-registry.txt", ["registry"]),
    ],
)
def test_a_lock_satisfies_the_project_requirements(lock: str, extras: list[str], python: str) -> None:
    locked = read_versions(lock, python)
    requirements = [
        *PROJECT["dependencies"],
        *(line for extra in extras for line in PROJECT["optional-dependencies"][extra]),
    ]
    for requirement in filter(lambda requirement: applies(requirement, python), map(Requirement, requirements)):
        assert requirement.specifier.contains(locked[canonicalize_name(requirement.name)]), requirement


def test_the_lock_of_the_documentation_satisfies_its_group() -> None:
    locked = read_versions("lock-docs.txt", "3.11")
    requirements = [Requirement(line) for line in PYPROJECT["dependency-groups"]["docs"]]
    assert requirements
    assert all(requirement.specifier.contains(locked[requirement.name]) for requirement in requirements)
    assert "numpy" not in locked


def test_the_extra_all_contains_every_compatible_extra() -> None:
    extras = PROJECT["optional-dependencies"]
    assert Requirement(extras["all"][0]).extras == set(extras) - {"all", "mcp", "prefect", "ray"}


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("lock", ["lock-train.txt", "lock-serve.txt", "lock-registry.txt"])
def test_the_locks_of_images_have_the_tested_versions(lock: str, python: str) -> None:
    assert read_versions(lock, python).items() <= read_versions("lock.txt", python).items()


def test_the_server_lock_has_no_training_packages() -> None:
    training_packages = {
        "torch",
        "pytorch-lightning",
        "matplotlib",
        "mlflow",
        "prefect",
        "ray",
        "pytest",
        "ruff",
        "mypy",
    }
    assert not training_packages & set(read_versions("lock-serve.txt", "3.11"))


def test_the_lock_of_the_training_image_has_no_tools_of_development() -> None:
    locked = set(read_versions("lock-train.txt", "3.11"))
    assert {"torch", "mlflow", "statsforecast", "optuna"} <= locked
    assert not locked & {"mypy", "ruff", "pytest", "hypothesis", "playwright", "polars", "schemathesis", "pandas-stubs"}
    assert not locked & set(read_versions("lock-cuda.txt", "3.11"))


@pytest.mark.parametrize("lock", LOCKS)
def test_no_lock_is_below_a_minimum_version(lock: str) -> None:
    for name, version in read_versions(lock, "3.12").items():
        assert version >= Version(MINIMUM_VERSIONS.get(name, "0")), name


def test_the_build_backend_is_in_the_locks() -> None:
    [backend] = map(Requirement, PYPROJECT["build-system"]["requires"])
    for lock in ("lock.txt", "lock-train.txt", "lock-serve.txt"):  # the registry installs no package of ours
        assert backend.specifier.contains(read_versions(lock, "3.11")[backend.name]), lock


def test_cpu_and_gpu_builds_of_torch_have_one_version_and_both_hashes() -> None:
    [(cpu, hashes)] = read_hashes("lock-cpu.txt").items()
    assert str(cpu.marker) == 'python_version == "3.11"', "the hash is that of one wheel"
    for lock in ("lock.txt", "lock-train.txt"):
        torch = next(pin for pin in read_hashes(lock) if pin.name == "torch")
        assert str(cpu.specifier) == f"{torch.specifier}+cpu"
        assert set(hashes) < set(read_hashes(lock)[torch])


@pytest.mark.parametrize("python", PYTHONS)
def test_statistical_models_are_locked_where_a_release_supports_pandas_3(python: str) -> None:
    assert ("statsforecast" in read_versions("lock.txt", python)) == (python != "3.14")


def test_cuda_packages_are_in_a_separate_lock() -> None:
    cuda = read_versions("lock-cuda.txt", "3.11")
    assert "nvidia-cudnn-cu13" in cuda
    assert not set(cuda) & set(read_versions("lock.txt", "3.11"))


@pytest.fixture
def installer(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "requirements"))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return import_module("install")


def test_the_installer_normalises_names_like_pip(installer: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    requirements = [
        "Nvidia.Cudnn_cu13==9; platform_system == 'Linux'",
        "cuda-toolkit[cublas]==13",
        'optree>=0.13; extra == "optree"',
    ]
    monkeypatch.setattr(installer, "requires", lambda _: requirements)
    assert installer.requirement_names("torch") == {"nvidia-cudnn-cu13", "cuda-toolkit"}
    assert installer.locked_names(ROOT / "requirements/lock-cuda.txt") == set(read_versions("lock-cuda.txt", "3.11"))


class PipCommands(list[str]):
    """Records the commands that the installer would run; `pip index` lists these versions."""

    def __init__(self, offered: str) -> None:
        super().__init__()
        self.offered = offered

    def run(self, command: list[str], **options: Any) -> SimpleNamespace:
        self.append(Path(command[-1]).name)
        if "install" in command:
            assert options["env"]["PIP_CONSTRAINT"] == os.devnull, (
                "constraints of the machine would contradict the lock"
            )
        return SimpleNamespace(returncode=0, stdout=self.offered)


@pytest.mark.parametrize(
    ("offered", "options", "installed"),
    [
        ("torch (2.14.0)\nAvailable versions: 2.14.0, 2.13.0+cpu, 2.13.0", [], ["lock-cpu.txt", "lock.txt"]),
        ("torch (2.14.0)\nAvailable versions: 2.14.0, 2.13.0", [], ["lock.txt", "lock-cuda.txt"]),
        ("Available versions: 2.13.0+cpu", ["--gpu"], ["lock.txt", "lock-cuda.txt"]),
        ("", [], ["lock.txt", "lock-cuda.txt"]),
    ],
)
def test_the_cpu_build_is_installed_if_pip_lists_it(
    installer: ModuleType, monkeypatch: pytest.MonkeyPatch, offered: str, options: list[str], installed: list[str]
) -> None:
    pip = PipCommands(offered)
    cuda = [] if "lock-cpu.txt" in installed else ["nvidia-cudnn-cu13"]
    monkeypatch.setattr(installer, "subprocess", SimpleNamespace(run=pip.run, PIPE=None, DEVNULL=None))
    monkeypatch.setattr(installer, "requires", lambda _: cuda)
    monkeypatch.setattr(installer, "read_requirement", lambda _: ("torch", "2.13.0+cpu", running_python()))
    installer.main("lock.txt", *options)
    assert [command for command in pip if command != "torch"] == installed


def test_the_cpu_build_of_another_python_is_not_installed(
    installer: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, version, python = installer.read_requirement(ROOT / "requirements/lock-cpu.txt")
    assert (name, python) == ("torch", "3.11")
    pip = PipCommands(version)
    monkeypatch.setattr(installer, "subprocess", SimpleNamespace(run=pip.run, PIPE=None, DEVNULL=None))
    assert installer.is_offered((name, version, running_python()))
    assert not installer.is_offered((name, version, "3.99"))


def test_the_lock_of_a_server_is_installed_without_torch(
    installer: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    pip = PipCommands("2.13.0+cpu")
    monkeypatch.setattr(installer, "subprocess", SimpleNamespace(run=pip.run, PIPE=None, DEVNULL=None))
    installer.main("lock-serve.txt")
    assert pip == ["lock-serve.txt"]


def test_another_python_is_refused_before_pip_runs(installer: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    pip = PipCommands("")
    monkeypatch.setattr(installer, "subprocess", SimpleNamespace(run=pip.run, PIPE=None, DEVNULL=None))
    monkeypatch.setattr(installer, "sys", SimpleNamespace(version_info=(3, 10, 13), version="3.10.13", executable=""))
    with pytest.raises(SystemExit, match=r"Expected Python 3\.11 to 3\.14; found 3\.10\.13"):
        installer.main("lock.txt")
    assert pip == []


def running_python() -> str:
    return ".".join(map(str, sys.version_info[:2]))


def read_makefile_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))


@pytest.mark.parametrize("page", sorted(path.name for path in ROOT.glob("*.md")))
def test_every_documented_make_target_exists(page: str) -> None:
    code = re.findall(r"^```.*?^```|`[^`\n]+`", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    targets = re.findall(r"\bmake ([a-z-]+)", "\n".join(code))
    assert set(targets) <= read_makefile_targets()


def test_make_help_lists_every_target() -> None:
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert phony
    assert set(phony[1].split()) == read_makefile_targets()


@pytest.fixture
def compose_file() -> dict[str, dict[str, object]]:
    services = yaml.safe_load((ROOT / "docker/compose.yaml").read_text())["services"]
    assert set(services) == {"mlflow", "forecaster"}
    return services


def test_compose_binds_to_the_loopback_interface_only(compose_file: dict[str, dict[str, list[str]]]) -> None:
    for service in compose_file.values():
        assert service["ports"]
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])


def test_compose_runs_the_locked_mlflow_and_allows_its_hosts_only(
    compose_file: dict[str, dict[str, list[str]]],
) -> None:
    assert compose_file["mlflow"]["image"] == f"ghcr.io/mlflow/mlflow:v{read_versions('lock.txt', '3.11')['mlflow']}"
    assert any(option.startswith("--allowed-hosts=") for option in compose_file["mlflow"]["command"])


def test_compose_disables_all_telemetry(compose_file: dict[str, dict[str, dict[str, str]]]) -> None:
    for service in compose_file.values():
        assert service["environment"]["DO_NOT_TRACK"] == "true"
        assert service["environment"]["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert compose_file["forecaster"]["environment"]["BENTOML_DO_NOT_TRACK"] == "true"


def read_dockerfile_stages() -> dict[str, list[list[str]]]:
    """Returns the instructions of every stage of the Dockerfile by its name, each as a list of words."""
    text = re.sub(r"\\\n", " ", (ROOT / "docker/Dockerfile").read_text())
    stages: dict[str, list[list[str]]] = {}
    for words in (line.split() for line in text.splitlines() if line and not line.startswith("#")):
        if words[0] == "FROM":
            stages[words[3]] = instructions = []
        instructions.append(words)
    return stages


def list_inherited(stages: dict[str, list[list[str]]], name: str) -> list[list[str]]:
    """Returns the instructions of a stage after those of the stages that it is built from."""
    base = stages[name][0][1]
    return (list_inherited(stages, base) if base in stages else []) + stages[name]


@pytest.mark.parametrize("target", ["serve", "train", "registry"])
def test_no_image_runs_as_root_or_contains_a_build_tool(target: str) -> None:
    instructions = list_inherited(read_dockerfile_stages(), target)
    [user] = [words[1] for words in instructions if words[0] == "USER"]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
    assert [words for words in instructions if words[0] == "ARG" or "apt-get" in words] == []


def test_the_images_are_built_with_a_compiler_that_they_do_not_contain() -> None:
    """Without a compiler the kernel is skipped silently, and workers are slower."""
    stages = read_dockerfile_stages()
    compiler = next(index for index, words in enumerate(stages["wheel"]) if "gcc" in words)
    assert compiler < next(index for index, words in enumerate(stages["wheel"]) if "--no-build-isolation" in words)
    assert [name for name, words in stages.items() if any("gcc" in line for line in words)] == ["wheel"]


@pytest.mark.parametrize("target", ["serve", "train", "registry"])
def test_an_image_has_the_packages_of_its_lock(target: str) -> None:
    installed = [
        words for words in list_inherited(read_dockerfile_stages(), f"installed-{target}") if words[0] == "RUN"
    ]
    assert [words[3] for words in installed if words[2:3] == ["requirements/install.py"]] == [f"lock-{target}.txt"]


def test_the_images_pin_their_base_and_the_last_one_starts_the_service() -> None:
    stages = read_dockerfile_stages()
    bases = {words[0][1] for words in stages.values()} - set(stages)
    assert len(bases) == 1
    assert all(re.fullmatch(r"python:3\.1[12]\.\d+-slim-\w+", base) for base in bases)
    assert list(stages)[-1] == "serve", "the default target"
    assert stages["serve"][-1] == ["ENTRYPOINT", '["forecaster",', '"serve"]']


def test_the_images_copy_everything_they_need_and_nothing_else() -> None:
    included = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {
        source
        for instructions in read_dockerfile_stages().values()
        for words in instructions
        if words[0] == "COPY" and not words[1].startswith("--from=")
        for source in words[1:-1]
    }
    assert included == copied


@pytest.mark.integration
def test_the_wheel_contains_the_pretrained_network_and_stays_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from zipfile import ZipFile

    monkeypatch.setenv("PIP_NO_BUILD_ISOLATION", "0")  # the setuptools of this environment, without a network
    monkeypatch.syspath_prepend(str(ROOT / "requirements"))
    with ZipFile(import_module("build_wheels").build_pure_wheel(tmp_path)) as wheel:
        sizes = {entry.filename: entry.file_size for entry in wheel.infolist()}
    folder = Path("forecaster/bundle/pretrained/base")
    files = {str(folder / path.name): path.stat().st_size for path in (ROOT / folder).iterdir()}
    assert {name: size for name, size in sizes.items() if name.startswith(f"{folder}/")} == files
    assert sum(files.values()) <= 5_000_000

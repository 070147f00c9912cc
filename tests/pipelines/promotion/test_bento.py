"""The folder that a Bento is built from: names, requirements, files."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from forecaster.errors import InputError
from pipelines.promotion.bento import ReleasedBundle, pin_requirements, write_bento_folder

DIGEST = "4278597176b4" + "0" * 52


def create_release(folder: Path, *, name: str = "hospital", number: str = "3") -> ReleasedBundle:
    folder.mkdir(exist_ok=True)
    (folder / "card.md").write_text("# The card\n")
    return ReleasedBundle(name, number, DIGEST, folder)


@pytest.mark.parametrize(
    ("name", "number", "tag"),
    [
        ("hospital", "3", "hospital:3-4278597176b4"),
        ("Hospital Wards", "unregistered", "hospital-wards:unregistered-4278597176b4"),
        ("--Ünit_7.", "12", "nit-7:12-4278597176b4"),
        ("日本", "1", "model:1-4278597176b4"),
        ("x" * 100, "9" * 100, f"{'x' * 63}:{'9' * 40}-4278597176b4"),
    ],
)
def test_every_name_becomes_a_tag_of_bentoml(tmp_path: Path, name: str, number: str, tag: str) -> None:
    release = create_release(tmp_path / "bundle", name=name, number=number)
    assert release.model_tag == tag
    parts = tag.split(":")
    assert all(re.fullmatch("[a-z0-9]([-._a-z0-9]*[a-z0-9])?", part) and len(part) <= 63 for part in parts)


def test_the_requirements_are_those_of_the_server_in_the_installed_versions() -> None:
    pins = {pin.name: pin for pin in map(Requirement, pin_requirements(["serve"]))}
    assert {"bentoml", "starlette", "onnxruntime", "pandas", "uvloop", "uvicorn"} <= set(pins)
    assert not {"torch", "mlflow", "pytorch-lightning", "matplotlib", "pytest"} & set(pins), (
        "a server contains no trainer"
    )
    for name in ("bentoml", "pandas", "uvicorn"):  # of the extra, of the core, and one that BentoML requires
        assert str(pins[name].specifier) == f"=={Version(version(name)).public}"
    assert "statsforecast" in {Requirement(pin).name for pin in pin_requirements(["serve", "baselines"])}


def test_the_folder_has_all_that_bentoml_needs(tmp_path: Path) -> None:
    release = create_release(tmp_path / "bundle")
    folder = tmp_path / "new" / "folder"
    write_bento_folder(release, folder, requirements=["bentoml==1.4.39", "numpy==2.4.6"])
    build = yaml.safe_load((folder / "bentofile.yaml").read_text())
    assert (build["service"], build["name"]) == ("service:Forecasts", "hospital")
    assert build["labels"] == {"name": "hospital", "version": "3", "digest": DIGEST}
    assert {"name": "BENTOML_HOST", "value": "0.0.0.0"} in build["envs"]
    assert (folder / "requirements.txt").read_text() == "bentoml==1.4.39\nnumpy==2.4.6\n"
    assert (folder / "README.md").read_text() == "# The card\n"
    service = (folder / "service.py").read_text()
    compile(service, "service.py", "exec")
    assert "bentoml.models.BentoModel('hospital:3-4278597176b4')" in service
    for file in ("serving/services/packaged.py", "serving/page/docs/index.html", "forecaster/bundle/artifact.py"):
        assert (folder / file).exists(), file
    assert not list(folder.rglob("__pycache__"))
    assert not list(folder.rglob("*.csv.gz"))


def test_a_folder_with_files_is_left_alone(tmp_path: Path) -> None:
    release = create_release(tmp_path / "bundle")
    with pytest.raises(InputError, match="new or empty folder"):
        write_bento_folder(release, tmp_path / "bundle", requirements=[])
    assert [file.name for file in (tmp_path / "bundle").iterdir()] == ["card.md"]

"""The command `forecaster serve`: the names that it accepts before it starts the service."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from forecaster.errors import InputError, RegistryError
from pipelines.commands.options import RootOptions
from pipelines.commands.serve import serve, validate_model_name

MODELS = {"hospital": {"champion": "2"}, "sales": {"challenger": "1"}}


class ServiceStarted(Exception):
    """Raised instead of the replacement of the process, with the environment of the service."""

    def __init__(self, environment: dict[str, str]) -> None:
        super().__init__()
        prefix = "FORECASTER_SERVING_"
        self.settings = {
            name.removeprefix(prefix): value for name, value in environment.items() if name.startswith(prefix)
        }


@pytest.fixture(autouse=True)
def no_service(monkeypatch: pytest.MonkeyPatch) -> None:
    def raise_started(_: str, __: list[str], environment: dict[str, str]) -> None:
        raise ServiceStarted(environment)

    for name in [name for name in os.environ if name.startswith("FORECASTER_SERVING_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(os, "execve", raise_started)


def write_slot(root: Path, name: str) -> None:
    (root / "slot" / "current").mkdir(parents=True)
    (root / "slot" / "current" / "release.json").write_text(json.dumps({"name": name, "version": "1", "digest": "0"}))


def test_a_registered_model_with_a_champion_is_accepted() -> None:
    validate_model_name("hospital", "champion", MODELS)


def test_an_unknown_name_lists_the_registered_names_and_suggests_one() -> None:
    with pytest.raises(
        InputError, match=r"'hospitl'.*has hospital, sales\. Did you mean 'hospital'\?.*--wait"
    ) as raised:
        validate_model_name("hospitl", "champion", MODELS)
    assert raised.value.exit_code == 2


def test_a_model_without_a_champion_names_its_aliases() -> None:
    with pytest.raises(
        InputError, match=r"'champion'; its aliases are: challenger\. Promote one with `forecaster promote"
    ):
        validate_model_name("sales", "champion", MODELS)


def test_many_names_are_cut() -> None:
    with pytest.raises(InputError, match=r"m00, .*m19 and 5 more\."):
        validate_model_name("x", "champion", {f"m{number:02}": {} for number in range(25)})


def test_an_empty_root_has_no_models_and_creates_no_database(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="The registry has no models"):
        serve("hospital", root_options=RootOptions(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_wait_starts_without_a_registry(tmp_path: Path) -> None:
    with pytest.raises(ServiceStarted):
        serve("hospital", wait=True, root_options=RootOptions(tmp_path))


@pytest.mark.parametrize("served", ["hospital", "other"])
def test_a_model_in_the_slot_is_served_while_the_registry_is_down(
    served: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: str) -> None:
        raise RegistryError("The store failed.")

    monkeypatch.setattr("pipelines.commands.serve._read_aliases", fail)
    write_slot(tmp_path, served)
    with pytest.raises(ServiceStarted):
        serve("hospital", root_options=RootOptions(tmp_path))
    assert ("'other' is served until the registry responds" in capsys.readouterr().err) == (served == "other")


def test_an_empty_slot_and_a_registry_that_is_down_name_the_option_to_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: str) -> None:
        raise RegistryError("The store failed.")

    monkeypatch.setattr("pipelines.commands.serve._read_aliases", fail)
    with pytest.raises(RegistryError, match=r"The store failed\. .*--wait"):
        serve("hospital", root_options=RootOptions(tmp_path))


@pytest.mark.parametrize("name", [None, "base"])
def test_an_empty_root_serves_the_pretrained_network_without_a_registry(
    name: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if name is not None:
        monkeypatch.setenv("FORECASTER_SERVING_MODEL", name)
    with pytest.raises(ServiceStarted) as started:
        serve(name, root_options=RootOptions(tmp_path))
    assert started.value.settings["PRETRAINED"] == "true"
    assert "MODEL" not in started.value.settings
    assert "serving 'base', the pretrained network" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_root_that_served_a_model_serves_it_again(tmp_path: Path) -> None:
    write_slot(tmp_path, "hospital")
    with pytest.raises(ServiceStarted) as started:
        serve(root_options=RootOptions(tmp_path))
    assert "PRETRAINED" not in started.value.settings


def test_a_slot_of_another_place_is_left_to_the_process_that_fills_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORECASTER_SERVING_SLOT", str(tmp_path / "elsewhere"))
    with pytest.raises(ServiceStarted) as started:
        serve(root_options=RootOptions(tmp_path))
    assert "PRETRAINED" not in started.value.settings


def test_a_registered_model_named_base_is_served_by_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.commands.serve._read_aliases", lambda _: {"base": {"champion": "1"}})
    with pytest.raises(ServiceStarted) as started:
        serve("base", root_options=RootOptions(tmp_path))
    assert started.value.settings["MODEL"] == "base"
    assert "PRETRAINED" not in started.value.settings


def test_base_is_not_served_while_the_registry_that_may_have_such_a_model_is_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: str) -> None:
        raise RegistryError("The store failed.")

    monkeypatch.setattr("pipelines.commands.serve._read_aliases", fail)
    with pytest.raises(RegistryError, match="The store failed"):
        serve("base", root_options=RootOptions(tmp_path))

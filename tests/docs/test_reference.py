"""The generated reference agrees with the code, and everything that it lists is described."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cyclopts import App

from docs.generator import bundle_files, pages
from docs.generator.command_line import Command, list_commands, list_exit_codes
from docs.generator.error_codes import describe, list_errors, read_tree
from docs.generator.fields import list_fields
from docs.generator.http_service import describe_field
from docs.generator.markdown import escape_cell, finish_sentence, take_table, to_anchor
from docs.generator.metrics import list_functions, list_service_metrics
from docs.generator.python_objects import MODULES, list_public_names
from docs.generator.settings import OTHER_VARIABLES, list_option_variables
from docs.generator.specification import read_attribute_descriptions
from forecaster import errors
from forecaster.bundle import files
from forecaster.bundle.histories import HISTORIES_FILE
from forecaster.spec import Spec
from pipelines.promotion.policy import Policy
from serving.errors import ERROR_CODES
from serving.routes.openapi import build_document
from serving.settings import ENV_PREFIX, Settings
from tests.system.processes import CHECKOUT

COMMANDS = list_commands()
# Variables between processes of the project itself.
INTERNAL_VARIABLES = {"FORECASTER_FAILPOINTS", "FORECASTER_LAUNCHER", "FORECASTER_TEST", "FORECASTER_COLORS"}


@pytest.mark.parametrize("name", pages.BUILDERS)
def test_a_page_agrees_with_the_code(name: str) -> None:
    assert (pages.DOCS / pages.FOLDER / name).read_text() == pages.BUILDERS[name](), "run make docs-data"


def test_a_stale_or_foreign_page_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "BUILDERS", {"errors.md": pages.BUILDERS["errors.md"]})
    (tmp_path / "reference").mkdir()
    (tmp_path / "reference" / "old.md").write_text("# Old\n")
    assert pages.list_stale_pages(tmp_path) == ["errors.md", "old.md"]
    pages.write_pages(tmp_path)
    assert pages.list_stale_pages(tmp_path) == []


def list_undocumented(commands: list[Command]) -> list[str]:
    """Returns commands without a docstring and options without a description."""
    gaps = [command.path for command in commands if not command.summary]
    return gaps + [
        f"{command.path} {option.names[0]}" for command in commands for option in command.options if not option.help
    ]


def test_every_command_and_option_is_documented() -> None:
    assert len(COMMANDS) > 20
    assert list_undocumented(COMMANDS) == []


def test_an_undocumented_command_or_option_is_found() -> None:
    app = App()

    @app.command
    def silent(*, depth: int = 1) -> None: ...

    assert list_undocumented(list_commands(app)) == ["silent", "silent --depth"]


def test_every_exit_code_is_documented() -> None:
    assert set(list_exit_codes()) == {0, 130} | {error.exit_code for _, error in list_errors()}


@pytest.mark.integration
def test_the_openapi_document_is_the_same_text_in_every_process() -> None:
    program = "from docs.generator.http_service import build_openapi_text; print(build_openapi_text(), end='')"
    texts = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONPATH": str(CHECKOUT), "PYTHONHASHSEED": seed, "TZ": zone},
            cwd=folder,
            capture_output=True,
            check=True,
        ).stdout
        for seed, zone, folder in (("1", "UTC", CHECKOUT), ("2", "Asia/Tokyo", CHECKOUT.parent))
    }
    assert len(texts) == 1
    text = texts.pop().decode()
    document = json.loads(text)
    assert json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n" == text
    assert document == json.loads(json.dumps(build_document()))
    assert re.findall(r"/(?:home|root|tmp|usr|work|Users)/", text) == [], "no paths of a machine"
    assert f"{datetime.now(UTC):%Y-%m-%d}" not in text
    assert str(CHECKOUT) not in text


def test_every_route_and_query_parameter_is_documented() -> None:
    operations = [operation for methods in build_document()["paths"].values() for operation in methods.values()]
    assert all(operation["summary"] for operation in operations)
    assert all(item["description"] for operation in operations for item in operation.get("parameters", ()))


def test_every_field_of_http_is_documented() -> None:
    schemas = build_document()["components"]["schemas"]
    fields = [
        (name, field, details)
        for name, schema in schemas.items()
        for field, details in schema.get("properties", {}).items()
    ]
    assert [f"{name}.{field}" for name, field, details in fields if not describe_field(details, schemas)] == []


@pytest.mark.parametrize("model", [Spec, Settings, files.Manifest])
def test_every_field_is_documented(model: type[Spec] | type[Settings] | type[files.Manifest]) -> None:
    assert [field.name for field in list_fields(model) if not field.description] == []


def test_every_threshold_of_the_gate_is_documented() -> None:
    assert set(read_attribute_descriptions(Policy.__doc__)) == set(Policy.model_fields)


def test_every_environment_variable_is_documented() -> None:
    """Every variable that a string of the code names is a setting, is read by an option, or is listed."""
    documented = (
        {f"{ENV_PREFIX}{name.upper()}" for name in Settings.model_fields}
        | set(list_option_variables())
        | set(OTHER_VARIABLES)
    )
    names = set()
    for package in ("forecaster", "pipelines", "serving"):
        for path in (CHECKOUT / package).rglob("*.py"):
            names |= set(re.findall(r"[\"'](FORECASTER_[A-Z_]+)[\"']", path.read_text()))
    assert {"FORECASTER_KEY", "FORECASTER_SQL_URL"} <= names
    assert names - {ENV_PREFIX} - INTERNAL_VARIABLES - documented == set()


def test_every_error_is_in_the_tree_with_its_place_and_exit_code() -> None:
    tree = read_tree()
    classes = {error.__name__: (depth, error) for depth, error in list_errors()}
    assert set(tree) == set(classes)
    assert [name for name, (depth, _) in classes.items() if tree[name].depth != depth] == []
    assert [name for name, (_, error) in classes.items() if not describe(error, tree)] == []
    stated = {
        name: int(line.partition(" exit ")[2][0])
        for line in (errors.__doc__ or "").splitlines()
        for name in classes
        if f" {name} " in line and " exit " in line
    }
    assert len(stated) > 8
    assert {name: classes[name][1].exit_code for name in stated} == stated
    assert all(meaning for _, meaning in ERROR_CODES.values())


def test_every_file_of_a_bundle_is_documented() -> None:
    table = take_table(files.__doc__)
    names = {files.MANIFEST_FILE, *files.REQUIRED_FILES, files.ONNX_FILE, files.BLEND_FILE, HISTORIES_FILE}
    assert [name for name in names if f"`{name}`" not in table] == []
    assert table in bundle_files.build_page()


def test_every_metric_and_public_name_is_documented() -> None:
    assert len(list_functions()) > 10
    assert [name for name, text in list_functions().items() if not text] == []
    assert all(text for _, text in list_service_metrics().values())
    assert [item.name for module in MODULES for item in list_public_names(module) if not item.summary] == []


def test_pieces_of_markdown() -> None:
    assert escape_cell("|a|\n  b") == r"\|a\| b"
    assert finish_sentence("steps of a season") == "Steps of a season."
    assert finish_sentence("seasonal_error: as in MASE.") == "seasonal_error: as in MASE."
    assert finish_sentence("rollout: one at a time") == "rollout: one at a time."
    assert to_anchor("POST /v1/forecast") == "post-v1forecast"

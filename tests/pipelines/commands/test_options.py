"""Options that commands share."""

from __future__ import annotations

from pathlib import Path

import pytest

from forecaster.errors import InputError
from pipelines.commands.options import is_plot_folder, resolve_ledger_url, validate_plot_path
from pipelines.redaction import has_password, redact


@pytest.mark.parametrize(
    "url",
    ["postgresql+psycopg://u:s3cr3t@host/name", "postgresql+psycopg://u@host/name?sslmode=require&password=s3cr3t"],
)
def test_a_ledger_url_with_a_password_is_accepted_from_the_environment_only(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="FORECASTER_SERVING_LEDGER") as error:
        resolve_ledger_url(url)
    assert "s3cr3t" not in str(error.value)
    monkeypatch.setenv("FORECASTER_SERVING_LEDGER", url)
    assert resolve_ledger_url(None) == url
    assert resolve_ledger_url("sqlite:///ledger.db") == "sqlite:///ledger.db"


def test_addresses_are_redacted_and_passwords_are_found() -> None:
    assert redact("see https://u:s3cr3t@host/x?token=abc now", {}) == "see https://host/x now"
    assert has_password("simplecache::s3://key:secret@bucket")
    assert has_password("postgresql://host/name?password=x")
    assert not has_password("postgresql://user@host:notaport/name")
    assert not has_password("https://host/data.csv?table=readings")


@pytest.mark.parametrize(
    ("name", "is_folder"), [("x.png", False), ("x.svg", False), ("plots", True), ("plots/", True), ("existing.d", True)]
)
def test_a_plot_with_a_suffix_is_a_file_in_every_command(name: str, is_folder: bool, tmp_path: Path) -> None:
    (tmp_path / "existing.d").mkdir()
    path = Path(f"{tmp_path}/{name}")
    validate_plot_path(path)
    assert is_plot_folder(path) == is_folder


@pytest.mark.parametrize("name", ["x.docx", "no/folder/plots", "no/folder/x.png"])
def test_a_plot_that_cannot_be_written_is_rejected(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--plot"):
        validate_plot_path(tmp_path / name)

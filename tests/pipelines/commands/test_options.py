"""Options that commands share."""

from __future__ import annotations

from pathlib import Path

import pytest

from forecaster.errors import InputError
from forecaster.progress import NO_PROGRESS
from forecaster.training import selection
from pipelines.commands.options import (
    DeviceOptions,
    SpecOptions,
    format_arguments,
    is_plot_folder,
    resolve_ledger_url,
    validate_plot_path,
)
from pipelines.redaction import has_password, redact
from pipelines.settings import Root
from pipelines.sources import DataSource
from tests.factories import make_panel, make_spec, make_wave


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


def test_the_season_overrides_that_of_a_specification(tmp_path: Path) -> None:
    config = tmp_path / "small.yaml"
    config.write_text(make_spec(season=4).model_dump_json())
    specs = [SpecOptions(config, season=season).read_spec() for season in (None, 7)]
    assert [spec.season for spec in specs if spec is not None] == [4, 7]
    with pytest.raises(InputError, match="--season of at least 1"):
        SpecOptions(horizon=3, season=0).read_spec()
    assert format_arguments({"spec_options": SpecOptions(horizon=3, season=7)}) == ["--horizon=3", "--season=7"], (
        "a schedule keeps it"
    )


def test_the_variants_of_a_preset_are_judged_by_the_given_season(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seasons: list[int | None] = []

    def select_first(panel: object, candidates: list, **_: object) -> selection.CandidateSelection:  # type: ignore[type-arg]
        seasons.extend(spec.season for spec in candidates)
        return selection.CandidateSelection(candidates[0])

    monkeypatch.setattr(selection, "select_on_validation", select_first)
    options, panel = SpecOptions(horizon=3, season=9), make_panel(make_wave(300))
    with options.select_spec(
        options.read_spec(),
        panel,
        DataSource("data.csv"),
        Root(tmp_path),
        test_windows=1,
        device_options=DeviceOptions(),
        progress=NO_PROGRESS,
    ) as selected:
        assert selected.spec.season == 9
    assert set(seasons) == {9}
    assert len(seasons) > 1

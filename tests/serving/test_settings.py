"""Errors of settings never repeat a value that may be secret."""

from __future__ import annotations

import logging

import pytest
from pydantic import ValidationError

from serving.deployment import follower
from serving.settings import Settings, describe_errors

SECRET = "s3cr3t"
ADDRESS = f"postgresql://u:{SECRET}@host/name"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LEDGER_URL", ADDRESS),
        ("LEDGER_PASSWORD", SECRET),
        ("PASSWORD", SECRET),
        ("REGISTRI", f"https://host?token={SECRET}"),
        ("LEDGER", f"mysql://u:{SECRET}@host"),
        ("STATE_KEYS", SECRET),
        ("PORT", f"https://u:{SECRET}@host?token={SECRET}"),
    ],
)
def test_the_value_of_a_mistyped_setting_is_not_shown(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ValidationError) as error:
        Settings.from_environment({f"FORECASTER_SERVING_{name}": value})
    [line] = describe_errors(error.value)
    assert line.startswith(f"FORECASTER_SERVING_{name}: ")
    assert SECRET not in f"{line} {error.value} {error.value!r}"
    monkeypatch.setenv(f"FORECASTER_SERVING_{name}", value)
    monkeypatch.setattr("serving.log_format.configure_logging", lambda: None)
    with caplog.at_level(logging.ERROR):
        assert follower.main(["--once"]) == 2
    assert [record.getMessage() for record in caplog.records] == [line]


def test_an_unknown_setting_is_named_and_an_invalid_value_is_shown() -> None:
    with pytest.raises(ValidationError) as error:
        Settings.from_environment({"FORECASTER_SERVING_PORTT": "1", "FORECASTER_SERVING_WORKERS": "many"})
    unknown, invalid = sorted(describe_errors(error.value))
    assert unknown == (
        "FORECASTER_SERVING_PORTT: There is no such setting; found a value that is not shown because it may be secret. "
        "Correct the name. Did you mean FORECASTER_SERVING_PORT?"
    )
    assert invalid.startswith("FORECASTER_SERVING_WORKERS: Input should be a valid integer")
    assert "found 'many'. Correct it." in invalid

"""Limits of one request: its series, steps and values, and the size of its response."""

from __future__ import annotations

from collections.abc import Sequence

from forecaster.series import Series
from serving.errors import ApiError
from serving.formats.schema import ForecastOptions, SeriesInput
from serving.settings import Settings

BYTES_PER_STEP = 8  # of a body, to estimate its steps before it is parsed


def validate_json_size(size: int, settings: Settings, *, alternatives: Sequence[str] = ()) -> None:
    """Raises ApiError (413) for a JSON text that is too large; `alternatives` are the other media types of the path."""
    if size > settings.max_json:
        advice = f"Send NDJSON or Arrow ({', '.join(alternatives)}), or" if alternatives else "Send"
        raise ApiError(
            "body_too_large",
            f"Expected JSON of at most {settings.max_json} bytes; found {size}. {advice} several requests.",
        )


def validate_request_size(options: ForecastOptions, series: Sequence[SeriesInput], settings: Settings) -> None:
    """Raises ApiError (422) with the first limit that a request exceeds."""
    if len(series) > settings.max_series:
        raise ApiError(
            "too_many_series",
            f"Expected at most {settings.max_series} series; found {len(series)}. Send several requests.",
            where="series",
        )
    validate_response_size(options, len(series), settings)
    validate_history_size(series, settings)


def validate_response_size(options: ForecastOptions, series_count: int, settings: Settings) -> None:
    """Raises ApiError (422) if the response for `series_count` series would be too large."""
    horizon = options.horizon
    if options.samples > settings.max_samples:
        raise ApiError(
            "too_many_samples",
            f"Expected at most {settings.max_samples} samples; found {options.samples}. Request fewer.",
            where="samples",
        )
    if horizon > settings.max_horizon:
        raise ApiError(
            "horizon_out_of_range",
            f"Expected a horizon of at most {settings.max_horizon}; found {horizon}. Request a shorter one.",
            where="horizon",
        )
    number_count = series_count * horizon * (1 + len(options.levels) + options.samples)
    if number_count > settings.max_answer:
        raise ApiError(
            "answer_too_large",
            f"Expected a response of at most {settings.max_answer} numbers; {series_count} series, {horizon} steps, "
            f"{len(options.levels)} levels and {options.samples} samples need {number_count}. Send several requests.",
            where="horizon",
        )


def validate_probability_size(
    options: ForecastOptions, series_count: int, vocabulary_size: int, settings: Settings
) -> None:
    """Raises ApiError (422) if the response with the probabilities of all symbols would be too large."""
    number_count = series_count * options.horizon * vocabulary_size
    if options.probabilities and number_count > settings.max_answer:
        raise ApiError(
            "answer_too_large",
            f"Expected a response of at most {settings.max_answer} numbers; the probabilities of {vocabulary_size} symbols at "
            f"{options.horizon} steps of {series_count} series are {number_count}. Send several requests.",
            where="probabilities",
        )


def validate_frame_size(cell_count: int, settings: Settings) -> None:
    """Raises ApiError (422) if a long frame has too many cells; each value takes at least three (id, timestamp, value)."""
    if cell_count > 3 * settings.max_values:
        raise ApiError(
            "request_too_large",
            f"Expected a frame of at most {3 * settings.max_values} cells; found {cell_count}. Send several requests.",
        )


def validate_history_size(series: Sequence[SeriesInput | Series], settings: Settings) -> None:
    """Raises ApiError (422) if one history is too long, or all of them together are."""
    total = sum(
        len(history.y) + sum(map(len, history.covariates.values())) + sum(map(len, history.channels.values()))
        for history in series
    )
    if total > settings.max_values:
        raise ApiError(
            "request_too_large",
            f"Expected at most {settings.max_values} values in all histories, covariates and channels; found {total}. "
            "Send several requests, or shorter histories.",
            where="series",
        )
    max_covariate_steps = settings.max_history + settings.max_horizon
    for index, history in enumerate(series):
        if len(history.y) > settings.max_history:
            raise ApiError(
                "history_too_long",
                f"Expected at most {settings.max_history} steps; series {history.id!r} has {len(history.y)}. "
                "Send only its last steps.",
                where=f"series.{index}.y",
            )
        for name, values in history.covariates.items():
            if len(values) > max_covariate_steps:
                raise ApiError(
                    "history_too_long",
                    f"Expected covariates of at most {max_covariate_steps} steps; {name!r} of series {history.id!r} has "
                    f"{len(values)}. Send only its last steps.",
                    where=f"series.{index}.covariates.{name}",
                )

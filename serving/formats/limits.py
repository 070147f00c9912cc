"""How much one request may ask: series, steps, values, and what an answer to it would hold."""

from __future__ import annotations

from collections.abc import Sequence

from forecaster.series import Series
from serving.errors import ApiError
from serving.formats.schema import ForecastOptions, SeriesInput
from serving.settings import Settings


def validate_request_size(options: ForecastOptions, series: Sequence[SeriesInput], settings: Settings) -> None:
    """Raises Problem (422) with the first limit that a request goes beyond."""
    if len(series) > settings.max_series:
        raise ApiError(
            "too_many_series",
            f"Expected at most {settings.max_series} series; found {len(series)}. Send several requests.",
            where="series",
        )
    validate_response_size(options, len(series), settings)
    validate_history_size(series, settings)


def validate_response_size(options: ForecastOptions, series_count: int, settings: Settings) -> None:
    """Raises Problem (422) if an answer for so many series would be too large."""
    horizon = options.horizon
    if options.samples > settings.max_samples:
        raise ApiError(
            "too_many_samples",
            f"Expected at most {settings.max_samples} samples; found {options.samples}. Ask for fewer.",
            where="samples",
        )
    if horizon > settings.max_horizon:
        raise ApiError(
            "horizon_out_of_range",
            f"Expected a horizon of at most {settings.max_horizon}; found {horizon}. Ask for less.",
            where="horizon",
        )
    numbers = series_count * horizon * (1 + len(options.levels) + options.samples)
    if numbers > settings.max_answer:
        raise ApiError(
            "answer_too_large",
            f"Expected an answer of at most {settings.max_answer} numbers; {series_count} series, {horizon} steps, "
            f"{len(options.levels)} levels and {options.samples} samples make {numbers}. Send several requests.",
            where="horizon",
        )


def validate_frame_size(cell_count: int, settings: Settings) -> None:
    """Raises Problem (422) if a frame has more cells than a request may have values: three, or some more, to a value."""
    if cell_count > 3 * settings.max_values:
        raise ApiError(
            "request_too_large",
            f"Expected a frame of at most {3 * settings.max_values} cells; found {cell_count}. Send several requests.",
        )


def validate_history_size(series: Sequence[SeriesInput | Series], settings: Settings) -> None:
    """Raises Problem (422) if the histories are too long, one of them or all together."""
    total = sum(
        len(asked.y) + sum(map(len, asked.covariates.values())) + sum(map(len, asked.channels.values()))
        for asked in series
    )
    if total > settings.max_values:
        raise ApiError(
            "request_too_large",
            f"Expected at most {settings.max_values} values in all histories, covariates and channels; found {total}. "
            "Send several requests, or shorter histories.",
            where="series",
        )
    for place, asked in enumerate(series):
        if len(asked.y) > settings.max_history:
            raise ApiError(
                "history_too_long",
                f"Expected at most {settings.max_history} steps; series {asked.id!r} has {len(asked.y)}. "
                "Send its last steps.",
                where=f"series.{place}.y",
            )
        most = settings.max_history + settings.max_horizon
        for name, values in asked.covariates.items():
            if len(values) > most:
                raise ApiError(
                    "history_too_long",
                    f"Expected covariates of at most {most} steps; {name!r} of series {asked.id!r} has {len(values)}. "
                    "Send its last steps.",
                    where=f"series.{place}.covariates.{name}",
                )

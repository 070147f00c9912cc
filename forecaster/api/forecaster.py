"""`Forecaster`: from a data frame to a fitted, calibrated and tested model, and to its forecasts."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import pandas as pd

from forecaster.api import storage
from forecaster.api.datasets import BundleAddress, DatasetRequest, open_model_bundle, predict_dataset
from forecaster.api.explanations import ForecastExplanation, explain_forecast
from forecaster.api.figures import plot_forecasts, read_forecast
from forecaster.api.fitting import (
    ModelOptions,
    choose_spec,
    fit_spec,
    open_progress,
    parse_count,
    parse_names,
    parse_spec,
    parse_test_windows,
    require_training,
    warn_about_left_out,
)
from forecaster.api.frames import FrameStyle
from forecaster.api.messages import (
    collect_forecasts,
    validate_counts,
    validate_horizon,
    warn_about_data,
    warn_about_forecasts,
    with_argument_names,
)
from forecaster.api.pretrained import PretrainedOptions
from forecaster.api.reading import DataReader, PanelInput, select_ids
from forecaster.api.states import NetworkStates, trace_network
from forecaster.api.symbols import build_probability_table, decode_columns
from forecaster.api.tables import build_report, describe_model, validate_calibration
from forecaster.bundle import artifact
from forecaster.data.forecast_table import Levels, build_table, parse_levels, plan_quantile_columns
from forecaster.data.frames.rows import ColumnNames
from forecaster.data.symbols import recode_panel, refuse_symbols
from forecaster.errors import ForecasterError, InputError
from forecaster.prediction.fitted_model import FittedModel, StoredModel, as_fitted_model
from forecaster.prediction.head_quantiles import has_quantiles
from forecaster.prediction.predictor import Predictor
from forecaster.progress import Progress
from forecaster.series import Forecast, Panel
from forecaster.spec import Spec

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from forecaster.batch.job import BatchReport


class Forecaster:
    """Fits a model to a data frame and forecasts with it.

    Frames may be of pandas, polars or pyarrow, and have one row per series and timestamp (`unique_id, ds, y`); one series needs
    no ids. A pandas Series with a DatetimeIndex and a wide frame, with one column per series, are read too. Results are frames
    of the same library, in the columns of Nixtla's libraries. A column of texts in place of values holds symbols, and its
    forecasts are symbols too (docs/symbols.md).

    Args:
        horizon: Steps ahead.
        freq: Frequency of the data, such as "MS", "h" or 1; inferred if it is certain.
        spec: A specification, or its fields; by default the best variant of a preset.
        preset: The preset to try: classic, yearly, quarterly, monthly, weekly, daily or hourly; by default that of the frequency.
        members: Networks with different seeds that are fitted together; the forecast is their median.
        blend: Statistical models whose forecasts are blended with the network's.
        covariates: Columns that are known for the future too; `predict` needs their future.
        static: Columns with one value per series.
        channels: Columns that are known for the past only.
        season: Steps of a season; by default that of the frequency.
        zone: Time zone of timestamps without an offset.
        drop_partial: Whether the values of incomplete last periods are treated as missing; otherwise they give a warning.
        seed: Seed of weights and windows.
        name: Name of the model in its bundle and in a registry.
        id_col, time_col, target_col: The names of the columns.
        accelerator: "auto" fits on a GPU if there is one, "cpu" never does.

    Raises BadSpec or InputError for arguments that no data could be fitted with.

    Example:
        >>> model = Forecaster(horizon=12).fit(df)
        >>> model.predict(level=80)  # unique_id, ds, forecaster, forecaster-lo-80, forecaster-hi-80
        >>> model.cross_validation(df, n_windows=2)  # unique_id, ds, cutoff, y, forecaster
        >>> Forecaster.load(model.save("model")).predict(df)
        >>> Forecaster.pretrained().predict(df, horizon=12)  # without a fit
    """

    @with_argument_names
    def __init__(
        self,
        horizon: int | None = None,
        *,
        freq: Any = None,
        spec: Spec | Mapping[str, Any] | None = None,
        preset: str | None = None,
        members: int | None = None,
        blend: Sequence[str] = (),
        covariates: Sequence[str] = (),
        static: Sequence[str] = (),
        channels: Sequence[str] = (),
        season: int | None = None,
        zone: str | None = None,
        drop_partial: bool = False,
        seed: int | None = None,
        name: str = "forecaster",
        id_col: str = "unique_id",
        time_col: str = "ds",
        target_col: str = "y",
        accelerator: str = "auto",
    ) -> None:
        self._options = ModelOptions(
            horizon=parse_count("horizon", horizon),
            freq=freq,
            spec=parse_spec(spec),
            preset=preset,
            members=parse_count("members", members),
            blend=parse_names("blend", blend),
            covariates=parse_names("covariates", covariates),
            static=parse_names("static", static),
            channels=parse_names("channels", channels),
            season=parse_count("season", season),
            zone=zone,
            drop_partial=drop_partial,
            name=name,
            seed=seed,
            accelerator=accelerator,
            columns=ColumnNames(id_col, time_col, target_col),
        )
        self._pretrained: PretrainedOptions | None = None
        self._predictor: Predictor | None = None
        self._address: BundleAddress | None = None
        self._histories: Panel | None = None
        self._style = FrameStyle(self._options.columns)
        self._warnings: tuple[list[tuple[str, str]], FrameStyle] = ([], self._style)

    @with_argument_names
    def fit(self, df: Any, *, test_windows: int = 1, progress: bool | Progress = True) -> Self:
        """Tries the variants of the preset, fits and calibrates the best, and tests it beside baselines; see `report`.

        Series that are too short to be trained on are left out with a `DataWarning`.

        Args:
            df: The data; or the path of a Parquet file, or of a folder of such files, for data larger than the memory: the values
                stay in a file in the folder of temporary files (see docs/data.md, "Larger than memory").
            test_windows: Rolling origins that are held out from the fit to test the model; 0 fits on all data without a test.
            progress: Whether to show the progress, or what receives it.
        Raises:
            InputError: A subclass of it, for data that are invalid or too short.
            MissingPackage: The packages of the extra `train` are not installed.
        """
        test_windows = parse_test_windows(test_windows)
        require_training()
        options, receiver = self._options, open_progress(progress)
        reader = DataReader(options)
        is_path = isinstance(df, (str, os.PathLike))
        panel, style, _ = reader.read_files(Path(df)) if is_path else reader.read(df, warn_partial=True)
        spec = choose_spec(panel, options, test_windows=test_windows, progress=receiver).spec
        warn_about_left_out(panel, spec, test_windows=test_windows)
        data_name = Path(df).name if is_path else "data frame"
        trained = fit_spec(panel, spec, options, test_windows=test_windows, data_name=data_name, progress=receiver)
        self._predictor, self._style = Predictor(trained.model, clock=_read_clock), style
        self._histories = recode_panel(panel, trained.model.spec.head.vocabulary)
        self._pretrained, self._address = None, None
        if trained.advice is not None:
            warn_about_forecasts(trained.advice)
        return self

    @with_argument_names
    def predict(
        self,
        df: Any = None,
        horizon: int | None = None,
        X_df: Any = None,  # noqa: N803 (the name in Nixtla's libraries)
        *,
        level: Levels = None,
        quantiles: Levels = None,
        joint: bool = False,
        num_samples: int | None = None,
        temperature: float = 1.0,
        seed: int = 0,
    ) -> Any:
        """Forecasts every series, on the fastest engine that is installed.

        Series without a forecast are left out with a `ForecastWarning`; if there is none at all, the error of the first is
        raised.

        Args:
            df: The histories, also of new series; by default those of the fit.
            horizon: Steps ahead; by default the model's, for the pretrained network the usual one of the frequency. It may be
                longer than that of the fit, and is at most 100,000.
            X_df: The future of the covariates, after the histories: id, timestamp and one column each.
            level: Prediction intervals in percent: 80 gives `forecaster-lo-80` and `forecaster-hi-80`.
            quantiles: Quantiles between 0 and 1: 0.1 gives `forecaster-q-0.1`.
            joint: Whether intervals hold the whole path of actuals with their probability, rather than each step by itself.
            num_samples: Sample paths, as columns `forecaster-sample-0` and so on; the head must be a distribution.
            temperature: Of the sample paths of symbols: near 0 they are the most probable symbols.
            seed: Seed of the sample paths.
        Returns:
            A frame of the same library with the columns `unique_id, ds, forecaster` and the requested ones; one row per step.
        Raises:
            InputError: There is no model, no histories, or `X_df` does not belong to them.
            LevelOutOfRange: `level` or `quantiles` are out of range, or the model is not calibrated, or has no `joint` intervals.
            BadSpec: Sample paths of a model without a distribution.
        """
        model, columns = self.model, plan_quantile_columns(level, quantiles)
        validate_horizon(horizon)
        validate_calibration(model, columns)
        validate_counts(num_samples=num_samples)
        data = self._read_histories(df, X_df)
        series, predictor = data.panel.series, self._get_predictor(data.panel)
        steps = int(horizon or predictor.fitted_model.spec.horizon)
        outcomes = predictor.forecast_batch(series, steps, levels=sorted(set(columns.values())), joint=joint)
        forecasts = self._collect_forecasts(data, outcomes)
        paths: list[np.ndarray] = []
        if num_samples is not None:
            with_forecast = {forecast.id for forecast in forecasts}
            sampled = predictor.sample_batch(
                [item for item in series if item.id in with_forecast],
                steps,
                paths=num_samples,
                seed=seed,
                temperature=temperature,
            )
            paths = [outcome for outcome in sampled if isinstance(outcome, np.ndarray)]
        return data.style.convert(decode_columns(build_table(forecasts, columns, paths), model))

    @with_argument_names
    def predict_proba(
        self,
        df: Any = None,
        horizon: int | None = None,
        X_df: Any = None,  # noqa: N803
    ) -> Any:
        """Returns the probability of every symbol of the vocabulary at each step, of a model of symbols.

        The probabilities of a step are given the symbols that `predict` returns for the steps before it; those of the first step
        are given the history alone.

        Args:
            df, horizon, X_df: As for `predict`.
        Returns:
            A frame of the same library with the columns `unique_id, ds` and `forecaster-p-SYMBOL` for each symbol.
        Raises:
            BadSpec: The model predicts numbers.
        """
        validate_horizon(horizon)
        self._require_model()
        data = self._read_histories(df, X_df)
        series, predictor = data.panel.series, self._get_predictor(data.panel)
        spec = predictor.fitted_model.spec
        steps = int(horizon or spec.horizon)
        probabilities = predictor.predict_probabilities(series, steps)
        outcomes = predictor.forecast_batch(series, steps)
        forecasts = self._collect_forecasts(data, outcomes)
        rows = [
            rows
            for rows, outcome in zip(probabilities, outcomes, strict=True)
            if not isinstance(outcome, ForecasterError)
        ]
        return data.style.convert(build_probability_table(forecasts, rows, spec.head.vocabulary))

    @with_argument_names
    def predict_dataset(
        self,
        source: str | os.PathLike[str],
        out: str | os.PathLike[str],
        horizon: int | None = None,
        *,
        level: Levels = None,
        quantiles: Levels = None,
        future: Any = None,
        static: Any = None,
        as_of: str | None = None,
        workers: int = 1,
        scratch: str | os.PathLike[str] | None = None,
        limit: int | None = None,
        layout: Literal["auto", "files", "shuffle"] = "auto",
        progress: bool | Progress = True,
    ) -> BatchReport:
        """Forecasts Parquet files of any size into an archive, in constant memory; the same call continues after a kill.

        It does what `forecaster batch` does: docs/batch.md describes the files. With more than one worker the calling script
        needs `if __name__ == "__main__":`, because every worker imports it.

        Args:
            source: A folder of Parquet files, or one; a path or URL. Without `future`, covariates need their future as rows
                without values.
            out: The folder of the archive, which `forecaster.batch.read_archive` reads; a path or URL.
            horizon, level, quantiles: As for `predict`.
            future: The covariates after the histories: id, timestamp and one column each. Parquet or CSV files by a path or
                URL, or a frame or Arrow table.
            static: The static features, in the same forms: id and one column each, one row per series.
            as_of: The date or the moment of the forecasts; by default today in UTC.
            workers: Processes with a single-threaded engine each; 1 computes in this process.
            scratch: The folder of temporary files, if rows of a series are not together; by default `out`.
            limit: The number of series, the first, for a trial.
            layout: How whole series are found: by statistics of the ids ("auto"), "files" if no series is in two files, or
                always by a "shuffle".
            progress: Whether to show the progress, or what receives it.
        Returns:
            What was done: `series`, `rejected`, `rows`, `is_complete` and more. Rejected series are in `out/_rejects`.
        Raises:
            ManifestMismatch: A batch of that date was started with another model, input or option.
        """
        self._require_model()
        columns = plan_quantile_columns(level, quantiles)
        validate_calibration(self.model, columns)
        request = DatasetRequest(
            source=os.fspath(source),
            future=future,
            static=static,
            out=os.fspath(out),
            horizon=horizon or (self._pretrained.horizon if self._pretrained is not None else None),
            level=parse_levels(level, "level"),
            quantiles=parse_levels(quantiles, "quantiles"),
            as_of=as_of,
            workers=workers,
            scratch=None if scratch is None else os.fspath(scratch),
            limit=limit,
            layout=layout,
        )
        season = None if self._pretrained is None else self._pretrained.season
        with open_model_bundle(self._address, is_pretrained=self._pretrained is not None, save=self.save) as bundle:
            return predict_dataset(request, bundle, self._options, season=season, progress=open_progress(progress))

    @with_argument_names
    def cross_validation(
        self,
        df: Any = None,
        n_windows: int = 4,
        step_size: int | None = None,
        *,
        refit: bool = False,
        level: Levels = None,
        quantiles: Levels = None,
        progress: bool | Progress = True,
    ) -> Any:
        """Forecasts from the last origins of every series, with a model that was fitted on data before them.

        Without `refit` one model serves all origins: this one, if it was fitted on nothing after the first of them, otherwise a
        new one, fitted on the data before the first; this forecaster stays as it is. With `refit` a new model is fitted at
        every origin. Origins are counted from the end of each series. If series end at different times, a fit may have seen later
        dates of other series, but of no series a value after its own first origin.

        Args:
            df: The data; by default those of the fit.
            n_windows: Origins of each series; the last lies one horizon before its end.
            step_size: Steps between origins; by default the horizon.
            refit: Whether to fit at every origin.
            level, quantiles: As for `predict`.
            progress: As for `fit`.
        Returns:
            A frame of the same library with the columns `unique_id, ds, cutoff, y, forecaster` and the requested ones. For
            symbols, `forecaster-p` is the probability of the actual symbol given all before it, also those after the cutoff.
        Raises:
            HistoryTooShort: The data before the first origin are too short for a fit.
        """
        from forecaster.api.cross_validation import cross_validate, warn_about_missing_rows

        validate_counts(n_windows=n_windows, step_size=step_size)
        columns = plan_quantile_columns(level, quantiles)
        panel, style, _ = self._read_histories(df)
        options, predictor = self._options, self._predictor
        if self._pretrained is not None:
            predictor = self._get_predictor(panel)
            options = replace(options, horizon=predictor.fitted_model.spec.horizon)
        table = cross_validate(
            panel,
            options,
            predictor,
            windows=n_windows,
            stride=step_size or options.steps_ahead,
            refit=refit,
            columns=columns,
            progress=open_progress(progress),
        )
        warn_about_missing_rows(table, panel)
        return style.convert(table)

    @with_argument_names
    def evaluate(
        self,
        df: Any = None,
        *,
        n_windows: int | None = None,
        step_size: int | None = None,
        in_sample: bool = False,
    ) -> Any:
        """Scores this model on data after its training cutoff, beside naive forecasts and the pretrained network.

        Windows that begin before the training cutoff are never scored silently: they are left out with a warning, refused if
        there are no others, or scored in rows of their own (`in_sample`).

        Args:
            df: Histories and later actuals; by default the data of the fit, whose test windows lie after the training cutoff.
            n_windows: Origins of each series; by default all after the training cutoff, of the pretrained network the last four.
            step_size: Steps between origins; by default the horizon.
            in_sample: Whether to score windows with training data too, marked in the column `in_sample`.
        Returns:
            A frame of the same library, one row per forecaster: `forecaster, in_sample, windows, mase, rmsse, smape, mae`, and
            `wql, msis_95, coverage_80, coverage_95` of a model with quantiles. For symbols the scores are `accuracy,
            cross_entropy` (nats) and `perplexity` of the next symbol given all before it, and `rollout_accuracy`; the other
            forecasters are the frequencies of the symbols and a Markov chain.
        Raises:
            InputError: Windows reach into the training data, and `in_sample` is False.
        """
        from forecaster.api.cross_validation import evaluate_model

        validate_counts(n_windows=n_windows, step_size=step_size)
        self._require_model()
        panel, style, _ = self._read_histories(df)
        predictor = self._get_predictor(panel)
        spec = predictor.fitted_model.spec
        stride, windows = step_size or spec.horizon, n_windows
        if self._pretrained is not None and windows is None:
            windows = self._pretrained.count_windows(
                panel, stride=stride, horizon=spec.horizon, min_steps=spec.min_steps
            )
        table, num_left_out = evaluate_model(panel, predictor, windows=windows, stride=stride, in_sample=in_sample)
        if num_left_out:
            warn_about_data(
                [f"{num_left_out} windows begin before the training cutoff of the model and were not scored"]
            )
        return style.convert(table)

    @with_argument_names
    def plot(
        self,
        df: Any = None,
        forecast: Any = None,
        *,
        ids: Any = None,
        max_ids: int = 6,
        history_steps: int = 100,
    ) -> Figure:
        """Plots histories with forecasts and their intervals.

        Args:
            df: The histories; by default those of the fit.
            forecast: The result of `predict`; by default a new forecast with 80 % and 95 % intervals.
            ids: The series to plot, one id or several; by default the first.
            max_ids: The most series if `ids` are not given.
            history_steps: The most steps of each history.
        """
        validate_counts(max_ids=max_ids, history_steps=history_steps)
        self._require_model()
        refuse_symbols(self.spec, what="a plot", advice="Use the tables of `predict` and `predict_proba`.")
        panel = self._read_histories(df).panel
        plotted = select_ids([series.id for series in panel.series], ids, max_ids=max_ids)
        if forecast is None:
            forecast = self.predict(df, level=[80, 95] if has_quantiles(self.model) else None)
        rows = read_forecast(forecast, self._options.columns)
        return plot_forecasts(panel, rows, plotted, history_steps=history_steps, label=self._options.columns.y)

    @with_argument_names
    def explain(
        self,
        df: Any = None,
        *,
        unique_id: Any = None,
        horizon: int | None = None,
        X_df: Any = None,  # noqa: N803
        steps: int = 256,
        faithfulness: bool = True,
    ) -> ForecastExplanation:
        """Explains the forecast of one series: the attribution to its values, and the memory of the network.

        Args:
            df: The histories; by default those of the fit.
            unique_id: The series; may be left out if there is only one.
            horizon: Steps ahead; by default the model's.
            X_df: The future of the covariates.
            steps: The number of latest steps to explain.
            faithfulness: Whether to measure how faithful the attributions are, which takes some hundreds of forecasts.
        """
        require_training()
        validate_counts(steps=steps)
        validate_horizon(horizon)
        self._require_model()
        refuse_symbols(self.spec, what="an explanation", advice="Use `predict_proba`.")
        data = self._read_histories(df, X_df)
        model = as_fitted_model(self._get_predictor(data.panel).fitted_model)
        return explain_forecast(
            model,
            data,
            unique_id,
            horizon=int(horizon or model.spec.horizon),
            steps=steps,
            faithfulness=faithfulness,
        )

    @with_argument_names
    def trace(
        self,
        df: Any = None,
        *,
        unique_id: Any = None,
        X_df: Any = None,  # noqa: N803
        whole_history: bool = False,
    ) -> NetworkStates:
        """Traces every unit of the network while it reads series: gates, candidate, cell and hidden state over time.

        Series that cannot be forecast are left out with a `DataWarning`; if there is no other, the error of the first is raised.

        Args:
            df: The histories; by default those of the fit.
            unique_id: The series, one id or several; by default all.
            X_df: The future of the covariates, as for `predict`.
            whole_history: Whether a network that reads windows is traced over all of a history, window after window, rather
                than over the last window alone, from which it forecasts.
        """
        require_training()
        self._require_model()
        data = self._read_histories(df, X_df)
        return trace_network(self._get_predictor(data.panel), data, unique_id, whole_history=whole_history)

    @with_argument_names
    def save(self, path: str | os.PathLike[str], *, histories: bool = False, overwrite: bool = False) -> Path:
        """Writes the model as a bundle: a folder that `load`, the command line and the service read.

        Args:
            path: The new folder.
            histories: Whether to keep the histories of the fit in the bundle, so that `predict` of a loaded model needs no data.
            overwrite: Whether to replace a bundle that is there.
        Raises:
            BundleError: Something is at that path, and is not to be replaced or is no bundle.
        """
        require_training()
        model = self.model if self._pretrained is None else self._pretrained.build_storable_model()
        if histories and self._histories is None:
            raise InputError(
                "Expected the histories of the fit for `histories=True`; this model was loaded without them. Leave it out.",
                where="histories",
            )
        folder = Path(path).expanduser()
        storage.save_model(model, folder, histories=self._histories if histories else None, overwrite=overwrite)
        return folder

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        tracking_uri: str | None = None,
        freq: Any = None,
        zone: str | None = None,
        drop_partial: bool = False,
        id_col: str = "unique_id",
        time_col: str = "ds",
        target_col: str = "y",
    ) -> Self:
        """Loads a bundle: a folder, or a registered model as `models:/NAME@ALIAS` or `models:/NAME/VERSION`.

        Args:
            path: The folder, or the address of a registered model.
            tracking_uri: The registry; by default MLFLOW_TRACKING_URI, or the database of the root folder.
            freq, zone, drop_partial, id_col, time_col, target_col: How to read later frames, as in `Forecaster`.
        Raises:
            BundleError: There is no bundle at that path.
            NoSuchModel: There is no registry, or it has no such model.
        """
        with storage.open_bundle(path, tracking_uri=tracking_uri) as folder:
            predictor, histories = artifact.load_predictor(folder, clock=_read_clock), artifact.load_histories(folder)
        forecaster = cls(
            spec=predictor.fitted_model.spec,
            freq=freq,
            zone=zone,
            drop_partial=drop_partial,
            id_col=id_col,
            time_col=time_col,
            target_col=target_col,
        )
        forecaster._predictor, forecaster._histories = predictor, histories
        forecaster._address = BundleAddress(os.fspath(path), tracking_uri)
        return forecaster

    @classmethod
    def pretrained(
        cls,
        freq: Any = None,
        season: int | None = None,
        *,
        horizon: int | None = None,
        zone: str | None = None,
        drop_partial: bool = False,
        id_col: str = "unique_id",
        time_col: str = "ds",
        target_col: str = "y",
    ) -> Self:
        """Returns a forecaster with the network that ships with the package, which forecasts without a fit.

        It reads ids, timestamps and values only: a `DataWarning` names the other columns of a frame, which are ignored.

        Args:
            freq: Frequency of the data; by default it is inferred in every call.
            season: Steps of a season; by default that of the frequency.
            horizon: Steps ahead where a call names none; by default the usual number of the frequency.
            zone, drop_partial, id_col, time_col, target_col: How to read frames, as in `Forecaster`.
        Raises:
            BundleError: The files of the network are damaged.
        """
        options = PretrainedOptions.parse(freq, parse_count("season", season), parse_count("horizon", horizon))
        forecaster = cls(
            spec=options.build_spec(),
            freq=freq,
            zone=zone,
            drop_partial=drop_partial,
            id_col=id_col,
            time_col=time_col,
            target_col=target_col,
        )
        forecaster._pretrained = options
        return forecaster

    @property
    def model(self) -> FittedModel | StoredModel:
        """The fitted model: its specification, frequency, training cutoff, calibration and facts."""
        return self._get_predictor().fitted_model if self._pretrained is None else self._pretrained.build_model()

    @property
    def spec(self) -> Spec:
        """The specification of the fitted model."""
        return self.model.spec

    @property
    def report(self) -> Any:
        """The scores of the test, one row per forecaster, of which some are naive or pretrained; empty without a test."""
        return self._style.convert(build_report(self.model))

    @property
    def warnings(self) -> Any:
        """What the latest `predict` warned of: a frame `unique_id, warning`, with a row for each warning and missing forecast."""
        messages, style = self._warnings
        return style.convert(pd.DataFrame(messages, columns=["unique_id", "warning"], dtype=object))

    def __repr__(self) -> str:
        if self._pretrained is not None:
            return self._pretrained.describe()
        arguments = f"Forecaster({self._options.describe()})"
        if self._predictor is None:
            return f"{arguments}, not fitted"
        return f"{arguments}, {describe_model(self.model)}"

    def _collect_forecasts(self, data: PanelInput, outcomes: Sequence[Forecast | ForecasterError]) -> list[Forecast]:
        """Returns the forecasts among the outcomes, and keeps what `warnings` shows."""
        forecasts, messages = collect_forecasts(data.panel, outcomes)
        ignored = ((forecast.id, message) for forecast in forecasts for message in data.ignored)
        self._warnings = [*ignored, *messages], data.style
        return forecasts

    def _require_model(self) -> None:
        """Raises InputError if there is no model yet."""
        if self._pretrained is None:
            self._get_predictor()

    def _get_predictor(self, panel: Panel | None = None) -> Predictor:
        """Returns the predictor of the fitted model, or of the pretrained network for the data of a panel."""
        if self._pretrained is not None:
            assert panel is not None
            return self._pretrained.build_predictor(panel, clock=_read_clock)
        if self._predictor is None:
            raise InputError(
                "Expected a fitted Forecaster; this one has no model yet. Call fit(df) first, Forecaster.load(path), or "
                "Forecaster.pretrained().",
                where="fit",
            )
        return self._predictor

    def _read_histories(self, df: Any, future: Any = None) -> PanelInput:
        """Returns the panel of a frame, or that of the fit, with the future of its covariates."""
        model = None if self._predictor is None else self._predictor.fitted_model
        reader = DataReader(self._options, model, values_only=self._pretrained is not None)
        if df is not None:
            return reader.read(df, future)
        if self._histories is None:
            raise InputError(
                "Expected `df`, because this model has no histories; found none. Pass the histories, or save the model with "
                "`histories=True`.",
                where="df",
            )
        if future is None:
            return PanelInput(self._histories, self._style)
        return reader.extend(self._histories, self._style, future)


def _read_clock() -> datetime:
    return datetime.now(UTC)

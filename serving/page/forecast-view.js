// The view of one forecast: chart, table and code of one series, with downloads.

import { ForecastChart, formatPercent } from "./chart.js";
import { byId, createElement, replaceChildren } from "./dom.js";
import { clearErrors, showError } from "./error-messages.js";
import { ExplanationView } from "./explanation-view.js";
import { buildCurl, buildPython, chartToPng, copyToClipboard, download, forecastsToCsv } from "./export.js";
import { levelsOfInterval } from "./forecast-requests.js";
import { buildForecastTable } from "./tables.js";

const MIN_STEPS_SHOWN = 60, HORIZONS_SHOWN = 5;
const MAX_CODE_CHARACTERS = 20_000; // longer code is shown truncated

/**
 * Shows the state that `getState()` returns: null, or
 * `{ series, result, model, query, season, reliableHorizon, unit, durationMs, notes, isRunning, seriesCount, getForecasts }`.
 */
export class ForecastView {
  constructor(getState) {
    this.getState = getState;
    this.chart = new ForecastChart(byId("chart"));
    this.explanation = new ExplanationView(getState);
    byId("range").addEventListener("change", () => this.render());
    byId("table-fold").addEventListener("toggle", () => this.renderTable());
    byId("code-fold").addEventListener("toggle", () => this.renderCode());
    byId("save-csv").addEventListener("click", () => this.downloadCsv());
    byId("save-png").addEventListener("click", () => this.downloadPng());
    byId("copy-curl").addEventListener("click", () => this.copyCode("curl", buildCurl));
    byId("copy-python").addEventListener("click", () => this.copyCode("python", buildPython));
  }

  render() {
    const state = this.getState();
    for (const id of ["result", "table-fold", "code-fold"]) byId(id).hidden = state === null;
    byId("empty").hidden = state !== null;
    this.explanation.render();
    if (state === null) return;
    const { series, result, notes } = state;
    replaceChildren(byId("result-title"), series.id);
    replaceChildren(byId("result-summary"), summarize(state));
    replaceChildren(byId("warnings"),
      (result?.warnings ?? []).map((warning) => createElement("li", { class: "warning" }, warning)),
      notes.map((note) => createElement("li", {}, note)));
    byId("range").hidden = series.y.length <= stepsShown(state);
    // While requests are running, a CSV would hold only some of the series.
    byId("save-csv").disabled = state.isRunning || state.getForecasts().length === 0;
    replaceChildren(byId("action-status"));
    this.chart.setData(this.buildChartData(state, byId("range").querySelector("input:checked").value === "all"));
    this.renderTable();
    this.renderCode();
    const messages = byId("messages");
    if (result?.error) showError(messages, { title: `No forecast for ${series.id}`, ...result.error });
    else clearErrors(messages);
  }

  /** Returns the data of the chart (see `ForecastChart.setData`), with all of the history or its last steps only. */
  buildChartData(state, showAll) {
    const { series, result, query, reliableHorizon } = state;
    const start = showAll ? 0 : Math.max(0, series.y.length - stepsShown(state));
    const history = { ds: series.ds.slice(start), y: series.y.slice(start) };
    if (result === undefined || result.error) return { title: series.id, history, forecast: null, reliableHorizon: null };
    const bands = query.coverages.map((coverage) => {
      const [lower, upper] = levelsOfInterval(coverage).map((level) => result.quantiles?.[String(level)]);
      return { coverage, lower, upper };
    }).filter(({ lower, upper }) => lower !== undefined && upper !== undefined);
    return { title: series.id, history, forecast: { ds: result.ds, mean: result.mean, bands }, reliableHorizon };
  }

  renderTable() {
    const state = this.getState();
    if (byId("table-fold").open && state !== null) {
      replaceChildren(byId("table"), buildForecastTable(this.buildChartData(state, true)));
    }
  }

  renderCode() {
    const state = this.getState();
    if (!byId("code-fold").open || state === null) return;
    for (const [id, buildCode] of [["curl", buildCurl], ["python", buildPython]]) {
      const code = buildCode(state.series, state.query);
      const truncated = `${code.slice(0, MAX_CODE_CHARACTERS)}… (truncated; the copy button copies everything)`;
      replaceChildren(byId(id), code.length > MAX_CODE_CHARACTERS ? truncated : code);
    }
  }

  downloadCsv() {
    const { getForecasts, query, seriesCount } = this.getState();
    const forecasts = getForecasts();
    download(new Blob([forecastsToCsv(forecasts, query.levels)], { type: "text/csv" }), "forecast.csv");
    const count = `${forecasts.length.toLocaleString("en")} of ${seriesCount.toLocaleString("en")} series`;
    const note = seriesCount === forecasts.length ? "" : ` It contains ${count}; the others have no forecast.`;
    replaceChildren(byId("action-status"), `CSV downloaded.${note}`);
  }

  async downloadPng() {
    const { series, model, query } = this.getState();
    const intervals = query.coverages.length === 0 ? "" : ` · intervals: ${query.coverages.map(formatPercent).join(", ")}`;
    const footer = model === null ? "" : `${model.name}, version ${model.version}${intervals}`;
    download(await chartToPng(this.chart.svg, series.id, footer), `${series.id}-forecast.png`);
    replaceChildren(byId("action-status"), "PNG downloaded.");
  }

  /** Copies the code to the clipboard; where the browser blocks that, shows it selected. */
  async copyCode(language, buildCode) {
    const { series, query } = this.getState();
    if (await copyToClipboard(buildCode(series, query))) {
      replaceChildren(byId("action-status"), `Copied as ${language === "curl" ? "curl" : "Python"}.`);
      return;
    }
    byId("code-fold").open = true;
    this.renderCode();
    getSelection().selectAllChildren(byId(language));
    replaceChildren(byId("action-status"), "The browser blocks access to the clipboard; the code is selected below.");
  }
}

/** Returns how many steps of the history are shown in the range "Recent". */
function stepsShown({ query, season }) {
  return Math.max(MIN_STEPS_SHOWN, HORIZONS_SHOWN * query.horizon, 3 * (season ?? 0));
}

function summarize({ series, result, model, query, unit, durationMs }) {
  const count = (number) => `${number.toLocaleString("en")} ${unit}${number === 1 ? "" : "s"}`;
  const history = `${count(series.y.length)} of history`;
  if (result === undefined || result.error || model === null) return history;
  const forecast = `${count(query.horizon)} ahead by ${model.name}, version ${model.version}`;
  return `${history} · ${forecast} · ${Math.max(1, Math.round(durationMs)).toLocaleString("en")} ms`;
}

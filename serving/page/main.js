// The entry point of the page: its state, and the functions that run on user actions.

import { fetchJson, setApiKey } from "./api.js";
import { byId, createElement, replaceChildren } from "./dom.js";
import { clearErrors, showError, UserInputError } from "./error-messages.js";
import { makeExample } from "./example-data.js";
import { forecastAll, levelsForCoverages } from "./forecast-requests.js";
import { ForecastView } from "./forecast-view.js";
import { getReliableHorizon, showModel } from "./model-view.js";
import { listenForTables } from "./table-input.js";
import { anchorWeek, defaultHorizon, guessFrequency, parseTimestamp, stepName, timestampRange } from "./timestamps.js";

const FREQUENCIES = ["15min", "h", "D", "W", "MS", "QS", "YS", "1"];
const MAX_OPTIONS = 500, MIN_SERIES_FOR_SEARCH = 12;
const RETRY_MS = 3000; // delay between requests for the model while none is deployed

const state = {
  modelInfo: null, // the response of GET /v1/model
  table: null, // the parsed table: { series } or { values }, see csv.js
  series: [], // in the form that is sent
  selected: null, // the series that is shown
  notes: [],
  results: new Map(), // from series id to forecast or { id, error }
  respondingModel: null, // the model that made the forecasts
  durationMs: 0,
  query: null, // { horizon, coverages, levels } of the forecasts
  hasChosenHorizon: false, // whether the user has entered a horizon
  abortController: null, // of the running forecast
};
const messages = byId("messages");
const view = new ForecastView(() => state.selected && {
  series: state.selected,
  result: state.results.get(state.selected.id),
  model: state.respondingModel,
  query: state.query ?? readQuery(),
  season: state.modelInfo?.season,
  reliableHorizon: getReliableHorizon(state.modelInfo),
  unit: stepUnit(),
  durationMs: state.durationMs,
  notes: state.notes,
  isRunning: state.abortController !== null,
  seriesCount: state.series.length,
  getForecasts,
});

/** Whether the model in use is the pretrained network, which takes series of any frequency. */
const isPretrained = () => state.modelInfo !== null && state.modelInfo.freq === null;

// --- Data -----------------------------------------------------------------------------------------------------------

function onTableStart(name) {
  resetData();
  replaceChildren(byId("data-status"), `reading ${name} …`);
}

function onTable(table, name) {
  if (table.error !== undefined) {
    replaceChildren(byId("data-status"), "cannot be read");
    byId("data-section").open = true;
    showError(messages, new UserInputError(table.error));
    return;
  }
  setTable(table, name);
}

function setTable(table, name) {
  resetData();
  state.table = table;
  state.notes = table.notes ?? [];
  const seriesCount = table.series?.length ?? 1;
  const rowCount = table.rows ?? table.series.reduce((sum, series) => sum + series.y.length, 0);
  const isColumn = table.values !== undefined;
  replaceChildren(byId("data-status"),
    `${name}: ${seriesCount.toLocaleString("en")} series, ${rowCount.toLocaleString("en")} rows`);
  byId("data-section").open = isColumn || document.activeElement === byId("paste"); // stays open while the user types
  byId("start-field").hidden = byId("freq-hint").hidden = !isColumn;
  renderFrequencies(!isColumn);
  updateSeries();
}

/** Builds the series from the table and the fields for frequency and first timestamp. */
function updateSeries() {
  if (state.table === null) return;
  cancelForecast();
  clearErrors(messages);
  state.results = new Map();
  const alias = byId("freq").value;
  try {
    const series = state.table.values === undefined
      ? state.table.series.map((item) =>
        (alias === "" ? item : { ...item, freq: { alias: anchorWeek(alias, item.ds[0]), sendsStart: false } }))
      : [seriesFromColumn(state.table.values, alias)];
    const season = byId("season").valueAsNumber;
    state.series = isPretrained() && season > 0 ? series.map((item) => ({ ...item, season })) : series;
  } catch (error) {
    state.series = [];
    showError(messages, error);
  }
  state.selected = state.series[0] ?? null;
  const count = state.series.length;
  byId("series-field").hidden = count < 2;
  byId("series-search").hidden = count < MIN_SERIES_FOR_SEARCH;
  byId("series-search").value = "";
  byId("run-forecast").disabled = state.selected === null;
  replaceChildren(byId("run-forecast"), count > 1 ? `Forecast ${count.toLocaleString("en")} series` : "Forecast");
  renderSeriesOptions();
  proposeHorizon();
  if (state.selected !== null) view.render();
}

/** Proposes the usual horizon of the selected series, unless the model has its own or the user has chosen one. */
function proposeHorizon() {
  if (!isPretrained() || state.hasChosenHorizon || state.selected === null) return;
  byId("horizon").value = defaultHorizon(byId("freq").value || guessFrequency(state.selected.ds));
}

function seriesFromColumn(values, freq) {
  const start = parseTimestamp(byId("start").value);
  const isNumbered = /^\d+$/.test(freq);
  if (start === null || (typeof start.text === "number") !== isNumbered) {
    throw new UserInputError({
      title: "The first timestamp is not valid",
      expected: isNumbered ? "an integer" : "a date such as 2020-01-31, with a time for steps of hours",
      found: `“${byId("start").value}”`, where: "First timestamp", remedy: "Enter the timestamp of the first value.",
    });
  }
  const alias = anchorWeek(freq, start.text);
  return { id: "series", ds: timestampRange(start, alias, values.length), y: values, freq: { alias, sendsStart: true } };
}

function resetData() {
  cancelForecast();
  clearErrors(messages);
  Object.assign(state, { table: null, series: [], selected: null, notes: [], results: new Map(), respondingModel: null });
  byId("run-forecast").disabled = true;
  byId("series-field").hidden = true;
  view.render();
}

/** Fills the choice of frequencies; the model's frequency comes first. It is inferred for tables with timestamps. */
function renderFrequencies(isInferred) {
  const previous = byId("freq").value, modelFreq = state.modelInfo?.freq;
  const isListable = typeof modelFreq === "string" && timestampRange(parseTimestamp("2020-01-01"), modelFreq, 2) !== null;
  const aliases = [...new Set([...(isListable ? [modelFreq] : []), ...FREQUENCIES])];
  const title = (alias) => `${stepName(alias)}${alias === modelFreq ? " (frequency of the model)" : ""}`;
  replaceChildren(byId("freq"),
    isInferred ? createElement("option", { value: "" }, "inferred from timestamps") : null,
    aliases.map((alias) => createElement("option", { value: alias }, title(alias))));
  byId("freq").value = isInferred ? "" : previous === "" ? aliases[0] : previous;
  if (!isInferred && byId("start").value === "") {
    byId("start").value = /^\d+$/.test(byId("freq").value) ? "1" : "2020-01-01";
  }
}

function renderSeriesOptions() {
  const search = byId("series-search").value.trim().toLowerCase();
  const matches = state.series.map((series, index) => [series, index])
    .filter(([series]) => series.id.toLowerCase().includes(search));
  const title = ({ id }) => (state.results.get(id)?.error ? `${id} (no forecast)` : id);
  const hiddenCount = matches.length - MAX_OPTIONS;
  replaceChildren(byId("series"),
    matches.slice(0, MAX_OPTIONS).map(([series, index]) =>
      createElement("option", { value: index, selected: series === state.selected }, title(series))),
    hiddenCount <= 0 ? null
      : createElement("option", { disabled: true }, `${hiddenCount.toLocaleString("en")} more: use the search`));
}

// --- Forecast -------------------------------------------------------------------------------------------------------

function readQuery() {
  const coverages = [...byId("intervals").querySelectorAll("input:checked")].map((box) => Number(box.value));
  return { horizon: byId("horizon").valueAsNumber, coverages, levels: levelsForCoverages(coverages) };
}

async function runForecast() {
  const query = readQuery();
  if (state.selected === null || !byId("horizon").reportValidity() || !byId("season").reportValidity()) return;
  cancelForecast();
  const abortController = new AbortController();
  const notes = state.table.notes ?? [];
  Object.assign(state, { abortController, query, results: new Map(), notes, respondingModel: null });
  clearErrors(messages);
  const queue = [state.selected, ...state.series.filter((series) => series !== state.selected)]; // the shown series first
  showProgress(0, queue.length);
  try {
    await fetchForecasts(queue, query, abortController.signal);
  } catch (error) {
    if (error.name !== "AbortError") showRequestError(error);
  } finally {
    if (state.abortController === abortController) {
      state.abortController = null;
      byId("progress").hidden = true;
      byId("controls").removeAttribute("aria-busy");
      renderSeriesOptions();
      byId("save-csv").disabled = getForecasts().length === 0;
    }
  }
}

/** Returns the forecasts received so far, in the order of the series, without errors. */
function getForecasts() {
  return state.series.map((series) => state.results.get(series.id)).filter((result) => result !== undefined && !result.error);
}

/** Requests all forecasts. If the model is not calibrated, the requests are repeated for point forecasts only. */
async function fetchForecasts(queue, query, signal) {
  let done = 0;
  const onBatch = ({ model, results, durationMs }, count) => {
    if (signal.aborted) return;
    for (const [id, result] of results) state.results.set(id, result);
    state.respondingModel = model ?? state.respondingModel;
    const hasSelected = results.has(state.selected.id);
    if (hasSelected) state.durationMs = durationMs;
    done += count;
    showProgress(done, queue.length);
    if (hasSelected || done === queue.length) view.render();
    if (hasSelected) scrollToResult();
  };
  try {
    await forecastAll(queue, { ...query, signal, onBatch });
  } catch (error) {
    if (error.code !== "level_out_of_range" || query.levels.length === 0) throw error;
    state.query = { ...query, coverages: [], levels: [] };
    state.notes = [...state.notes, "No prediction intervals: this model is not calibrated and gives point forecasts only."];
    await forecastAll(queue, { ...state.query, signal, onBatch });
  }
}

/** Scrolls to the result where the layout has one column and the result is below the fold. */
function scrollToResult() {
  const { top } = byId("result").getBoundingClientRect();
  if (top > 0.6 * innerHeight) byId("result").scrollIntoView({ block: "start" });
}

function showRequestError(error) {
  view.render();
  showError(messages, error);
  if (error.status === 401) openKeyPanel(true);
}

function showProgress(done, total) {
  byId("controls").setAttribute("aria-busy", "true");
  byId("progress").hidden = total === 1 || done === total;
  byId("progress-bar").value = done / total;
  replaceChildren(byId("progress-status"), `${done.toLocaleString("en")} of ${total.toLocaleString("en")} series`);
}

function cancelForecast() {
  state.abortController?.abort();
}

function changeSeason() {
  const hadForecast = state.results.size > 0;
  updateSeries();
  if (hadForecast) runForecast();
}

/** Repeats the forecast after a change of its options, if there has been one or one is running. */
function rerunIfForecast() {
  if (state.results.size > 0 || state.abortController !== null) runForecast();
}

// --- Model and API key ----------------------------------------------------------------------------------------------

async function loadModelInfo() {
  const container = byId("deployed-model");
  try {
    const { content } = await fetchJson("/v1/model");
    const isFirst = state.modelInfo === null;
    state.modelInfo = content;
    const frequency = isPretrained() ? "pretrained" : `frequency: ${stepName(content.freq)}`;
    replaceChildren(container, createElement("b", {}, content.model.name), ` ${content.model.version} · ${frequency}`);
    replaceChildren(byId("horizon-hint"),
      isPretrained() ? null : `This model was evaluated up to ${content.spec.horizon} steps ahead.`);
    byId("pretrained-note").hidden = byId("season-field").hidden = !isPretrained();
    if (isFirst && state.results.size === 0 && !isPretrained()) byId("horizon").value = content.spec.horizon;
    if (isFirst) proposeHorizon();
    renderFrequencies(state.table?.values === undefined);
    if (state.table?.values !== undefined && state.series.length === 0) updateSeries();
  } catch (error) {
    state.modelInfo = null;
    const status = { 401: "API key required", 403: "API key lacks permission", 503: "no model yet" }[error.status] ?? "";
    replaceChildren(container, status);
    if (error.status === 401) openKeyPanel(false);
    if (error.status === 503) setTimeout(loadModelInfo, RETRY_MS);
  }
}

function openKeyPanel(withFocus) {
  byId("key-panel").hidden = false;
  byId("key-toggle").setAttribute("aria-expanded", "true");
  if (withFocus) byId("key").focus();
}

function closeKeyPanel() {
  byId("key-panel").hidden = true;
  byId("key-toggle").setAttribute("aria-expanded", "false");
}

async function updateKey(key) {
  setApiKey(key);
  byId("key").value = "";
  closeKeyPanel();
  clearErrors(messages);
  await loadModelInfo();
  if (!byId("model-view").hidden) await showModel();
}

// --- Views ----------------------------------------------------------------------------------------------------------

/** Returns the name of one step, of the chosen frequency or else of the model that made the forecast; or "step". */
function stepUnit() {
  const hasForecast = state.selected !== null && state.respondingModel !== null
    && state.results.get(state.selected.id)?.error === undefined;
  const guess = isPretrained() && state.selected !== null ? guessFrequency(state.selected.ds) : null;
  const alias = byId("freq").value || (hasForecast ? state.modelInfo?.freq : null) || guess;
  return alias === null || !/^[a-z]+$/.test(stepName(alias)) ? "step" : stepName(alias);
}

function showCurrentView() {
  const isModel = location.hash === "#model";
  byId("model-view").hidden = !isModel;
  byId("forecast-view").hidden = isModel;
  byId(isModel ? "nav-model" : "nav-forecast").setAttribute("aria-current", "page");
  byId(isModel ? "nav-forecast" : "nav-model").removeAttribute("aria-current");
  document.title = `${isModel ? "Model" : "Forecast"} · forecaster`;
  if (isModel) showModel();
}

function loadExample() {
  const { modelInfo } = state;
  const options = modelInfo === null || isPretrained() ? {}
    : { freq: modelInfo.freq, season: modelInfo.season, context: modelInfo.spec.context };
  const { series } = makeExample(options);
  byId("paste").value = "";
  setTable({ series, notes: ["The example is synthetic: three series with trend, seasonality and noise."] }, "example");
  runForecast();
}

function selectSeries() {
  state.selected = state.series[byId("series").value];
  view.render();
}

/** Lists the series that match the search; the first is shown if the selected one does not match. */
function searchSeries() {
  renderSeriesOptions();
  const shown = state.series[byId("series").value];
  if (shown !== undefined && shown !== state.selected) selectSeries();
}

function onSubmit(id, action) {
  byId(id).addEventListener("submit", (event) => { event.preventDefault(); action(); });
}

/** Returns the options of `parseTable`. */
function getTableOptions() {
  return { businessDays: /^C?B/.test(state.modelInfo?.freq ?? "") };
}

listenForTables({ onStart: onTableStart, onTable, getOptions: getTableOptions });
onSubmit("controls", runForecast);
onSubmit("key-form", () => updateKey(byId("key").value.trim()));
byId("example").addEventListener("click", loadExample);
byId("example-empty").addEventListener("click", loadExample);
byId("freq").addEventListener("change", updateSeries);
byId("start").addEventListener("change", updateSeries);
byId("series").addEventListener("change", selectSeries);
byId("series-search").addEventListener("input", searchSeries);
byId("season").addEventListener("change", changeSeason);
byId("horizon").addEventListener("input", () => { state.hasChosenHorizon = true; });
byId("horizon").addEventListener("change", rerunIfForecast);
byId("intervals").addEventListener("change", rerunIfForecast);
byId("stop").addEventListener("click", cancelForecast);
byId("key-toggle").addEventListener("click", () => (byId("key-panel").hidden ? openKeyPanel(true) : closeKeyPanel()));
byId("key-clear").addEventListener("click", () => updateKey(""));
addEventListener("hashchange", showCurrentView);
renderFrequencies(true);
showCurrentView();
loadModelInfo();

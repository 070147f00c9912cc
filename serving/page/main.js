// The page: what it knows, and what happens when something is done to it.

import * as api from "./api.js";
import { byId, make, put } from "./dom.js";
import { example } from "./example.js";
import { listen } from "./input.js";
import { clear, Fault, tell } from "./messages.js";
import { reliableOf, showModel } from "./model.js";
import { Outcome } from "./outcome.js";
import { forecastAll, levelsOf } from "./send.js";
import { ladder, read as readStamp, stepName, told as stampTold } from "./stamps.js";

const FREQUENCIES = ["15min", "h", "D", "W", "MS", "QS", "YS", "1"];
const MOST_OPTIONS = 500, SEARCHED_FROM = 12;
const SOON_MS = 3000; // before a server without a model is asked again
const WEEKDAYS = ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"];

const known = {
  told: null, // GET /v1/model
  table: null, // what was read: { series } or { column }
  series: [], // as it is sent
  chosen: null, // the one that is seen
  notes: [],
  outcomes: new Map(),
  model: null, // that answered
  took: 0,
  asked: null, // { horizon, shares, levels }
  running: null, // an AbortController
};
const messages = byId("messages");
const view = new Outcome(() => known.chosen && {
  series: known.chosen,
  outcome: known.outcomes.get(known.chosen.id),
  model: known.model,
  asked: known.asked ?? wanted(),
  season: known.told?.season,
  reliable: reliableOf(known.told),
  unit: unit(),
  took: known.took,
  notes: known.notes,
  running: known.running !== null,
  all: known.series.length,
  forecasts: given,
});

// --- the data -------------------------------------------------------------------------------------------------------

function begin(name) {
  forget();
  put(byId("data-says"), `reading ${name} …`);
}

function read(result, name) {
  if (result.fault !== undefined) {
    put(byId("data-says"), "cannot be read");
    byId("data-step").open = true;
    tell(messages, new Fault(result.fault));
    return;
  }
  take(result, name);
}

function take(table, name) {
  forget();
  known.table = table;
  known.notes = table.notes ?? [];
  const series = table.series?.length ?? 1;
  const rows = table.rows ?? table.series.reduce((sum, one) => sum + one.y.length, 0);
  put(byId("data-says"), `${name}: ${series === 1 ? "1 series" : `${series.toLocaleString("en")} series`}, ${rows.toLocaleString("en")} rows`);
  byId("data-step").open = table.column !== undefined || document.activeElement === byId("paste"); // who types, goes on
  byId("start-field").hidden = byId("freq-hint").hidden = table.column === undefined;
  frequencies(table.column === undefined);
  arrange();
}

/** Makes the series of what was read and of what the fields say. */
function arrange() {
  if (known.table === null) return;
  stop();
  clear(messages);
  known.outcomes = new Map();
  const name = byId("freq").value;
  try {
    known.series = known.table.column === undefined
      ? known.table.series.map((one) => (name === "" ? one : { ...one, freq: { name, start: false } }))
      : [fromColumn(known.table.column, name)];
  } catch (error) {
    known.series = [];
    tell(messages, error);
  }
  known.chosen = known.series[0] ?? null;
  byId("series-field").hidden = known.series.length < 2;
  byId("series-search").hidden = known.series.length < SEARCHED_FROM;
  byId("series-search").value = "";
  byId("go").disabled = known.chosen === null;
  put(byId("go"), known.series.length > 1 ? `Forecast ${known.series.length.toLocaleString("en")} series` : "Forecast");
  options();
  if (known.chosen !== null) view.show();
}

function fromColumn(y, name) {
  const start = readStamp(byId("start").value);
  const numbered = /^\d+$/.test(name);
  if (start === null || (typeof start.text === "number") !== numbered) {
    throw new Fault({ title: "When does it begin?", expected: numbered ? "a whole number" : "a date like 2020-01-31, with a time where steps are hours",
      found: `“${byId("start").value}”`, where: "First stamp", remedy: "Say the stamp of the first value." });
  }
  const freq = name === "W" ? `W-${WEEKDAYS[new Date(start.face).getUTCDay()]}` : name;
  return { id: "series", ds: ladder(start, freq, y.length), y, freq: { name: freq, start: true } };
}

function forget() {
  stop();
  clear(messages);
  Object.assign(known, { table: null, series: [], chosen: null, notes: [], outcomes: new Map(), model: null });
  byId("go").disabled = true;
  byId("series-field").hidden = true;
  view.show();
}

function frequencies(inferred) {
  const before = byId("freq").value, of = known.told?.freq;
  const names = [...new Set([...(of !== undefined && ladder(readStamp("2020-01-01"), of, 2) !== null ? [of] : []), ...FREQUENCIES])];
  const title = (name) => `${stepName(name)}${name === of ? " (as the model)" : ""}`;
  put(byId("freq"), inferred ? make("option", { value: "" }, "from the stamps") : null, names.map((name) => make("option", { value: name }, title(name))));
  byId("freq").value = inferred ? "" : before === "" ? names[0] : before;
  if (!inferred && byId("start").value === "") byId("start").value = /^\d+$/.test(byId("freq").value) ? "1" : "2020-01-01";
}

function options() {
  const search = byId("series-search").value.trim().toLowerCase();
  const fitting = known.series.map((one, place) => [one, place]).filter(([one]) => one.id.toLowerCase().includes(search));
  const more = fitting.length - MOST_OPTIONS;
  put(byId("series"),
    fitting.slice(0, MOST_OPTIONS).map(([one, place]) => make("option", { value: place, selected: one === known.chosen },
      known.outcomes.get(one.id)?.error ? `${one.id} (no forecast)` : one.id)),
    more > 0 ? make("option", { disabled: true }, `${more.toLocaleString("en")} more: search`) : null);
}

// --- the forecast ---------------------------------------------------------------------------------------------------

function wanted() {
  const shares = [...byId("bands").querySelectorAll("input:checked")].map((box) => Number(box.value));
  return { horizon: byId("horizon").valueAsNumber, shares, levels: levelsOf(shares) };
}

async function forecast() {
  const asked = wanted();
  if (known.chosen === null || !byId("horizon").reportValidity()) return;
  stop();
  const running = new AbortController();
  Object.assign(known, { running, asked, outcomes: new Map(), notes: known.table.notes ?? [], model: null });
  clear(messages);
  const queue = [known.chosen, ...known.series.filter((one) => one !== known.chosen)]; // what is seen comes first
  progress(0, queue.length);
  try {
    await answered(queue, asked, running.signal);
  } catch (error) {
    if (error.name !== "AbortError") refuse(error);
  } finally {
    if (known.running === running) {
      known.running = null;
      byId("progress").hidden = true;
      byId("controls").removeAttribute("aria-busy");
      options();
      byId("save-csv").disabled = given().length === 0;
    }
  }
}

/** The forecasts that there are, in the order of the series. */
function given() {
  return known.series.map((one) => known.outcomes.get(one.id)).filter((one) => one !== undefined && !one.error);
}

async function answered(queue, asked, signal) {
  let done = 0;
  const part = ({ model, outcomes, took }, count) => {
    if (signal.aborted) return;
    for (const [id, outcome] of outcomes) known.outcomes.set(id, outcome);
    known.model = model ?? known.model;
    if (outcomes.has(known.chosen.id)) known.took = took;
    done += count;
    progress(done, queue.length);
    if (outcomes.has(known.chosen.id) || done === queue.length) view.show();
    if (outcomes.has(known.chosen.id)) reveal();
  };
  try {
    await forecastAll(queue, { ...asked, signal, part });
  } catch (error) {
    if (error.code !== "level_out_of_range" || asked.levels.length === 0) throw error;
    Object.assign(known, { asked: { ...asked, shares: [], levels: [] }, notes: [...known.notes, "No bands: this model was not calibrated, so it gives points only."] });
    await forecastAll(queue, { ...known.asked, signal, part });
  }
}

/** Where the columns stand one below the other, what was asked for is out of sight. */
function reveal() {
  const { top } = byId("outcome").getBoundingClientRect();
  if (top > 0.6 * innerHeight) byId("outcome").scrollIntoView({ block: "start" });
}

function refuse(error) {
  view.show();
  tell(messages, error);
  if (error.status === 401) openKey(true);
}

function progress(done, all) {
  byId("controls").setAttribute("aria-busy", "true");
  byId("progress").hidden = all === 1 || done === all;
  byId("progress-bar").value = done / all;
  put(byId("progress-says"), `${done.toLocaleString("en")} of ${all.toLocaleString("en")} series`);
}

function stop() {
  known.running?.abort();
}

/** What was changed is asked again, if something was asked before. */
function again() {
  if (known.outcomes.size > 0) forecast();
}

// --- the model and the key ------------------------------------------------------------------------------------------

async function meet() {
  const place = byId("in-use");
  try {
    const { content } = await api.ask("/v1/model");
    const first = known.told === null;
    known.told = content;
    put(place, make("b", {}, content.model.name), ` ${content.model.version} · steps of one ${stepName(content.freq)}`);
    put(byId("horizon-hint"), `This model was scored up to ${content.spec.horizon}.`);
    if (first && known.outcomes.size === 0) byId("horizon").value = content.spec.horizon;
    frequencies(known.table?.column === undefined);
    if (known.table?.column !== undefined && known.series.length === 0) arrange();
  } catch (error) {
    known.told = null;
    put(place, { 401: "a key is needed", 403: "this key is for something else", 503: "no model yet" }[error.status] ?? "");
    if (error.status === 401) openKey(false);
    if (error.status === 503) setTimeout(meet, SOON_MS);
  }
}

function openKey(focus) {
  byId("key-panel").hidden = false;
  byId("key-open").setAttribute("aria-expanded", "true");
  if (focus) byId("key").focus();
}

function closeKey() {
  byId("key-panel").hidden = true;
  byId("key-open").setAttribute("aria-expanded", "false");
}

async function changeKey(key) {
  api.keep(key);
  byId("key").value = "";
  closeKey();
  clear(messages);
  await meet();
  if (!byId("model-view").hidden) await showModel();
}

// --- the views ------------------------------------------------------------------------------------------------------

/** What a step is called: as was declared, or as the model that answered knows it. */
function unit() {
  const fits = known.chosen !== null && known.outcomes.get(known.chosen.id)?.error === undefined && known.model !== null;
  const name = byId("freq").value || (fits ? known.told?.freq : undefined);
  return name === undefined || !/^[a-z]+$/.test(stepName(name)) ? "step" : stepName(name);
}

function turn() {
  const model = location.hash === "#model";
  byId("model-view").hidden = !model;
  byId("forecast-view").hidden = model;
  byId(model ? "to-model" : "to-forecast").setAttribute("aria-current", "page");
  byId(model ? "to-forecast" : "to-model").removeAttribute("aria-current");
  document.title = `${model ? "Model" : "Forecast"} · forecaster`;
  if (model) showModel();
}

function tryExample() {
  const { told } = known;
  const made = example(told === null ? {} : { freq: told.freq, season: told.season, context: told.spec.context });
  byId("paste").value = "";
  take({ series: made.series, notes: ["The example is made up: three series with a trend, a season and some chance."] }, "example");
  forecast();
}

listen({ begin, read, options: () => ({ businessDays: /^C?B/.test(known.told?.freq ?? "") }) });
byId("example").addEventListener("click", tryExample);
byId("example-too").addEventListener("click", tryExample);
byId("controls").addEventListener("submit", (event) => { event.preventDefault(); forecast(); });
byId("freq").addEventListener("change", arrange);
byId("start").addEventListener("change", arrange);
byId("series").addEventListener("change", () => { known.chosen = known.series[byId("series").value]; view.show(); });
byId("series-search").addEventListener("input", options);
byId("horizon").addEventListener("change", again);
byId("bands").addEventListener("change", again);
byId("stop").addEventListener("click", stop);
byId("key-open").addEventListener("click", () => (byId("key-panel").hidden ? openKey(true) : closeKey()));
byId("key-form").addEventListener("submit", (event) => { event.preventDefault(); changeKey(byId("key").value.trim()); });
byId("key-forget").addEventListener("click", () => changeKey(""));
addEventListener("hashchange", turn);
frequencies(true);
turn();
meet();

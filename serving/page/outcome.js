// The right half of the first view: one series with its forecast, drawn, as a table and as programs; and what can be saved.

import { Chart, percent } from "./chart.js";
import { byId, make, put } from "./dom.js";
import { clear, tell } from "./messages.js";
import { copy, csvOf, curlOf, pngOf, pythonOf, save } from "./save.js";
import { pictureTable } from "./tables.js";

const LEAST_SHOWN = 60, HORIZONS_SHOWN = 5;
const LONG = 20_000; // characters of a program that are shown

/** Shows what `current()` says: `{ series, outcome, model, asked, season, reliable, unit, took, notes, running, all, forecasts }`, or null. */
export class Outcome {
  constructor(current) {
    this.current = current;
    this.chart = new Chart(byId("chart"));
    byId("range").addEventListener("change", () => this.show());
    for (const name of ["table", "code"]) byId(`${name}-fold`).addEventListener("toggle", () => this[name]());
    byId("save-csv").addEventListener("click", () => this.saveCsv());
    byId("save-png").addEventListener("click", () => this.savePng());
    byId("copy-curl").addEventListener("click", () => this.copy("curl", curlOf));
    byId("copy-python").addEventListener("click", () => this.copy("python", pythonOf));
  }

  show() {
    const now = this.current();
    for (const id of ["outcome", "table-fold", "code-fold"]) byId(id).hidden = now === null;
    byId("empty").hidden = now !== null;
    if (now === null) return;
    const { series, outcome, notes } = now;
    put(byId("outcome-title"), series.id);
    put(byId("outcome-says"), saying(now));
    put(byId("warnings"), (outcome?.warnings ?? []).map((one) => make("li", { class: "warning" }, one)), notes.map((one) => make("li", {}, one)));
    byId("range").hidden = series.y.length <= shown(now);
    byId("save-csv").disabled = now.running || now.forecasts().length === 0; // half of them would look like all
    put(byId("action-says"));
    this.chart.show(this.picture(now, byId("range").querySelector("input:checked").value === "all"));
    this.table();
    this.code();
    const messages = byId("messages");
    if (outcome?.error) tell(messages, { title: `No forecast of ${series.id}`, ...outcome.error });
    else clear(messages);
  }

  picture(now, all) {
    const { series, outcome, asked, reliable } = now;
    const from = all ? 0 : Math.max(0, series.y.length - shown(now));
    const past = { ds: series.ds.slice(from), y: series.y.slice(from) };
    if (outcome === undefined || outcome.error) return { title: series.id, past, next: null, reliable: null };
    const bands = asked.shares.filter((share) => ends(share).every((end) => outcome.quantiles?.[end] !== undefined)).map((share) => {
      const [lower, upper] = ends(share).map((end) => outcome.quantiles[end]);
      return { share, lower, upper };
    });
    return { title: series.id, past, next: { ds: outcome.ds, mean: outcome.mean, bands }, reliable };
  }

  table() {
    const now = this.current();
    if (byId("table-fold").open && now !== null) put(byId("table"), pictureTable(this.picture(now, true)));
  }

  code() {
    const now = this.current();
    if (!byId("code-fold").open || now === null) return;
    for (const [id, write] of [["curl", curlOf], ["python", pythonOf]]) {
      const text = write(now.series, now.asked);
      put(byId(id), text.length > LONG ? `${text.slice(0, LONG)}… (the button copies all of it)` : text);
    }
  }

  saveCsv() {
    const { forecasts, asked, all } = this.current();
    const given = forecasts();
    save(new Blob([csvOf(given, asked.levels)], { type: "text/csv" }), "forecast.csv");
    const left = all === given.length ? "" : ` It has ${given.length.toLocaleString("en")} of ${all.toLocaleString("en")} series; the others have no forecast.`;
    put(byId("action-says"), `The CSV is among your downloads.${left}`);
  }

  async savePng() {
    const { series, model, asked } = this.current();
    const bands = asked.shares.length === 0 ? "" : ` · bands of ${asked.shares.map(percent).join(", ")}`;
    const foot = model === null ? "" : `${model.name}, version ${model.version}${bands}`;
    save(await pngOf(this.chart.svg, series.id, foot), `${series.id}-forecast.png`);
    put(byId("action-says"), "The PNG is among your downloads.");
  }

  async copy(name, write) {
    const { series, asked } = this.current();
    if (await copy(write(series, asked))) {
      put(byId("action-says"), `Copied as ${name === "curl" ? "curl" : "Python"}.`);
      return;
    }
    byId("code-fold").open = true;
    this.code();
    getSelection().selectAllChildren(byId(name));
    put(byId("action-says"), "The browser keeps the clipboard closed; it is selected below.");
  }
}

/** The levels, as the server writes them, whose quantiles bound a band. */
function ends(share) {
  return [(1 - share) / 2, (1 + share) / 2].map((level) => String(Number(level.toFixed(4))));
}

function shown({ asked, season }) {
  return Math.max(LEAST_SHOWN, HORIZONS_SHOWN * asked.horizon, 3 * (season ?? 0));
}

function saying({ series, outcome, model, asked, unit, took }) {
  const many = (count, name) => `${count.toLocaleString("en")} ${name}${count === 1 ? "" : "s"}`;
  const history = `${many(series.y.length, unit)} of history`;
  if (outcome === undefined || outcome.error || model === null) return history;
  const by = `${many(asked.horizon, unit)} ahead by ${model.name}, version ${model.version}`;
  return `${history} · ${by} · ${Math.max(1, Math.round(took)).toLocaleString("en")} ms`;
}

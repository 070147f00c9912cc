// Shows why a forecast is as it is: the contribution of each value, and how faithful these contributions are.

import { fetchJson } from "./api.js";
import { formatValue, makeValueFormatter, valueTicks } from "./axes.js";
import { formatPercent } from "./chart.js";
import { byId, createElement, createSvgElement, replaceChildren } from "./dom.js";
import { toRequestSeries } from "./forecast-requests.js";
import { buildTable } from "./tables.js";
import { formatTimestamp } from "./timestamps.js";

const WIDTH = 640, HEIGHT = 220, LEFT = 64, RIGHT = 8, BOTTOM = 28, TOP = 12;
const RANKINGS = {
  integrated_gradients: "these contributions",
  input_x_gradient: "input × gradient",
  occlusion: "occlusion",
  random: "random orders",
};

/** Explains the forecast of the state that `getState()` returns (see `ForecastView`), once its fold is open. */
export class ExplanationView {
  constructor(getState) {
    this.getState = getState;
    this.explainedResult = null; // the forecast that the fold explains
    this.abortController = null; // of the running request
    byId("why-fold").addEventListener("toggle", () => this.render());
  }

  async render() {
    const state = this.getState(), result = state?.result;
    const hasForecast = result !== undefined && !result.error;
    byId("why-fold").hidden = !hasForecast;
    if (!hasForecast || !byId("why-fold").open || result === this.explainedResult) return;
    this.abortController?.abort();
    this.abortController = new AbortController();
    this.explainedResult = result;
    replaceChildren(byId("why"), createElement("p", { class: "hint", role: "status" }, "Explaining …"));
    const body = { series: toRequestSeries(state.series), horizon: state.query.horizon, faithfulness: true };
    try {
      const { content } = await fetchJson("/v1/explain", { body, signal: this.abortController.signal });
      replaceChildren(byId("why"), buildExplanationElements(content));
    } catch (error) {
      if (error.name === "AbortError") return;
      this.explainedResult = null;
      replaceChildren(byId("why"), createElement("p", { class: "empty-note" }, error.message));
    }
  }
}

/** Returns the elements that show a response of POST /v1/explain. */
export function buildExplanationElements(response) {
  const { ds, y, attribution, forecast, baseline, horizon, reference, completeness_error: missed, faithfulness } = response;
  const lines = [
    `The mean of the next ${horizon.toLocaleString("en")} steps is ${formatValue(forecast)}. If every value were nearly the `
      + `mean, ${formatValue(reference)}, it would be ${formatValue(baseline)}. The contributions of the values make up the `
      + `difference, up to ${formatShare(missed)} of it.`,
  ];
  const others = [...Object.entries(response.channels), ...Object.entries(response.covariates)]
    .map(([name, values]) => [name, values.reduce((sum, value) => sum + (value ?? 0), 0)]);
  return [
    lines.map((line) => createElement("p", {}, line)),
    createElement("figure", {},
      createElement("figcaption", {}, "Contribution of each value to the mean forecast"),
      drawContributions(ds, y, attribution)),
    others.length === 0 ? null : buildTable("Contributions of other columns", ["Column", "Sum"], others),
    faithfulness === null ? null : buildFaithfulnessTable(faithfulness),
    createElement("ul", { class: "notes" }, response.notes.map((note) => createElement("li", {}, note))),
  ];
}

/** Formats a share with two decimals of a percent; "–" if it is missing. */
function formatShare(share) {
  return typeof share === "number" ? `${(100 * share).toFixed(2)}%` : "–";
}

function buildFaithfulnessTable({ aopcr }) {
  const largest = Math.max(...Object.values(aopcr).map((area) => area ?? 0));
  const rows = Object.entries(RANKINGS).map(([name, title]) =>
    [title, aopcr[name], largest > 0 && aopcr[name] !== null ? formatPercent(aopcr[name] / largest) : null]);
  return buildTable(
    "Faithfulness (AOPCR): the mean change of the forecast when the values that a ranking puts first are replaced; larger is better",
    ["Ranking", "Change", "Of the largest"], rows);
}

/** Draws one bar per value, up from zero where it raises the forecast and down where it lowers it. */
function drawContributions(ds, y, contributions) {
  const present = contributions.map((value) => value ?? 0);
  const low = Math.min(0, ...present), high = Math.max(0, ...present);
  const { ticks, step } = valueTicks(low, high > low ? high : low + 1, 4);
  const format = makeValueFormatter(ticks, step);
  const bottom = HEIGHT - BOTTOM, slotWidth = (WIDTH - LEFT - RIGHT) / present.length;
  const toY = (value) => bottom - ((value - low) / (high > low ? high - low : 1)) * (bottom - TOP);
  const gap = Math.min(4, slotWidth * 0.2);
  const bars = present.map((value, index) => createSvgElement("rect", {
    class: value < 0 ? "bar bar-lower" : "bar", x: LEFT + index * slotWidth + gap / 2, width: Math.max(0.5, slotWidth - gap),
    y: toY(Math.max(0, value)), height: Math.abs(toY(value) - toY(0)),
  }, createSvgElement("title", {}, `${formatTimestamp(ds[index])}: ${formatValue(y[index])} contributes ${formatValue(value)}`)));
  const label = (index, anchor, x) => createSvgElement("text", { class: "tick", x, y: HEIGHT - 8, "text-anchor": anchor },
    formatTimestamp(ds[index], false));
  return createSvgElement("svg", { class: "plot bars", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img",
    "aria-label": "Bar chart of the contribution of each value to the mean forecast" },
  ticks.map((tick) => [
    createSvgElement("line", { class: "gridline", x1: LEFT, x2: WIDTH - RIGHT, y1: toY(tick), y2: toY(tick) }),
    createSvgElement("text", { class: "tick", x: LEFT - 8, y: toY(tick) + 4, "text-anchor": "end" }, format(tick)),
  ]),
  createSvgElement("line", { class: "axis-line", x1: LEFT, x2: WIDTH - RIGHT, y1: toY(0), y2: toY(0) }),
  bars, label(0, "start", LEFT), label(ds.length - 1, "end", WIDTH - RIGHT));
}

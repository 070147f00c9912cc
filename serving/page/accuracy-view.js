// Shows the accuracy of served forecasts: the error at each step ahead, as a bar chart and as a table.

import { formatValue, makeValueFormatter, valueTicks } from "./axes.js";
import { formatPercent } from "./chart.js";
import { createElement, createSvgElement } from "./dom.js";
import { buildTable } from "./tables.js";
import { formatTimestamp } from "./timestamps.js";

const WIDTH = 640, HEIGHT = 220, LEFT = 56, BOTTOM = 40, TOP = 12;

/** Returns the elements that show a response of GET /v1/accuracy. */
export function buildAccuracyElements(response) {
  const { overall, by_horizon: steps = [], forecasts, scored } = response;
  if (!scored || steps.length === 0) {
    return [createElement("p", { class: "empty-note" }, forecasts > 0
      ? `${formatValue(forecasts)} forecasts were recorded; none can be scored yet. Send actuals to POST /v1/actuals.`
      : "No forecasts have been recorded yet. They are scored once actuals are sent to POST /v1/actuals.")];
  }
  const metric = steps.every((step) => typeof step.mase === "number") ? "mase" : "mae";
  const metricTitle = metric === "mase" ? "MASE" : "Mean absolute error";
  const coverages = Object.keys(overall.coverage ?? {});
  const period = [response.since, response.until].filter(Boolean).map(formatDay).join(" to ");
  // Absent where no forecast has the recorded levels.
  const intervalScores = [["wql_recorded", "WQL of 5 levels"], ["msis_95", "MSIS 95%"]]
    .filter(([name]) => typeof overall[name] === "number");
  const toRow = (title, scores) => [title, scores.n, scores.mae, scores.bias, scores.mase,
    ...intervalScores.map(([name]) => scores[name] ?? null),
    ...coverages.map((coverage) => {
      const observed = scores.coverage?.[coverage];
      return typeof observed === "number" ? formatPercent(observed) : null;
    })];
  const header = ["Step", "Scored", "MAE", "Bias", "MASE", ...intervalScores.map(([, title]) => title),
    ...coverages.map((coverage) => `${formatPercent(Number(coverage))} coverage`)];
  const rows = [toRow("all", overall), ...steps.map((step) => toRow(String(step.step), step))];
  return [
    createElement("p", {}, `${formatValue(scored)} of ${formatValue(forecasts)} forecasts were compared with actuals`,
      `${period === "" ? "" : `, ${period}`}.`),
    createElement("figure", {},
      createElement("figcaption", {}, `${metricTitle} by step ahead; lower is better`),
      drawBars(steps.map((step) => [step.step, step[metric]]))),
    createElement("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Accuracy by step ahead as a table" },
      buildTable("Accuracy by step ahead", header, rows)),
  ];
}

/** Formats the date of an ISO 8601 timestamp; any other text is returned unchanged. */
function formatDay(timestamp) {
  const day = String(timestamp).slice(0, 10);
  return day.split("-").length === 3 ? formatTimestamp(day, false) : String(timestamp);
}

/** Draws a bar chart of `[step, error]` pairs; an error may be null. */
function drawBars(stepErrors) {
  const maxError = Math.max(...stepErrors.map(([, error]) => error ?? 0)) || 1;
  const { step: tickStep } = valueTicks(0, maxError, 4);
  const top = Math.ceil(maxError / tickStep - 1e-9) * tickStep;
  const { ticks } = valueTicks(0, top, top / tickStep);
  const format = makeValueFormatter(ticks, tickStep);
  const slotWidth = (WIDTH - LEFT - 8) / stepErrors.length;
  const y = (value) => HEIGHT - BOTTOM - (value / top) * (HEIGHT - BOTTOM - TOP);
  const labelInterval = Math.ceil(28 / slotWidth);
  return createSvgElement("svg", { class: "plot bars", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img",
    "aria-label": "Bar chart of the error by step ahead; the table below lists the numbers" },
    ticks.map((tick) => [
      createSvgElement("line", { class: "gridline", x1: LEFT, x2: WIDTH - 8, y1: y(tick), y2: y(tick) }),
      createSvgElement("text", { class: "tick", x: LEFT - 8, y: y(tick) + 4, "text-anchor": "end" }, format(tick)),
    ]).flat(),
    stepErrors.map(([step, error], index) => {
      const x = LEFT + index * slotWidth, gap = Math.min(6, slotWidth * 0.2);
      const bar = { x: x + gap / 2, width: Math.max(0.5, slotWidth - gap), y: y(error), height: y(0) - y(error), rx: 2 };
      const label = { x: x + slotWidth / 2, y: HEIGHT - BOTTOM + 17, "text-anchor": "middle" };
      return [
        error === null || error === undefined ? null : createSvgElement("rect", { class: "bar", ...bar },
          createSvgElement("title", {}, `step ${step}: ${formatValue(error)}`)),
        index % labelInterval === 0 ? createSvgElement("text", { class: "tick", ...label }, String(step)) : null,
      ];
    }).flat(),
    createSvgElement("text", { class: "tick sublabel", x: WIDTH - 8, y: HEIGHT - 4, "text-anchor": "end" }, "steps ahead"),
  );
}

// Builds tables: of a history with its forecast, and general ones with a header and rows.

import { formatValue } from "./axes.js";
import { formatPercent } from "./chart.js";
import { createElement } from "./dom.js";

const MAX_HISTORY_ROWS = 500;

/** Returns a table. Numbers are formatted to five significant digits; the first cell of each row is its header. */
export function buildTable(caption, header, rows) {
  const buildCell = (value, column) => {
    const isMissing = value === null || value === undefined;
    const text = typeof value === "number" ? formatValue(value) : value ?? "–";
    if (column === 0) return createElement("th", { scope: "row" }, String(text));
    const isNumeric = typeof value === "number" || isMissing || /^[\d.]+%$/.test(value);
    return createElement("td", { class: isNumeric ? "number" : null }, text);
  };
  return createElement("table", {},
    createElement("caption", {}, caption),
    createElement("thead", {}, createElement("tr", {}, header.map((name) => createElement("th", { scope: "col" }, name)))),
    createElement("tbody", {}, rows.map((row) => createElement("tr", {}, row.map(buildCell)))),
  );
}

/** Returns the data of a chart (see `ForecastChart.setData`) as a table: the forecast, then the history, latest first. */
export function buildForecastTable({ title, history, forecast }) {
  const bands = forecast?.bands ?? [];
  const intervalHeaders = bands.map(({ coverage }) => formatPercent(coverage))
    .flatMap((percent) => [`${percent} lower`, `${percent} upper`]);
  const forecastRows = forecast === null ? [] : forecast.ds.map((timestamp, step) => [
    String(timestamp), "forecast", forecast.mean[step], ...bands.flatMap(({ lower, upper }) => [lower[step], upper[step]]),
  ]);
  const start = Math.max(0, history.ds.length - MAX_HISTORY_ROWS);
  const values = history.y.slice(start);
  const historyRows = history.ds.slice(start).map((timestamp, index) => [
    String(timestamp), values[index] === null ? "missing" : "observed", values[index], ...bands.flatMap(() => ["", ""]),
  ]);
  const limit = start > 0 ? `, last ${MAX_HISTORY_ROWS} values` : "";
  return buildTable(`${title}: forecast, then history (latest first${limit})`,
    ["Timestamp", "Type", "Value", ...intervalHeaders], [...forecastRows, ...historyRows.reverse()]);
}

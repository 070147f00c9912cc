// Tables: of a history with its forecast, and any other with a head and rows.

import { told } from "./axes.js";
import { percent } from "./chart.js";
import { make } from "./dom.js";

const MOST = 500; // rows of history

/** A table; numbers are told to five digits, the first cell of a row heads it. */
export function tableOf(caption, head, rows) {
  const cell = (value, place) => {
    const text = typeof value === "number" ? told(value) : value ?? "–";
    const number = typeof value === "number" || value === null || value === undefined || /^[\d.]+ %$/.test(value);
    return place === 0 ? make("th", { scope: "row" }, String(text)) : make("td", { class: number ? "number" : null }, text);
  };
  return make("table", {},
    make("caption", {}, caption),
    make("thead", {}, make("tr", {}, head.map((name) => make("th", { scope: "col" }, name)))),
    make("tbody", {}, rows.map((row) => make("tr", {}, row.map(cell)))),
  );
}

/** What a picture of chart.js shows, the forecast first. */
export function pictureTable({ title, past, next }) {
  const bands = next?.bands ?? [];
  const head = ["Stamp", "Kind", "Value", ...bands.flatMap(({ share }) => [`${percent(share)} from`, "to"])];
  const ahead = next === null ? [] : next.ds.map((stamp, step) => [String(stamp), "forecast", next.mean[step], ...bands.flatMap(({ lower, upper }) => [lower[step], upper[step]])]);
  const from = Math.max(0, past.ds.length - MOST);
  const history = past.ds.slice(from).map((stamp, place) => [String(stamp), past.y[from + place] === null ? "not observed" : "observed", past.y[from + place], ...bands.flatMap(() => ["", ""])]);
  const cut = from > 0 ? `, the last ${MOST} values of its history` : "";
  return tableOf(`${title}: forecast, then history backwards${cut}`, head, [...ahead, ...history.reverse()]);
}

// What can be taken away: the forecasts as CSV, the drawing as PNG, the request as curl and Python.

import { key } from "./api.js";
import { draw } from "./dom.js";
import { asked } from "./send.js";

const STYLES = ["fill", "fill-opacity", "stroke", "stroke-width", "stroke-dasharray", "stroke-linecap", "stroke-linejoin", "stroke-opacity",
  "font-family", "font-size", "font-weight", "text-anchor", "visibility"];
const HEAD = 56, FOOT = 34; // pixels for the title, and for what made it
const SHARPNESS = 2;

/** Forecasts as CSV, a row a step, in the columns that `forecaster forecast` writes. */
export function csvOf(forecasts, levels) {
  const rows = [["unique_id", "ds", "mean", ...levels.map(String)]];
  for (const { id, ds, mean, quantiles } of forecasts) {
    ds.forEach((stamp, step) => rows.push([id, stamp, mean[step], ...levels.map((level) => quantiles[level]?.[step] ?? "")]));
  }
  return rows.map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
}

function cell(value) {
  const text = String(value);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

/** The same drawing as a PNG, with its title and its colours. */
export async function pngOf(svg, title, foot) {
  const { width, height } = svg.viewBox.baseVal;
  const copy = svg.cloneNode(true);
  const [those, these] = [svg.querySelectorAll("*"), copy.querySelectorAll("*")];
  those.forEach((element, place) => keepStyles(element, these[place]));
  copy.querySelector(".cross")?.remove();
  const page = getComputedStyle(document.body), card = getComputedStyle(svg.closest(".card") ?? document.body);
  const words = (text, y, size, weight) => draw("text", { x: 18, y, fill: page.color, "font-size": size, "font-weight": weight, "font-family": page.fontFamily }, text);
  const inner = draw("g", { transform: `translate(0 ${HEAD})` }, ...copy.childNodes);
  const whole = draw("svg", { width, height: height + HEAD + FOOT, viewBox: `0 0 ${width} ${height + HEAD + FOOT}` },
    words(title, 36, 20, 650), inner, words(foot, height + HEAD + 14, 12, 400));
  const source = new Blob([new XMLSerializer().serializeToString(whole)], { type: "image/svg+xml" });
  const address = URL.createObjectURL(source);
  try {
    const image = new Image();
    image.src = address;
    await image.decode();
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [width * SHARPNESS, (height + HEAD + FOOT) * SHARPNESS];
    const pen = canvas.getContext("2d");
    pen.fillStyle = card.backgroundColor;
    pen.fillRect(0, 0, canvas.width, canvas.height);
    pen.drawImage(image, 0, 0, canvas.width, canvas.height);
    return await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  } finally {
    URL.revokeObjectURL(address);
  }
}

/** The classes mean nothing outside the page, and no style may be written into it: attributes hold what they said. */
function keepStyles(from, to) {
  const styles = getComputedStyle(from);
  for (const name of STYLES) to.setAttribute(name, styles.getPropertyValue(name));
  to.removeAttribute("class");
}

/** Hands a file to the browser's downloads. */
export function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name.replace(/[^\w.-]+/g, "-").replace(/^-+|-+$/g, "").slice(0, 80);
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/** The request as a command; the key stays in a variable. */
export function curlOf(series, { horizon, levels }) {
  const lines = [`curl -sS ${location.origin}/v1/forecast`, "-H 'Content-Type: application/json'"];
  if (key() !== "") lines.push('-H "Authorization: Bearer $FORECASTER_KEY"');
  const body = JSON.stringify({ series: [asked(series)], horizon, levels });
  return `${[...lines, "--data-binary @- <<'JSON'"].join(" \\\n  ")}\n${body}\nJSON\n`;
}

/** The request as a program. */
export function pythonOf(series, { horizon, levels }) {
  const withKey = key() !== "";
  const freq = series.freq === undefined ? "" : `, freq=${JSON.stringify(series.freq.name)}`;
  const stamps = typeof series.ds[0] === "number" ? JSON.stringify(series.ds) : `pd.to_datetime(${JSON.stringify(series.ds)})`;
  return [
    ...(withKey ? ["import os", ""] : []),
    "import pandas as pd",
    "from forecaster.client import Client",
    "",
    "frame = pd.DataFrame({",
    `    "unique_id": ${JSON.stringify(series.id)},`,
    `    "ds": ${stamps},`,
    `    "y": ${JSON.stringify(series.y).replaceAll("null", "None")},`,
    "})",
    `client = Client(${JSON.stringify(location.origin)}${withKey ? ', key=os.environ["FORECASTER_KEY"]' : ""})`,
    `print(client.forecast(frame, horizon=${horizon}${levels.length > 0 ? `, levels=${JSON.stringify(levels).replaceAll(",", ", ")}` : ""}${freq}))`,
    "",
  ].join("\n");
}

/** Puts a text into the clipboard; false where the browser does not let us. */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return false; // not over plain HTTP from another machine
  }
}

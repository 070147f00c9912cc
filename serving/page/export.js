// Exports forecasts as CSV, the chart as PNG, and the request as curl and Python code.

import { getApiKey, serviceUrl } from "./api.js";
import { createSvgElement } from "./dom.js";
import { toRequestSeries } from "./forecast-requests.js";

const COPIED_STYLES = ["fill", "fill-opacity", "stroke", "stroke-width", "stroke-dasharray", "stroke-linecap", "stroke-linejoin",
  "stroke-opacity", "font-family", "font-size", "font-weight", "text-anchor", "visibility"];
const HEADER_HEIGHT = 56, FOOTER_HEIGHT = 34; // pixels of the title, and of the line that names the model
const PIXEL_RATIO = 2;

/** Returns forecasts as CSV, one row per step, with the columns that `forecaster forecast` writes. */
export function forecastsToCsv(forecasts, levels) {
  const rows = [["unique_id", "ds", "mean", ...levels.map(String)]];
  for (const { id, ds, mean, quantiles } of forecasts) {
    ds.forEach((timestamp, step) =>
      rows.push([id, timestamp, mean[step], ...levels.map((level) => quantiles[level]?.[step] ?? "")]));
  }
  return rows.map((row) => row.map(escapeCell).join(",")).join("\r\n") + "\r\n";
}

/** Escapes a cell. A text that a spreadsheet would compute as a formula gets an apostrophe; numbers stay numbers. */
function escapeCell(value) {
  const isFormula = typeof value === "string" && /^[=+\-@\t\r]/.test(value) && !Number.isFinite(Number(value));
  const text = `${isFormula ? "'" : ""}${value}`;
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

/** Returns the chart as a PNG blob in the colors of the page, with a title and a footer. */
export async function chartToPng(svg, title, footer) {
  const { width, height: chartHeight } = svg.viewBox.baseVal;
  const height = chartHeight + HEADER_HEIGHT + FOOTER_HEIGHT;
  const copy = svg.cloneNode(true);
  const copiedElements = copy.querySelectorAll("*");
  svg.querySelectorAll("*").forEach((element, index) => inlineStyles(element, copiedElements[index]));
  copy.querySelector(".cursor")?.remove();
  const pageStyle = getComputedStyle(document.body), cardStyle = getComputedStyle(svg.closest(".card") ?? document.body);
  const createText = (text, y, size, weight) => createSvgElement("text", { x: 18, y, fill: pageStyle.color,
    "font-size": size, "font-weight": weight, "font-family": pageStyle.fontFamily }, text);
  const image = createSvgElement("svg", { width, height, viewBox: `0 0 ${width} ${height}` },
    createText(title, 36, 20, 650),
    createSvgElement("g", { transform: `translate(0 ${HEADER_HEIGHT})` }, ...copy.childNodes),
    createText(footer, chartHeight + HEADER_HEIGHT + 14, 12, 400));
  return rasterize(image, width, height, cardStyle.backgroundColor);
}

async function rasterize(svg, width, height, background) {
  const source = new Blob([new XMLSerializer().serializeToString(svg)], { type: "image/svg+xml" });
  const url = URL.createObjectURL(source);
  try {
    const image = new Image();
    image.src = url;
    await image.decode();
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [width * PIXEL_RATIO, height * PIXEL_RATIO];
    const context = canvas.getContext("2d");
    context.fillStyle = background;
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.drawImage(image, 0, 0, canvas.width, canvas.height);
    return await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  } finally {
    URL.revokeObjectURL(url);
  }
}

/**
 * Copies computed styles into attributes. Outside the page its style sheets do not apply, and the content security
 * policy forbids inline styles.
 */
function inlineStyles(source, target) {
  const styles = getComputedStyle(source);
  for (const name of COPIED_STYLES) target.setAttribute(name, styles.getPropertyValue(name));
  target.removeAttribute("class");
}

/** Starts the download of a file. */
export function download(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name.replace(/[^\w.-]+/g, "-").replace(/^-+|-+$/g, "").slice(0, 80);
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/** Returns the request as a curl command; the API key is read from an environment variable. */
export function buildCurl(series, { horizon, levels }) {
  const lines = [`curl -sS ${serviceUrl("/v1/forecast")}`, "-H 'Content-Type: application/json'"];
  if (getApiKey() !== "") lines.push('-H "Authorization: Bearer $FORECASTER_KEY"');
  const body = JSON.stringify({ series: [toRequestSeries(series)], horizon, levels });
  return `${[...lines, "--data-binary @- <<'JSON'"].join(" \\\n  ")}\n${body}\nJSON\n`;
}

/** Returns the request as a Python program; the API key is read from an environment variable. */
export function buildPython(series, { horizon, levels }) {
  const hasKey = getApiKey() !== "";
  const key = hasKey ? ', key=os.environ["FORECASTER_KEY"]' : "";
  const ds = JSON.stringify(series.ds);
  const timestamps = typeof series.ds[0] === "number" ? ds : `pd.to_datetime(${ds})`;
  const levelsArgument = levels.length > 0 ? `, levels=${JSON.stringify(levels).replaceAll(",", ", ")}` : "";
  const freqArgument = (series.freq === undefined ? "" : `, freq=${JSON.stringify(series.freq.alias)}`)
    + (series.season === undefined ? "" : `, season=${series.season}`);
  return [
    ...(hasKey ? ["import os", ""] : []),
    "import pandas as pd",
    "from forecaster.client import Client",
    "",
    "frame = pd.DataFrame({",
    `    "unique_id": ${JSON.stringify(series.id)},`,
    `    "ds": ${timestamps},`,
    `    "y": ${JSON.stringify(series.y).replaceAll("null", "None")},`,
    "})",
    `client = Client(${JSON.stringify(serviceUrl())}${key})`,
    `print(client.forecast(frame, horizon=${horizon}${levelsArgument}${freqArgument}))`,
    "",
  ].join("\n");
}

/** Copies a text to the clipboard; returns false where the browser does not allow it. */
export async function copyToClipboard(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return false; // for example over plain HTTP from another machine
  }
}

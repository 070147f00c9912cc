// Draws history, forecast and prediction intervals as SVG. Values are read with the pointer or the arrow keys.

import { formatValue, makeValueFormatter, timestampTicks, valueTicks } from "./axes.js";
import { createElement, createSvgElement, replaceChildren } from "./dom.js";
import { areaPath, linePath } from "./svg-paths.js";
import { formatTimestamp } from "./timestamps.js";

const MARGIN = { top: 26, right: 18, bottom: 44 };
const DIGIT_WIDTH = 7.2; // pixels of a digit on the axis
const TIME_OF_DAY = /[T ](?!00:00(:00)?($|[Z+-]))/; // a time other than midnight

/** A chart in `container`; `setData` replaces what it shows. */
export class ForecastChart {
  constructor(container) {
    this.svg = createSvgElement("svg", { class: "plot", "aria-hidden": "true", focusable: "false" });
    this.tooltip = createElement("div", { class: "tooltip", "aria-hidden": "true", hidden: true });
    this.liveRegion = createElement("p", { class: "visually-hidden", id: "chart-live", "aria-live": "polite" });
    this.box = createElement("div", { class: "chart", id: "chart-box", tabindex: "0", role: "application",
      "aria-roledescription": "chart", "aria-describedby": "chart-help" }, this.svg, this.tooltip);
    this.legend = createElement("ul", { class: "legend" });
    replaceChildren(container, this.box, this.liveRegion, this.legend,
      createElement("p", { class: "visually-hidden", id: "chart-help" },
        "Arrow keys move by one value, page keys by ten, Home and End to the ends. Escape clears the selection."));
    this.data = null;
    this.selectedIndex = null;
    this.box.addEventListener("pointermove", (event) => this.onPointer(event));
    this.box.addEventListener("pointerdown", (event) => this.onPointer(event));
    this.box.addEventListener("pointerleave", () => this.select(null));
    this.box.addEventListener("blur", () => this.select(null));
    this.box.addEventListener("keydown", (event) => this.onKey(event));
    new ResizeObserver(() => {
      if (this.data !== null && this.box.clientWidth !== this.width) this.render();
    }).observe(this.box);
  }

  /**
   * Shows `{ title, history: { ds, y }, forecast: { ds, mean, bands: [{ coverage, lower, upper }] } | null, reliableHorizon }`.
   * `history` is the part of the history to draw; `reliableHorizon` the model's last reliable step, or null if unknown.
   */
  setData(data) {
    this.data = data;
    this.timestamps = [...data.history.ds, ...(data.forecast?.ds ?? [])];
    this.historyLength = data.history.ds.length; // also the index of the first step ahead
    this.showTime = this.timestamps.some((timestamp) => typeof timestamp === "string" && TIME_OF_DAY.test(timestamp));
    this.selectedIndex = null;
    const forecastLabel = data.forecast === null ? "" : `, then ${data.forecast.ds.length} steps of forecast`;
    this.box.setAttribute("aria-label", `${data.title}: ${this.historyLength} values of history${forecastLabel}`);
    this.render();
  }

  render() {
    const { history, forecast } = this.data;
    this.width = Math.max(260, this.box.clientWidth);
    this.height = this.width < 560 ? 280 : 380;
    const [min, max] = valueRange(history, forecast);
    const { ticks, step } = valueTicks(min, max, this.height < 300 ? 4 : 6);
    const format = makeValueFormatter(ticks, step);
    const left = 14 + DIGIT_WIDTH * Math.max(...ticks.map((tick) => format(tick).length));
    const right = this.width - MARGIN.right, bottom = this.height - MARGIN.bottom;
    const lastIndex = Math.max(1, this.timestamps.length - 1);
    this.x = (index) => left + (index / lastIndex) * (right - left);
    this.y = (value) => bottom - ((value - min) / (max - min)) * (bottom - MARGIN.top);
    this.plotBounds = { left, right, bottom };
    this.cursor = createSvgElement("g", { class: "cursor", visibility: "hidden" });
    this.svg.setAttribute("viewBox", `0 0 ${this.width} ${this.height}`);
    replaceChildren(this.svg,
      createSvgElement("g", { class: "grid" }, ticks.map((tick) => [
        createSvgElement("line", { class: "gridline", x1: left, x2: right, y1: this.y(tick), y2: this.y(tick) }),
        createSvgElement("text", { class: "tick", x: left - 8, y: this.y(tick) + 4, "text-anchor": "end" }, format(tick)),
      ]).flat()),
      this.drawTimeAxis(),
      forecast === null ? null : this.drawForecast(this.data),
      createSvgElement("path", { class: "history", d: linePath(history.y, this.x, this.y) }),
      this.cursor,
    );
    this.renderLegend(this.data);
    this.select(this.selectedIndex);
  }

  drawTimeAxis() {
    const { left, right, bottom } = this.plotBounds;
    let previousEnd = -Infinity; // right end of the previous label, with a gap
    const ticks = timestampTicks(this.timestamps, right - left).map(({ index, label, sublabel }) => {
      const x = this.x(index), halfWidth = (DIGIT_WIDTH * Math.max(label.length, sublabel.length)) / 2;
      const anchor = x + halfWidth > this.width ? "end" : x - halfWidth < 0 ? "start" : "middle";
      if (x - halfWidth < previousEnd) return null;
      previousEnd = x + halfWidth + 4;
      return [
        createSvgElement("line", { class: "axis-line", x1: x, x2: x, y1: bottom, y2: bottom + 5 }),
        createSvgElement("text", { class: "tick", x, y: bottom + 19, "text-anchor": anchor }, label),
        sublabel === "" ? null
          : createSvgElement("text", { class: "tick sublabel", x, y: bottom + 35, "text-anchor": anchor }, sublabel),
      ];
    });
    const axis = createSvgElement("line", { class: "axis-line", x1: left, x2: right, y1: bottom, y2: bottom });
    return createSvgElement("g", {}, axis, ticks.flat());
  }

  /** Draws the forecast and its intervals; both start at the last value of the history, if it was observed. */
  drawForecast({ history, forecast, reliableHorizon }) {
    const { right, bottom } = this.plotBounds;
    const cutoff = this.x(Math.max(0, this.historyLength - 1));
    const lastValue = history.y.at(-1) ?? null;
    const joined = (values) => (lastValue === null ? values : [lastValue, ...values]);
    const x = (index) => this.x(this.historyLength + index - (lastValue === null ? 0 : 1));
    const widestFirst = [...forecast.bands].sort((left, right) => right.coverage - left.coverage);
    const hasRoomForLabel = right - cutoff > 70;
    const reliableX = endsWithin(reliableHorizon, forecast) ? this.x(this.historyLength + reliableHorizon - 1) : null;
    return createSvgElement("g", {},
      createSvgElement("rect", { class: "forecast-area", x: cutoff, y: MARGIN.top,
        width: Math.max(0, right - cutoff), height: bottom - MARGIN.top }),
      widestFirst.map((band) => createSvgElement("path", { class: `band band-${bandRank(band, forecast.bands)}`,
        d: areaPath(joined(band.lower), joined(band.upper), x, this.y) })),
      createSvgElement("line", { class: "cutoff", x1: cutoff, x2: cutoff,
        y1: MARGIN.top - (hasRoomForLabel ? 12 : 0), y2: bottom }),
      reliableX === null ? null
        : createSvgElement("line", { class: "reliable", x1: reliableX, x2: reliableX, y1: MARGIN.top, y2: bottom }),
      createSvgElement("text", { class: "forecast-label", x: hasRoomForLabel ? cutoff + 8 : right, y: MARGIN.top - 8,
        "text-anchor": hasRoomForLabel ? "start" : "end" }, "forecast"),
      createSvgElement("path", { class: "forecast", d: linePath(joined(forecast.mean), x, this.y) }),
    );
  }

  renderLegend({ forecast, reliableHorizon }) {
    const entry = (swatch, text) => createElement("li", {}, createElement("span", { class: `swatch ${swatch}` }), text);
    const entries = [entry("swatch-history", "history")];
    if (forecast !== null) {
      entries.push(entry("swatch-forecast", "forecast"));
      for (const band of forecast.bands) {
        const rank = bandRank(band, forecast.bands);
        entries.push(entry(`swatch-band band-${rank}`, `${formatPercent(band.coverage)} interval`));
      }
      if (endsWithin(reliableHorizon, forecast)) {
        const text = `reliable horizon: step ${reliableHorizon} (at least as accurate as seasonal naive)`;
        entries.push(entry("swatch-reliable", text));
      }
    }
    replaceChildren(this.legend, entries);
  }

  onPointer(event) {
    if (this.data === null) return;
    const { left, right } = this.plotBounds;
    const box = this.svg.getBoundingClientRect();
    const fraction = (((event.clientX - box.left) / box.width) * this.width - left) / (right - left);
    this.select(Math.round(Math.min(1, Math.max(0, fraction)) * (this.timestamps.length - 1)));
  }

  onKey(event) {
    if (this.data === null || event.altKey || event.ctrlKey || event.metaKey) return;
    const last = this.timestamps.length - 1;
    const current = this.selectedIndex ?? Math.min(last, this.historyLength) - (event.key === "ArrowRight" ? 1 : 0);
    const target = { ArrowLeft: current - 1, ArrowRight: current + 1, PageUp: current - 10, PageDown: current + 10,
      Home: 0, End: last, Escape: null }[event.key];
    if (target === undefined) return;
    event.preventDefault();
    this.select(target === null ? null : Math.min(last, Math.max(0, target)));
    this.liveRegion.textContent = target === null ? ""
      : this.describe(this.selectedIndex).map(([name, value]) => (value === null ? name : `${name} ${value}`)).join(", ");
  }

  /** Returns what the chart shows at an index as pairs of name and value (or null); the first pair is the timestamp. */
  describe(index) {
    const { history, forecast } = this.data;
    const timestamp = [formatTimestamp(this.timestamps[index], this.showTime), null];
    if (index < this.historyLength) {
      return [timestamp, history.y[index] === null ? ["missing", null] : ["observed", formatValue(history.y[index])]];
    }
    const step = index - this.historyLength;
    const intervals = forecast.bands.map(({ coverage, lower, upper }) =>
      [formatPercent(coverage), `${formatValue(lower[step])} to ${formatValue(upper[step])}`]);
    return [timestamp, ["forecast", formatValue(forecast.mean[step])], ...intervals, ["step", String(step + 1)]];
  }

  /** Moves the cursor and the tooltip to an index; null hides them. */
  select(index) {
    this.selectedIndex = index;
    this.cursor.setAttribute("visibility", index === null ? "hidden" : "visible");
    this.tooltip.hidden = index === null;
    if (index === null) return;
    const { history, forecast } = this.data;
    const isHistory = index < this.historyLength;
    const x = this.x(index), value = isHistory ? history.y[index] : forecast.mean[index - this.historyLength];
    replaceChildren(this.cursor,
      createSvgElement("line", { x1: x, x2: x, y1: MARGIN.top, y2: this.plotBounds.bottom }),
      value === null ? null
        : createSvgElement("circle", { cx: x, cy: this.y(value), r: 4.5, class: isHistory ? "dot-history" : "dot-forecast" }));
    const [[timestamp], ...rows] = this.describe(index);
    replaceChildren(this.tooltip, createElement("strong", {}, timestamp), rows.map(([name, text]) =>
      createElement("span", {}, createElement("span", {}, name), text === null ? null : createElement("b", {}, text))));
    this.placeTooltip(x, value);
  }

  /** Places the tooltip beside the cursor, at the top or the bottom of the plot so that it does not cover the value. */
  placeTooltip(x, value) {
    const { bottom } = this.plotBounds;
    const scale = this.box.clientWidth / this.width, pointX = x * scale, tooltipWidth = this.tooltip.offsetWidth;
    const fitsRight = pointX + 14 + tooltipWidth <= this.box.clientWidth;
    const offsetX = fitsRight ? pointX + 14 : pointX - 14 - tooltipWidth;
    const atTop = value === null || this.y(value) > (MARGIN.top + bottom) / 2;
    const offsetY = atTop ? MARGIN.top * scale : bottom * scale - this.tooltip.offsetHeight - 8;
    this.tooltip.style.transform = `translate(${Math.max(0, offsetX)}px, ${offsetY}px)`;
  }
}

/** Formats a fraction as a percentage with at most one decimal: "97.5%". */
export const formatPercent = (fraction) => `${Number((fraction * 100).toFixed(1))}%`;

/** Whether the reliable horizon ends before the forecast does. */
function endsWithin(reliableHorizon, forecast) {
  return reliableHorizon !== null && reliableHorizon > 0 && reliableHorizon < forecast.mean.length;
}

/** Returns the rank of a band by its coverage: 0 for the narrowest. */
function bandRank(band, bands) {
  return bands.filter((other) => other.coverage < band.coverage).length;
}

/** Returns the smallest and largest value shown, with a margin; the range starts at zero if zero is near. */
function valueRange(history, forecast) {
  let min = Infinity, max = -Infinity;
  const bounds = (forecast?.bands ?? []).flatMap((band) => [band.lower, band.upper]);
  for (const values of [history.y, forecast?.mean ?? [], ...bounds]) {
    for (const value of values) {
      if (value === null) continue;
      min = Math.min(min, value);
      max = Math.max(max, value);
    }
  }
  if (min > max) return [0, 1];
  const size = Math.max(Math.abs(min), Math.abs(max));
  if (max - min <= 1e-12 * size) return min === 0 ? [-1, 1] : [min - Math.abs(min) * 0.1, max + Math.abs(max) * 0.1];
  const margin = (max - min) * 0.06;
  return [min >= 0 && min < 0.3 * max ? 0 : min - margin, max + margin];
}

// Computes the ticks of the chart axes and their labels.

import { formatTime, monthName, toWallTime } from "./timestamps.js";

const LABEL_WIDTHS = { time: 56, day: 62, month: 46, year: 46, number: 66 }; // pixels needed by a label of each unit
const MINUTE = 60_000, HOUR = 60 * MINUTE, DAY = 24 * HOUR;
const FIRST_MONDAY = 4 * DAY; // the first Monday after 1970-01-01

const monthIndex = (wallTime) => new Date(wallTime).getUTCFullYear() * 12 + new Date(wallTime).getUTCMonth();
const halfMonthIndex = (wallTime) => 2 * monthIndex(wallTime) + (new Date(wallTime).getUTCDate() > 15 ? 1 : 0);

// Intervals from fine to coarse. `intervalOf` returns the number of the interval that contains a time; a tick stands
// at each timestamp whose interval differs from that of the timestamp before.
const CALENDAR_INTERVALS = [
  ...[MINUTE, 5 * MINUTE, 15 * MINUTE, 30 * MINUTE, HOUR, 3 * HOUR, 6 * HOUR, 12 * HOUR]
    .map((length) => ({ intervalOf: (wallTime) => Math.floor(wallTime / length), unit: "time" })),
  { intervalOf: (wallTime) => Math.floor(wallTime / DAY), unit: "day" },
  { intervalOf: (wallTime) => Math.floor((wallTime - FIRST_MONDAY) / (7 * DAY)), unit: "day" },
  { intervalOf: halfMonthIndex, unit: "day" },
  ...[1, 3, 6].map((length) => ({ intervalOf: (wallTime) => Math.floor(monthIndex(wallTime) / length), unit: "month" })),
  ...[1, 2, 5, 10, 20, 50, 100]
    .map((length) => ({ intervalOf: (wallTime) => Math.floor(monthIndex(wallTime) / 12 / length), unit: "year" })),
];

/** Returns about `targetCount` round values from `min` to `max`, and the step between them: `{ ticks, step }`. */
export function valueTicks(min, max, targetCount) {
  const roughStep = (max - min) / targetCount;
  const power = 10 ** Math.floor(Math.log10(roughStep));
  const step = power * ([1, 2, 2.5, 5].find((factor) => factor * power >= roughStep) ?? 10);
  const ticks = [];
  for (let count = Math.ceil(min / step - 1e-9); count * step <= max + step * 1e-9; count += 1) ticks.push(count * step);
  return { ticks, step };
}

/** Returns the function that formats the values of an axis, with the digits that its step needs. */
export function makeValueFormatter(ticks, step) {
  const largest = Math.max(...ticks.map(Math.abs));
  if (largest >= 1e15 || (largest > 0 && largest < 1e-5)) return (value) => value.toExponential(1);
  const leadingDigits = step.toPrecision(3).replace(/^0\.0*/, "").replace(/^25/, "2.5");
  const extraDigit = /^2.5/.test(leadingDigits) ? 1 : 0; // a step of 2.5 has one decimal more than a step of 2
  const digits = Math.min(8, Math.max(0, -Math.floor(Math.log10(step) + 1e-9) + extraDigit));
  const notation = largest >= 1e6
    ? { notation: "compact", maximumFractionDigits: 2 }
    : { maximumFractionDigits: digits };
  const format = new Intl.NumberFormat("en", notation);
  return (value) => format.format(value === 0 ? 0 : value);
}

const fiveDigits = new Intl.NumberFormat("en", { maximumSignificantDigits: 5 });

/** Formats a value to five significant digits; "–" for a missing value. */
export function formatValue(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  return size !== 0 && (size >= 1e15 || size < 1e-6) ? value.toExponential(3) : fiveDigits.format(value);
}

/**
 * Returns the ticks of a time axis that is `pixels` long: `{ index, label, sublabel }`. `sublabel` is the coarser
 * part of the timestamp, given only where it changes.
 */
export function timestampTicks(timestamps, pixels) {
  const isNumbered = typeof timestamps[0] === "number";
  if (timestamps.length === 1) return labelTicks([0], timestamps, isNumbered ? "number" : "day");
  const wallTimes = timestamps.map(toWallTime);
  const intervals = isNumbered ? numberIntervals(wallTimes, pixels / LABEL_WIDTHS.number) : CALENDAR_INTERVALS;
  const before = 2 * wallTimes[0] - wallTimes[1];
  for (const { intervalOf, unit } of intervals) {
    const indices = [], maxTicks = Math.max(1, Math.floor(pixels / LABEL_WIDTHS[unit]));
    let previous = intervalOf(before);
    for (let index = 0; index < wallTimes.length && indices.length <= maxTicks; index += 1) {
      const interval = intervalOf(wallTimes[index]);
      if (interval !== previous) indices.push(index);
      previous = interval;
    }
    if (indices.length <= maxTicks) return labelTicks(indices.length > 0 ? indices : [0], timestamps, unit);
  }
  return labelTicks([0], timestamps, "year");
}

function numberIntervals(wallTimes, maxTicks) {
  const roughStep = Math.max(1, (wallTimes.at(-1) - wallTimes[0]) / maxTicks);
  const power = 10 ** Math.floor(Math.log10(roughStep));
  return [1, 2, 5, 10, 20, 50].map((factor) => ({
    intervalOf: (wallTime) => Math.floor(wallTime / (factor * power)), unit: "number",
  }));
}

function labelTicks(indices, timestamps, unit) {
  let previous = null;
  return indices.map((index) => {
    if (unit === "number") return { index, label: timestamps[index].toLocaleString("en"), sublabel: "" };
    const date = new Date(toWallTime(timestamps[index]));
    const [year, month, day] = [String(date.getUTCFullYear()), monthName(date), date.getUTCDate()];
    const label = { time: formatTime(date), day: `${day} ${month}`, month, year }[unit];
    const coarser = { time: `${day} ${month} ${year}`, day: year, month: year, year: "" }[unit];
    const sublabel = coarser === previous ? "" : coarser;
    previous = coarser;
    return { index, label, sublabel };
  });
}

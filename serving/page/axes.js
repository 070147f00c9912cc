// Where the ticks of an axis go, and what stands at them.

import { clock, faceOf, monthName } from "./stamps.js";

const WIDTHS = { clock: 56, day: 62, month: 46, year: 46, number: 66 }; // pixels that a label of a unit needs
const MINUTE = 60_000, HOUR = 60 * MINUTE, DAY = 24 * HOUR;
const MONDAY = 4 * DAY; // the first after 1970-01-01
const months = (face) => new Date(face).getUTCFullYear() * 12 + new Date(face).getUTCMonth();

// From fine to coarse: which interval a moment is in. A tick stands where it is another than the one before.
const CALENDAR = [
  ...[MINUTE, 5 * MINUTE, 15 * MINUTE, 30 * MINUTE, HOUR, 3 * HOUR, 6 * HOUR, 12 * HOUR].map((length) => ({ of: (face) => Math.floor(face / length), unit: "clock" })),
  { of: (face) => Math.floor(face / DAY), unit: "day" },
  { of: (face) => Math.floor((face - MONDAY) / (7 * DAY)), unit: "day" },
  { of: (face) => 2 * months(face) + (new Date(face).getUTCDate() > 15 ? 1 : 0), unit: "day" },
  ...[1, 3, 6].map((length) => ({ of: (face) => Math.floor(months(face) / length), unit: "month" })),
  ...[1, 2, 5, 10, 20, 50, 100].map((length) => ({ of: (face) => Math.floor(months(face) / 12 / length), unit: "year" })),
];

/** Round values within `lo` to `hi`, about `wanted` of them, and their step. */
export function valueTicks(lo, hi, wanted) {
  const rough = (hi - lo) / wanted;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 2.5, 5].find((times) => times * power >= rough) ?? 10);
  const ticks = [];
  for (let count = Math.ceil(lo / step - 1e-9); count * step <= hi + step * 1e-9; count += 1) ticks.push(count * step);
  return { ticks, step };
}

/** How the values of an axis are written. */
export function valueFormat(ticks, step) {
  const largest = Math.max(...ticks.map(Math.abs));
  if (largest >= 1e15 || (largest > 0 && largest < 1e-5)) return (value) => value.toExponential(1);
  const digits = Math.min(8, Math.max(0, -Math.floor(Math.log10(step) + 1e-9) + (/^2.5/.test(step.toPrecision(3).replace(/^0\.0*/, "").replace(/^25/, "2.5")) ? 1 : 0)));
  const notation = largest >= 1e6 ? { notation: "compact", maximumFractionDigits: 2 } : { maximumFractionDigits: digits };
  const format = new Intl.NumberFormat("en", notation);
  return (value) => format.format(value === 0 ? 0 : value);
}

const exact = new Intl.NumberFormat("en", { maximumSignificantDigits: 5 });

/** A value for reading, to five digits. */
export function told(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  return size !== 0 && (size >= 1e15 || size < 1e-6) ? value.toExponential(3) : exact.format(value);
}

/** Ticks of an axis of stamps, so many pixels long: `{ place, main, sub }`; `sub` is the coarser half, where it changes. */
export function stampTicks(stamps, pixels) {
  if (stamps.length === 1) return labelled([0], stamps, typeof stamps[0] === "number" ? "number" : "day");
  const faces = stamps.map(faceOf);
  const scales = typeof stamps[0] === "number" ? numbers(faces, pixels / WIDTHS.number) : CALENDAR;
  const before = 2 * faces[0] - faces[1];
  for (const { of, unit } of scales) {
    const places = [], most = Math.max(1, Math.floor(pixels / WIDTHS[unit]));
    let last = of(before);
    for (let place = 0; place < faces.length && places.length <= most; place += 1) {
      const here = of(faces[place]);
      if (here !== last) places.push(place);
      last = here;
    }
    if (places.length <= most) return labelled(places.length > 0 ? places : [0], stamps, unit);
  }
  return labelled([0], stamps, "year");
}

function numbers(faces, most) {
  const rough = Math.max(1, (faces.at(-1) - faces[0]) / most);
  const power = 10 ** Math.floor(Math.log10(rough));
  return [1, 2, 5, 10, 20, 50].map((times) => ({ of: (face) => Math.floor(face / (times * power)), unit: "number" }));
}

function labelled(places, stamps, unit) {
  let above = null;
  return places.map((place) => {
    if (unit === "number") return { place, main: stamps[place].toLocaleString("en"), sub: "" };
    const date = new Date(faceOf(stamps[place]));
    const [year, month, day] = [String(date.getUTCFullYear()), monthName(date), date.getUTCDate()];
    const main = { clock: clock(date), day: `${day} ${month}`, month, year }[unit];
    const wider = { clock: `${day} ${month} ${year}`, day: year, month: year, year: "" }[unit];
    const sub = wider === above ? "" : wider;
    above = wider;
    return { place, main, sub };
  });
}

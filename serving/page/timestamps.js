// Timestamps: parsed from common formats, written as ISO 8601, generated at a frequency, and formatted for display.

const ISO_PATTERN = /^(\d{4})-(\d\d)-(\d\d)(?:([T ])(\d\d):(\d\d)(?::(\d\d)(\.\d{1,6})?)?(Z|[+-]\d\d:\d\d)?)?$/;
const DOTTED_PATTERN = /^(\d\d?)\.(\d\d?)\.(\d{4})(?: (\d\d?:\d\d(?::\d\d)?))?$/;
const MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
const DAY = 86_400_000;
const MAX_GUESS_STEPS = 100; // timestamps that are read to guess a frequency
const WEEKDAYS = ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"];
const STEP_NAMES = { s: "second", min: "minute", h: "hour", D: "day", W: "week", MS: "month", ME: "month", QS: "quarter",
  QE: "quarter", YS: "year", YE: "year", B: "business day" };

const padTwo = (number) => String(number).padStart(2, "0");

/**
 * Returns `{ text, epochMs, wallTime }`, or null if the text is not a timestamp: `text` as it is sent (ISO 8601, or an
 * integer), `epochMs` in UTC, and `wallTime`, the local clock time as milliseconds as if it were in UTC.
 * 03/04/2026 is rejected because day and month are ambiguous.
 */
export function parseTimestamp(text) {
  const trimmed = text.trim();
  if (/^-?\d{1,15}$/.test(trimmed)) return { text: Number(trimmed), epochMs: Number(trimmed), wallTime: Number(trimmed) };
  const isoText = normalizeToIso(trimmed);
  const match = ISO_PATTERN.exec(isoText);
  if (match === null) return null;
  const [, year, month, day, , hour = "0", minute = "0", second = "0", fraction = "0", zone] = match;
  const wallTime = Date.UTC(+year, month - 1, +day, +hour, +minute, +second) + Math.round(fraction * 1000);
  const date = new Date(wallTime);
  const exists = date.getUTCMonth() === month - 1 && date.getUTCDate() === +day && +hour < 24 && +minute < 60 && +second < 60;
  return exists && +year > 99 ? { text: isoText, epochMs: wallTime - utcOffsetMs(zone), wallTime } : null;
}

/** Rewrites 2026-01, 2026/01/31 and 31.01.2026 as ISO 8601; any other text is returned unchanged. */
function normalizeToIso(text) {
  if (/^\d{4}-\d\d$/.test(text)) return `${text}-01`;
  if (/^\d{4}\/\d\d\/\d\d/.test(text)) return text.replace("/", "-").replace("/", "-");
  const match = DOTTED_PATTERN.exec(text);
  if (match === null) return text;
  const [, day, month, year, time] = match;
  const timeSuffix = time === undefined ? "" : ` ${time.padStart(time.split(":").length === 2 ? 5 : 8, "0")}`;
  return `${year}-${padTwo(month)}-${padTwo(day)}${timeSuffix}`;
}

function utcOffsetMs(zone) {
  if (zone === undefined || zone === "Z") return 0;
  const [hours, minutes] = zone.slice(1).split(":").map(Number);
  return (zone[0] === "-" ? -1 : 1) * (hours * 60 + minutes) * 60_000;
}

/** Returns `steps` timestamps from `start` on (included) at a frequency; null for a frequency that is not known here. */
export function timestampRange(start, freq, steps) {
  if (/^\d+$/.test(freq)) {
    return Array.from({ length: steps }, (_, count) => start.epochMs + count * Number(freq));
  }
  const step = parseStep(freq);
  if (step === null) return null;
  const zone = typeof start.text === "string" ? ISO_PATTERN.exec(start.text)[9] ?? "" : "";
  const withTime = step.hasTime || (step.months === undefined && start.wallTime % DAY !== 0);
  return Array.from({ length: steps }, (_, count) =>
    formatIso(addSteps(start.wallTime, step, count), withTime) + (withTime ? zone : ""));
}

function addSteps(wallTime, step, count) {
  if (step.months === undefined) return wallTime + count * step.milliseconds;
  const date = new Date(wallTime);
  const [year, month] = [date.getUTCFullYear(), date.getUTCMonth() + count * step.months];
  const day = step.atMonthEnd ? new Date(Date.UTC(year, month + 1, 0)).getUTCDate() : date.getUTCDate();
  return Date.UTC(year, month, day);
}

/** Returns the step of a frequency: `{ milliseconds, hasTime }` or `{ months, atMonthEnd, hasTime }`; null if unknown. */
function parseStep(freq) {
  const [, multiple, unit] = /^(\d*)([A-Za-z]+)/.exec(freq) ?? [];
  if (unit === undefined) return null;
  const factor = Number(multiple || 1);
  const milliseconds = { s: 1000, min: 60_000, h: 3_600_000, D: DAY, W: 7 * DAY }[unit];
  if (milliseconds !== undefined) return { milliseconds: milliseconds * factor, hasTime: milliseconds < DAY };
  const months = { MS: 1, ME: 1, QS: 3, QE: 3, YS: 12, YE: 12 }[unit];
  return months === undefined ? null : { months: months * factor, atMonthEnd: unit.endsWith("E"), hasTime: false };
}

function formatIso(wallTime, withTime) {
  const text = new Date(wallTime).toISOString();
  return withTime ? text.slice(0, 19) : text.slice(0, 10);
}

/** Returns the wall time in milliseconds of a timestamp of the service; a number is returned unchanged. */
export function toWallTime(timestamp) {
  return typeof timestamp === "number" ? timestamp : parseTimestamp(timestamp)?.wallTime ?? NaN;
}

/** Formats a timestamp for display: "2 Jan 2026, 09:00", or without the time. */
export function formatTimestamp(timestamp, withTime = true) {
  if (typeof timestamp === "number") return timestamp.toLocaleString("en");
  const date = new Date(toWallTime(timestamp));
  const day = `${date.getUTCDate()} ${MONTHS[date.getUTCMonth()]} ${date.getUTCFullYear()}`;
  return withTime ? `${day}, ${formatTime(date)}` : day;
}

/** Formats the time of day; seconds only if they are not zero. */
export function formatTime(date) {
  const seconds = date.getUTCSeconds();
  return `${padTwo(date.getUTCHours())}:${padTwo(date.getUTCMinutes())}${seconds ? `:${padTwo(seconds)}` : ""}`;
}

export const monthName = (date) => MONTHS[date.getUTCMonth()];

/**
 * Returns the frequency that the timestamps of a series suggest by their shortest gap, such as "D" or "MS"; "1" for integers, and
 * null if there are too few or the gap has no name here. Only for display and defaults: the service infers the frequency itself.
 */
export function guessFrequency(ds) {
  if (typeof ds[0] === "number") return "1";
  const times = ds.slice(0, MAX_GUESS_STEPS).map(toWallTime);
  const gap = Math.min(...times.slice(1).map((time, index) => time - times[index]));
  if (!Number.isFinite(gap) || gap <= 0) return null;
  const days = gap / DAY;
  if (days >= 365 && days <= 366) return "YS";
  if (days >= 90 && days <= 92) return "QS";
  if (days >= 28 && days <= 31) return "MS";
  const [unit, milliseconds] = [["W", 7 * DAY], ["D", DAY], ["h", 3_600_000], ["min", 60_000], ["s", 1000]]
    .find(([, length]) => gap % length === 0) ?? [];
  if (unit === undefined) return null;
  return gap === milliseconds ? unit : `${gap / milliseconds}${unit}`;
}

/** Returns the frequency of weeks that end on the weekday of a timestamp; any other frequency is returned unchanged. */
export function anchorWeek(freq, timestamp) {
  return freq === "W" && typeof timestamp === "string" ? `W-${WEEKDAYS[new Date(toWallTime(timestamp)).getUTCDay()]}` : freq;
}

/** Returns the usual horizon of a frequency, as the service has it for requests without one: 18 months, 14 days, 24 hours. */
export function defaultHorizon(freq) {
  const horizons = { W: 13, D: 14, MS: 18, QS: 8, YS: 6, 1: 6, h: 24, "30min": 48, "15min": 96 };
  return horizons[freq] ?? 24;
}

/** Returns the name of one step of a frequency: "month", "15 minutes". */
export function stepName(freq) {
  if (/^\d+$/.test(freq)) return "integer step";
  const [, multiple, unit] = /^(\d*)([A-Za-z]+)/.exec(freq) ?? [];
  if (STEP_NAMES[unit] === undefined) return freq;
  return multiple === "" || multiple === "1" ? STEP_NAMES[unit] : `${multiple} ${STEP_NAMES[unit]}s`;
}

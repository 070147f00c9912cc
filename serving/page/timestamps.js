// Timestamps: parsed from common formats, written as ISO 8601, generated at a frequency, and formatted for display.

const ISO_PATTERN = /^(\d{4})-(\d\d)-(\d\d)(?:([T ])(\d\d):(\d\d)(?::(\d\d)(\.\d{1,6})?)?(Z|[+-]\d\d:\d\d)?)?$/;
const DOTTED_PATTERN = /^(\d\d?)\.(\d\d?)\.(\d{4})(?: (\d\d?:\d\d(?::\d\d)?))?$/;
const MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
const DAY = 86_400_000;
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

/** Returns the name of one step of a frequency: "month", "15 minutes". */
export function stepName(freq) {
  if (/^\d+$/.test(freq)) return "integer step";
  const [, multiple, unit] = /^(\d*)([A-Za-z]+)/.exec(freq) ?? [];
  if (STEP_NAMES[unit] === undefined) return freq;
  return multiple === "" || multiple === "1" ? STEP_NAMES[unit] : `${multiple} ${STEP_NAMES[unit]}s`;
}

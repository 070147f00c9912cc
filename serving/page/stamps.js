// Stamps: read in some usual ways of writing, written as ISO 8601, stepped along a frequency, and told to people.

const ISO = /^(\d{4})-(\d\d)-(\d\d)(?:([T ])(\d\d):(\d\d)(?::(\d\d)(\.\d{1,6})?)?(Z|[+-]\d\d:\d\d)?)?$/;
const DOTTED = /^(\d\d?)\.(\d\d?)\.(\d{4})(?: (\d\d?:\d\d(?::\d\d)?))?$/;
const MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
const DAY = 86_400_000;
const two = (number) => String(number).padStart(2, "0");

/**
 * A stamp as it is sent (`text`: ISO 8601, or a whole number), its moment in milliseconds (`at`) and the clock's face
 * where it was written (`face`, milliseconds as if in UTC); null if it is none. 03/04/2026 is none: who knows which month.
 */
export function read(written) {
  const plain = written.trim();
  if (/^-?\d{1,15}$/.test(plain)) return { text: Number(plain), at: Number(plain), face: Number(plain) };
  const text = usual(plain);
  const parts = ISO.exec(text);
  if (parts === null) return null;
  const [, year, month, day, , hour = "0", minute = "0", second = "0", fraction = "0", zone] = parts;
  const face = Date.UTC(+year, month - 1, +day, +hour, +minute, +second) + Math.round(fraction * 1000);
  const back = new Date(face);
  const exists = back.getUTCMonth() === month - 1 && back.getUTCDate() === +day && +hour < 24 && +minute < 60 && +second < 60;
  return exists && +year > 99 ? { text, at: face - offset(zone), face } : null;
}

function usual(text) {
  if (/^\d{4}-\d\d$/.test(text)) return `${text}-01`;
  if (/^\d{4}\/\d\d\/\d\d/.test(text)) return text.replace("/", "-").replace("/", "-");
  const parts = DOTTED.exec(text);
  if (parts === null) return text;
  const [, day, month, year, clock] = parts;
  return `${year}-${two(month)}-${two(day)}${clock === undefined ? "" : ` ${clock.padStart(clock.split(":").length === 2 ? 5 : 8, "0")}`}`;
}

function offset(zone) {
  if (zone === undefined || zone === "Z") return 0;
  const [hours, minutes] = zone.slice(1).split(":").map(Number);
  return (zone[0] === "-" ? -1 : 1) * (hours * 60 + minutes) * 60_000;
}

/** Some first stamps of a frequency from the one that is given, both included; null for a frequency not known here. */
export function ladder(start, freq, steps) {
  if (/^\d+$/.test(freq)) {
    return Array.from({ length: steps }, (_, step) => start.at + step * Number(freq));
  }
  const step = stepOf(freq);
  if (step === null) return null;
  const zone = typeof start.text === "string" ? ISO.exec(start.text)[9] ?? "" : "";
  const fine = step.fine || (step.months === undefined && start.face % DAY !== 0);
  return Array.from({ length: steps }, (_, count) => write(ahead(start.face, step, count), fine) + (fine ? zone : ""));
}

function ahead(face, step, count) {
  if (step.months === undefined) return face + count * step.each;
  const date = new Date(face);
  const [year, month] = [date.getUTCFullYear(), date.getUTCMonth() + count * step.months];
  const day = step.end ? new Date(Date.UTC(year, month + 1, 0)).getUTCDate() : date.getUTCDate();
  return Date.UTC(year, month, day);
}

/** How long a step of a frequency is; null where only the server knows. */
function stepOf(freq) {
  const [, many, name] = /^(\d*)([A-Za-z]+)/.exec(freq) ?? [];
  if (name === undefined) return null;
  const times = Number(many || 1);
  const fixed = { s: 1000, min: 60_000, h: 3_600_000, D: DAY, W: 7 * DAY }[name];
  if (fixed !== undefined) return { each: fixed * times, fine: fixed < DAY };
  const months = { MS: 1, ME: 1, QS: 3, QE: 3, YS: 12, YE: 12 }[name];
  return months === undefined ? null : { months: months * times, end: name.endsWith("E"), fine: false };
}

function write(face, fine) {
  const text = new Date(face).toISOString();
  return fine ? text.slice(0, 19) : text.slice(0, 10);
}

/** The milliseconds of a stamp that the server sent, as its clock's face; a number stays one. */
export function faceOf(sent) {
  return typeof sent === "number" ? sent : read(sent)?.face ?? NaN;
}

/** A stamp for people; as short as the stamps of its series allow. */
export function told(sent, fine = true) {
  if (typeof sent === "number") return sent.toLocaleString("en");
  const date = new Date(faceOf(sent));
  const day = `${date.getUTCDate()} ${MONTHS[date.getUTCMonth()]} ${date.getUTCFullYear()}`;
  return fine ? `${day}, ${clock(date)}` : day;
}

export function clock(date) {
  const seconds = date.getUTCSeconds();
  return `${two(date.getUTCHours())}:${two(date.getUTCMinutes())}${seconds ? `:${two(seconds)}` : ""}`;
}

export const monthName = (date) => MONTHS[date.getUTCMonth()];

const NAMES = { s: "second", min: "minute", h: "hour", D: "day", W: "week", MS: "month", ME: "month", QS: "quarter", QE: "quarter",
  YS: "year", YE: "year", B: "business day" };

/** What one step of a frequency is called: "month", "15 minutes". */
export function stepName(freq) {
  if (/^\d+$/.test(freq)) return "numbered step";
  const [, many, name] = /^(\d*)([A-Za-z]+)/.exec(freq) ?? [];
  if (NAMES[name] === undefined) return freq;
  return many === "" || many === "1" ? NAMES[name] : `${many} ${NAMES[name]}s`;
}

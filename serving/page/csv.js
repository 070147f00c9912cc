// Parses a table (comma, semicolon or tab; with or without a header) into series of ids, timestamps and values.

import { fillGaps } from "./fill-gaps.js";
import { parseTimestamp } from "./timestamps.js";

const MAX_CHARACTERS = 64_000_000;
const COLUMN_NAMES = {
  id: ["unique_id", "id", "item_id", "series_id", "series", "item", "name", "key"],
  ds: ["ds", "date", "datetime", "timestamp", "time", "stamp", "period", "month", "week", "day", "year", "hour"],
  y: ["y", "value", "values", "target", "sales", "demand", "count", "amount", "quantity"],
};
const MISSING_VALUES = new Set(["", "na", "n/a", "nan", "null", "none"]);
const NUMBER_PATTERN = /^[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3})?$/;
const MAX_QUOTED_LENGTH = 40; // characters of a cell that an error message quotes

/**
 * Returns `{ series: [{ id, ds, y }], rows, notes }`; for one column without timestamps `{ values: [y], rows, notes }`;
 * for a table with a mistake `{ error }`, whose fields are title, expected, found, where and remedy.
 */
export function parseTable(text, { businessDays = false } = {}) {
  try {
    return parseTableOrThrow(text, businessDays);
  } catch (error) {
    if (error.details === undefined) throw error;
    return { error: error.details };
  }
}

function parseTableOrThrow(text, businessDays) {
  if (text.length > MAX_CHARACTERS) {
    throwParseError("The table is too large for this page", "at most 64 million characters",
      `${Math.round(text.length / 1e6)} million`, null, "Send it from Python or with curl, in several requests.");
  }
  const lines = splitRecords(text.charCodeAt(0) === 0xfeff ? text.slice(1) : text);
  if (lines.length === 0) {
    throwParseError("The table is empty", "a CSV with one value per line", "an empty text", null,
      "Paste or choose a table with values.");
  }
  const separator = detectSeparator(lines[0].text);
  const rows = lines.map((line) => ({ lineNumber: line.lineNumber, cells: splitCells(line.text, separator) }));
  const width = rows[0].cells.length;
  const uneven = rows.find((row) => row.cells.length !== width);
  if (uneven !== undefined) {
    throwParseError("The lines differ in length", `${pluralize(width, "column")}, as in the first line`,
      pluralize(uneven.cells.length, "column"), `line ${uneven.lineNumber}`,
      "Correct this line. Numbers with a decimal comma require semicolons between the columns.");
  }
  const notes = [];
  const hasHeader = looksLikeHeader(rows[0].cells, separator);
  const data = hasHeader ? rows.slice(1) : rows;
  if (data.length === 0) {
    throwParseError("The table has no values", "values below the header", "only a header", `line ${rows[0].lineNumber}`,
      "Add rows.");
  }
  if (width === 1) return { values: parseValueColumn(data, separator), rows: data.length, notes };
  const columns = findColumns(rows[0].cells, hasHeader, notes);
  return { series: parseSeries(data, columns, separator, businessDays, notes), rows: data.length, notes };
}

/** Returns the lines that are not blank, with their numbers; a line break within quotes does not end a line. */
function splitRecords(text) {
  const lines = text.split(/\r\n|\n|\r/);
  const records = [];
  for (let index = 0; index < lines.length; index += 1) {
    const lineNumber = index + 1, first = index;
    let hasOpenQuote = hasOddQuotes(lines[index]);
    while (hasOpenQuote && index + 1 < lines.length) hasOpenQuote = !hasOddQuotes(lines[(index += 1)]);
    if (hasOpenQuote) {
      throwParseError("A quotation mark is not closed", "a closing quotation mark", "the end of the text",
        `line ${lineNumber}`, "Close it, or remove it.");
    }
    const text = lines.slice(first, index + 1).join("\n");
    if (text.trim() !== "") records.push({ lineNumber, text });
  }
  return records;
}

const hasOddQuotes = (line) => line.includes('"') && line.split('"').length % 2 === 0;

function detectSeparator(line) {
  const unquoted = line.replace(/"[^"]*"/g, "");
  return ["\t", ";", ","].find((separator) => unquoted.includes(separator)) ?? ",";
}

function splitCells(line, separator) {
  if (!line.includes('"')) return line.split(separator).map((cell) => cell.trim());
  const cells = [];
  let cell = "", isQuoted = false;
  for (let index = 0; index < line.length; index += 1) {
    const character = line[index];
    if (character === '"' && isQuoted && line[index + 1] === '"') { cell += '"'; index += 1; }
    else if (character === '"') isQuoted = !isQuoted;
    else if (character === separator && !isQuoted) { cells.push(cell.trim()); cell = ""; }
    else cell += character;
  }
  return [...cells, cell.trim()];
}

/** Whether the cells name a value column, or hold neither numbers, timestamps nor missing values. */
function looksLikeHeader(cells, separator) {
  const names = cells.map((cell) => cell.toLowerCase());
  if (names.some((name) => COLUMN_NAMES.y.includes(name))) return true;
  return cells.every((cell) => !MISSING_VALUES.has(cell.toLowerCase())
    && parseNumber(cell, separator) === undefined && parseTimestamp(cell) === null);
}

/** Returns the indices of the columns, `{ id, ds, y }`, without `id` if there is no such column. */
function findColumns(cells, hasHeader, notes) {
  if (!hasHeader) {
    if (cells.length > 3) {
      throwParseError("The columns are not named", "a header that names unique_id, ds and y",
        `${cells.length} columns without a header`, "line 1", "Add a first line with the column names.");
    }
    return cells.length === 2 ? { ds: 0, y: 1 } : { id: 0, ds: 1, y: 2 };
  }
  const header = cells.map((cell) => cell.toLowerCase());
  const columns = {};
  for (const [column, aliases] of Object.entries(COLUMN_NAMES)) {
    const alias = aliases.find((name) => header.includes(name));
    if (alias !== undefined) columns[column] = header.indexOf(alias);
  }
  if (columns.ds === undefined || columns.y === undefined) {
    if (cells.length > 3 || Object.keys(columns).length > 1) {
      throwParseError("The columns are not recognized", "the columns unique_id, ds and y, or ds and y",
        cells.join(", ").slice(0, 3 * MAX_QUOTED_LENGTH), "line 1",
        "Rename them: ds holds the timestamps, y the values, unique_id the id of the series.");
    }
    notes.push(`The columns ${cells.join(", ")} were read as ${cells.length === 2 ? "ds, y" : "unique_id, ds, y"}.`);
    return cells.length === 2 ? { ds: 0, y: 1 } : { id: 0, ds: 1, y: 2 };
  }
  const used = new Set(Object.values(columns));
  const ignored = cells.filter((_, index) => !used.has(index));
  if (ignored.length > 0) {
    notes.push(`Ignored columns: ${ignored.join(", ").slice(0, 3 * MAX_QUOTED_LENGTH)}. `
      + "This page sends values only; send covariates from Python or with curl.");
  }
  return columns;
}

function parseValueColumn(rows, separator) {
  const values = rows.map((row) => parseValueCell(row.cells[0], separator, row.lineNumber));
  if (values.every((value) => value === null)) {
    throwParseError("The table has no values", "numbers", "only empty cells", null, "Add the values.");
  }
  return values;
}

function parseSeries(rows, columns, separator, businessDays, notes) {
  const pointsById = new Map();
  const isNumbered = typeof parseTimestampCell(rows[0], columns.ds).text === "number";
  for (const row of rows) {
    const id = columns.id === undefined ? "series" : row.cells[columns.id];
    if (id === "") {
      throwParseError("A series id is missing", "an id in every row", "an empty cell", `line ${row.lineNumber}`,
        "Enter an id.");
    }
    const timestamp = parseTimestampCell(row, columns.ds);
    if ((typeof timestamp.text === "number") !== isNumbered) {
      throwParseError("The timestamps are of two kinds", `${isNumbered ? "integers" : "dates"}, as in the first row`,
        quote(row.cells[columns.ds]), `line ${row.lineNumber}`, "Use one kind for all timestamps.");
    }
    if (!pointsById.has(id)) pointsById.set(id, []);
    const y = parseValueCell(row.cells[columns.y], separator, row.lineNumber);
    pointsById.get(id).push({ timestamp, y, lineNumber: row.lineNumber });
  }
  const counts = { sorted: 0, filled: 0, trimmed: 0 };
  const series = [...pointsById].map(([id, points]) => buildSeries(id, points, businessDays, counts));
  if (counts.sorted > 0) notes.push(`Sorted by time: ${pluralize(counts.sorted, "series", "series")}.`);
  if (counts.filled > 0) notes.push(`Inserted ${pluralize(counts.filled, "missing timestamp")} without a value.`);
  if (counts.trimmed > 0) {
    notes.push(`Removed ${pluralize(counts.trimmed, "row")} without a value at the end: `
      + "the forecast starts after the last value.");
  }
  return series;
}

/** Sorts the points, rejects duplicate timestamps, removes missing values at the end and fills gaps; updates `counts`. */
function buildSeries(id, points, businessDays, counts) {
  const epochMs = (index) => points[index].timestamp.epochMs;
  if (points.some((_, index) => index > 0 && epochMs(index) < epochMs(index - 1))) {
    points.sort((left, right) => left.timestamp.epochMs - right.timestamp.epochMs);
    counts.sorted += 1;
  }
  for (let index = 1; index < points.length; index += 1) {
    if (epochMs(index) === epochMs(index - 1)) {
      throwParseError("A timestamp occurs twice", `each timestamp once in series ${quote(id)}`,
        `${points[index].timestamp.text} twice`, `lines ${points[index - 1].lineNumber} and ${points[index].lineNumber}`,
        "Keep one of the two rows. Several series require a column unique_id.");
    }
  }
  let end = points.length;
  while (end > 0 && points[end - 1].y === null) end -= 1;
  if (end === 0) {
    throwParseError("A series has no values", `numbers in series ${quote(id)}`, "only empty cells",
      `line ${points[0].lineNumber}`, "Add values, or remove the series.");
  }
  counts.trimmed += points.length - end;
  const filled = fillGaps(points.slice(0, end), businessDays);
  counts.filled += filled.ds.length - end;
  return { id, ...filled };
}

function parseTimestampCell(row, columnIndex) {
  const timestamp = parseTimestamp(row.cells[columnIndex]);
  if (timestamp === null) {
    throwParseError("A timestamp cannot be read", "a timestamp such as 2026-01-31, 2026-01-31 09:00, 31.01.2026, or an integer",
      quote(row.cells[columnIndex]), `line ${row.lineNumber}`,
      "Use one of these formats; write the year first where day and month could be confused.");
  }
  return timestamp;
}

/** Returns the number in a cell; null for a missing value. */
function parseValueCell(cell, separator, lineNumber) {
  if (MISSING_VALUES.has(cell.toLowerCase())) return null;
  const value = parseNumber(cell, separator);
  if (value === undefined) {
    const hasDecimalComma = /^[+-]?\d+,\d+$/.test(cell) && separator !== ";";
    throwParseError("A value is not a number", "a number, or an empty cell for a missing value", quote(cell),
      `line ${lineNumber}`, hasDecimalComma ? "Write a decimal point, or put semicolons between the columns."
        : "Correct it. Units and thousands separators are not allowed.");
  }
  return value;
}

/** Returns a finite number, or undefined. A decimal comma is accepted where semicolons separate the columns. */
function parseNumber(cell, separator) {
  const text = separator === ";" && /^[^.,]*,[^.,]*$/.test(cell) ? cell.replace(",", ".") : cell;
  if (!NUMBER_PATTERN.test(text)) return undefined;
  const value = Number(text);
  return Number.isFinite(value) ? value : undefined;
}

const quote = (text) => `“${text.length > MAX_QUOTED_LENGTH ? `${text.slice(0, MAX_QUOTED_LENGTH)}…` : text}”`;
const pluralize = (count, singular, plural = `${singular}s`) =>
  `${count.toLocaleString("en")} ${count === 1 ? singular : plural}`;

function throwParseError(title, expected, found, where, remedy) {
  throw Object.assign(new Error(title), { details: { title, expected, found, where, remedy } });
}

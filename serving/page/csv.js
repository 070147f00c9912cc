// A table as people have it (comma, semicolon or tab; with a header or without) into series: ids, stamps and values.

import { whole } from "./gaps.js";
import { read } from "./stamps.js";

const MOST_CHARACTERS = 64_000_000;
const NAMES = {
  id: ["unique_id", "id", "item_id", "series_id", "series", "item", "name", "key"],
  ds: ["ds", "date", "datetime", "timestamp", "time", "stamp", "period", "month", "week", "day", "year", "hour"],
  y: ["y", "value", "values", "target", "sales", "demand", "count", "amount", "quantity"],
};
const MISSING = new Set(["", "na", "n/a", "nan", "null", "none"]);
const NUMBER = /^[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3})?$/;
const SHOWN = 40; // characters of what was found

/**
 * What a text holds: `{ series: [{ id, ds, y }], rows, notes }`, or `{ column: [y], rows, notes }` of one column without
 * stamps, or `{ fault }` with title, expected, found, where and remedy.
 */
export function readTable(text, { businessDays = false } = {}) {
  try {
    return table(text, businessDays);
  } catch (error) {
    if (error.fault === undefined) throw error;
    return { fault: error.fault };
  }
}

function table(text, businessDays) {
  if (text.length > MOST_CHARACTERS) {
    refuse("Too large to read here", "at most 64 million characters", `${Math.round(text.length / 1e6)} million`, null,
      "Send it from Python or with curl, in parts.");
  }
  const lines = records(text.charCodeAt(0) === 0xfeff ? text.slice(1) : text);
  if (lines.length === 0) refuse("There is nothing to read", "a CSV with one value a line", "an empty text", null, "Paste or choose one with values.");
  const separator = separatorOf(lines[0].text);
  const rows = lines.map((line) => ({ number: line.number, cells: cellsOf(line.text, separator) }));
  const width = rows[0].cells.length;
  const uneven = rows.find((row) => row.cells.length !== width);
  if (uneven !== undefined) {
    refuse("The lines differ in length", `${count(width, "column")}, as in the first line`, count(uneven.cells.length, "column"),
      `line ${uneven.number}`, "Correct that line. Numbers with a decimal comma need semicolons between the columns.");
  }
  const notes = [];
  const header = hasHeader(rows[0].cells, separator);
  const data = header ? rows.slice(1) : rows;
  if (data.length === 0) refuse("There are no values", "values below the header", "the header alone", `line ${rows[0].number}`, "Add some rows.");
  if (width === 1) return { column: column(data, separator), rows: data.length, notes };
  const places = placesOf(rows[0].cells, header, notes);
  return { series: seriesOf(data, places, separator, businessDays, notes), rows: data.length, notes };
}

/** The lines that are not blank, with their numbers; a line break within quotes does not end one. */
function records(text) {
  const pieces = text.split(/\r\n|\n|\r/);
  const found = [];
  for (let place = 0; place < pieces.length; place += 1) {
    const number = place + 1;
    let line = pieces[place];
    if (line.includes('"')) {
      while (odd(line) && place + 1 < pieces.length) line += `\n${pieces[(place += 1)]}`;
      if (odd(line)) refuse("A quote is not closed", "a closing quote", "the end of the text", `line ${number}`, "Close it, or remove it.");
    }
    if (line.trim() !== "") found.push({ number, text: line });
  }
  return found;
}

const odd = (line) => (line.match(/"/g)?.length ?? 0) % 2 === 1;

function separatorOf(line) {
  const bare = line.replace(/"[^"]*"/g, "");
  return ["\t", ";", ","].find((separator) => bare.includes(separator)) ?? ",";
}

function cellsOf(line, separator) {
  if (!line.includes('"')) return line.split(separator).map((cell) => cell.trim());
  const cells = [];
  let cell = "", quoted = false;
  for (let place = 0; place < line.length; place += 1) {
    const letter = line[place];
    if (letter === '"' && quoted && line[place + 1] === '"') { cell += '"'; place += 1; }
    else if (letter === '"') quoted = !quoted;
    else if (letter === separator && !quoted) { cells.push(cell.trim()); cell = ""; }
    else cell += letter;
  }
  return [...cells, cell.trim()];
}

function hasHeader(cells, separator) {
  const names = cells.map((cell) => cell.toLowerCase());
  if (names.some((name) => NAMES.y.includes(name))) return true;
  return cells.every((cell) => !MISSING.has(cell.toLowerCase()) && number(cell, separator) === undefined && read(cell) === null);
}

/** Which column is which. */
function placesOf(cells, header, notes) {
  if (!header) {
    if (cells.length > 3) {
      refuse("Which column is which?", "a header that names unique_id, ds and y", `${cells.length} columns without a header`, "line 1",
        "Add a first line with the names.");
    }
    return cells.length === 2 ? { ds: 0, y: 1 } : { id: 0, ds: 1, y: 2 };
  }
  const names = cells.map((cell) => cell.toLowerCase());
  const places = {};
  for (const [what, known] of Object.entries(NAMES)) {
    const name = known.find((one) => names.includes(one));
    if (name !== undefined) places[what] = names.indexOf(name);
  }
  if (places.ds === undefined || places.y === undefined) {
    if (cells.length > 3 || Object.keys(places).length > 1) {
      refuse("Which column is which?", "the columns unique_id, ds and y, or ds and y", cells.join(", ").slice(0, 3 * SHOWN), "line 1",
        "Rename them: ds holds the stamps, y the values, unique_id the name of the series.");
    }
    notes.push(`The columns ${cells.join(", ")} were read as ${cells.length === 2 ? "ds, y" : "unique_id, ds, y"}.`);
    return cells.length === 2 ? { ds: 0, y: 1 } : { id: 0, ds: 1, y: 2 };
  }
  const used = new Set(Object.values(places));
  const others = cells.filter((_, place) => !used.has(place));
  if (others.length > 0) notes.push(`Left out: ${others.join(", ").slice(0, 3 * SHOWN)}. This page sends values only; covariates go through Python or curl.`);
  return places;
}

function column(data, separator) {
  const values = data.map((row) => value(row.cells[0], separator, row.number));
  if (values.every((one) => one === null)) refuse("There are no values", "numbers", "empty cells alone", null, "Add the values.");
  return values;
}

function seriesOf(data, places, separator, businessDays, notes) {
  const groups = new Map();
  const numbered = typeof stamp(data[0], places.ds).text === "number";
  for (const row of data) {
    const id = places.id === undefined ? "series" : row.cells[places.id];
    if (id === "") refuse("A series has no name", "an id in every row", "an empty cell", `line ${row.number}`, "Write one.");
    const when = stamp(row, places.ds);
    if ((typeof when.text === "number") !== numbered) {
      refuse("The stamps are of two kinds", numbered ? "whole numbers, as in the first row" : "dates, as in the first row",
        quoted(row.cells[places.ds]), `line ${row.number}`, "Write all in the same way.");
    }
    if (!groups.has(id)) groups.set(id, []);
    groups.get(id).push({ when, y: value(row.cells[places.y], separator, row.number), number: row.number });
  }
  const said = { sorted: 0, filled: 0, cut: 0 };
  const series = [...groups].map(([id, points]) => one(id, points, businessDays, said));
  if (said.sorted > 0) notes.push(`Sorted by time: ${count(said.sorted, "series", "series")}.`);
  if (said.filled > 0) notes.push(`${count(said.filled, "missing stamp")} put in, as not observed.`);
  if (said.cut > 0) notes.push(`${count(said.cut, "row")} without a value at the end left out: the forecast begins after the last value.`);
  return series;
}

function one(id, points, businessDays, said) {
  if (points.some((point, place) => place > 0 && point.when.at < points[place - 1].when.at)) {
    points.sort((left, right) => left.when.at - right.when.at);
    said.sorted += 1;
  }
  for (let place = 1; place < points.length; place += 1) {
    if (points[place].when.at === points[place - 1].when.at) {
      refuse("A stamp is there twice", `every stamp once in the series ${quoted(id)}`, `${points[place].when.text} twice`,
        `lines ${points[place - 1].number} and ${points[place].number}`, "Keep one of them. Several series need a column unique_id.");
    }
  }
  let end = points.length;
  while (end > 0 && points[end - 1].y === null) end -= 1;
  if (end === 0) refuse("A series has no values", `numbers in the series ${quoted(id)}`, "empty cells alone", `line ${points[0].number}`, "Add them, or leave it out.");
  said.cut += points.length - end;
  const filled = whole(points.slice(0, end), businessDays);
  said.filled += filled.ds.length - end;
  return { id, ...filled };
}

function stamp(row, place) {
  const found = read(row.cells[place]);
  if (found === null) {
    refuse("A stamp cannot be read", "a stamp like 2026-01-31, 2026-01-31 09:00, 31.01.2026 or a whole number", quoted(row.cells[place]),
      `line ${row.number}`, "Write it so; year first where day and month could be mistaken.");
  }
  return found;
}

function value(cell, separator, line) {
  if (MISSING.has(cell.toLowerCase())) return null;
  const found = number(cell, separator);
  if (found === undefined) {
    const comma = /^[+-]?\d+,\d+$/.test(cell) && separator !== ";";
    refuse("A value is not a number", "a number, or nothing where it was not observed", quoted(cell), `line ${line}`,
      comma ? "Write a decimal point, or put semicolons between the columns." : "Correct it. Units and marks between thousands do not belong there.");
  }
  return found;
}

function number(cell, separator) {
  const plain = separator === ";" && /^[^.,]*,[^.,]*$/.test(cell) ? cell.replace(",", ".") : cell;
  if (!NUMBER.test(plain)) return undefined;
  const found = Number(plain);
  return Number.isFinite(found) ? found : undefined;
}

const quoted = (text) => `“${text.length > SHOWN ? `${text.slice(0, SHOWN)}…` : text}”`;
const count = (number, name, names = `${name}s`) => `${number.toLocaleString("en")} ${number === 1 ? name : names}`;

function refuse(title, expected, found, where, remedy) {
  throw Object.assign(new Error(title), { fault: { title, expected, found, where, remedy } });
}

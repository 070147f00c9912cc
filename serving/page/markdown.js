// The markdown of model cards: headings, paragraphs, lists, tables, code, strong and emphasised words. All else stays text:
// no links, no pictures, no HTML, for a card is somebody else's word.

import { make } from "./dom.js";

const FENCE = /^\s*(```|~~~)/;
const HEADING = /^(#{1,6})\s+(.*?)\s*#*$/;
const ITEM = /^\s*(?:[-*+]|(\d+)[.)])\s+(.*)$/;
const RULE = /^\s*([-*_])(\s*\1){2,}\s*$/;
const TABLE_RULE = /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/;
const INLINE = /(`+)(.+?)\1|\*\*(.+?)\*\*|(?<![\w*])\*([^*\s][^*]*?)\*(?!\w)/g;

/** The elements of a text; its largest heading becomes an h`top`. */
export function elementsOf(text, top) {
  const lines = text.split(/\r\n|\n|\r/);
  const found = [];
  let place = 0;
  const while_ = (fits) => {
    const taken = [];
    while (place < lines.length && fits(lines[place])) taken.push(lines[place++]);
    return taken;
  };
  while (place < lines.length) {
    const line = lines[place];
    const heading = HEADING.exec(line);
    if (line.trim() === "") place += 1;
    else if (FENCE.test(line)) {
      place += 1;
      const code = while_((one) => !FENCE.test(one));
      place += 1;
      found.push(fenced(code.join("\n")));
    } else if (heading !== null) {
      place += 1;
      found.push(make(`h${Math.min(6, heading[1].length + top - 1)}`, {}, inline(heading[2])));
    } else if (RULE.test(line)) {
      place += 1;
      found.push(make("hr"));
    } else if (line.includes("|") && TABLE_RULE.test(lines[place + 1] ?? "")) {
      found.push(table(while_((one) => one.includes("|"))));
    } else if (ITEM.test(line)) {
      const ordered = ITEM.exec(line)[1] !== undefined;
      const items = while_((one) => ITEM.test(one) || /^\s{2,}\S/.test(one));
      found.push(list(items, ordered));
    } else {
      const starts = (one) => one.trim() === "" || FENCE.test(one) || HEADING.test(one) || ITEM.test(one);
      found.push(make("p", {}, inline([lines[place++], ...while_((one) => !starts(one))].join(" "))));
    }
  }
  return found;
}

/** Long code is folded: a whole specification, say. */
function fenced(text) {
  const code = make("pre", { tabindex: "0" }, make("code", {}, text));
  return text.split("\n").length <= 8 ? code : make("details", {}, make("summary", {}, "The whole specification"), code);
}

function list(lines, ordered) {
  const items = [];
  for (const line of lines) {
    const item = ITEM.exec(line);
    if (item !== null) items.push(item[2]);
    else items[items.length - 1] += ` ${line.trim()}`;
  }
  return make(ordered ? "ol" : "ul", {}, items.map((item) => make("li", {}, inline(item))));
}

function table(lines) {
  const [head, , ...rows] = lines.map((line) => line.trim().replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim()));
  const row = (cells, name) => make("tr", {}, cells.map((cell) => make(name, { class: /^-?[\d.]/.test(cell) ? "number" : null, scope: name === "th" ? "col" : null }, inline(cell))));
  return make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Table" },
    make("table", {}, make("thead", {}, row(head, "th")), make("tbody", {}, rows.map((cells) => row(cells, "td")))));
}

function inline(text) {
  const parts = [];
  let end = 0;
  for (const match of text.matchAll(INLINE)) {
    parts.push(text.slice(end, match.index));
    const [whole, , code, strong, emphasis] = match;
    if (code !== undefined) parts.push(make("code", {}, code));
    else if (strong !== undefined) parts.push(make("strong", {}, strong));
    else parts.push(make("em", {}, emphasis));
    end = match.index + whole.length;
  }
  return [...parts, text.slice(end)].filter((part) => part !== "");
}

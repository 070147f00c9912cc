// Renders the Markdown of model cards: headings, paragraphs, lists, tables, code, strong and emphasized text. Everything
// else stays text: links, images and HTML are not rendered, because the content of a card is not trusted.

import { createElement } from "./dom.js";

const FENCE_PATTERN = /^\s*(```|~~~)/;
const HEADING_PATTERN = /^(#{1,6})\s+(.*?)\s*#*$/;
const LIST_ITEM_PATTERN = /^\s*(?:[-*+]|(\d+)[.)])\s+(.*)$/;
const RULE_PATTERN = /^\s*([-*_])(\s*\1){2,}\s*$/;
const TABLE_RULE_PATTERN = /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/;
const INLINE_PATTERN = /(`+)(.+?)\1|\*\*(.+?)\*\*|(?<![\w*])\*([^*\s][^*]*?)\*(?!\w)/g;
const MAX_CODE_LINES = 8; // a longer code block is collapsed

/** Returns the elements of a Markdown text; its first-level headings become `h{topHeadingLevel}`. */
export function renderMarkdown(text, topHeadingLevel) {
  const lines = text.split(/\r\n|\n|\r/);
  const elements = [];
  let index = 0;
  const takeWhile = (matches) => {
    const taken = [];
    while (index < lines.length && matches(lines[index])) taken.push(lines[index++]);
    return taken;
  };
  while (index < lines.length) {
    const line = lines[index];
    const heading = HEADING_PATTERN.exec(line);
    if (line.trim() === "") index += 1;
    else if (FENCE_PATTERN.test(line)) {
      index += 1;
      const code = takeWhile((next) => !FENCE_PATTERN.test(next));
      index += 1;
      elements.push(renderCodeBlock(code.join("\n")));
    } else if (heading !== null) {
      index += 1;
      const level = Math.min(6, heading[1].length + topHeadingLevel - 1);
      elements.push(createElement(`h${level}`, {}, renderInline(heading[2])));
    } else if (RULE_PATTERN.test(line)) {
      index += 1;
      elements.push(createElement("hr"));
    } else if (line.includes("|") && TABLE_RULE_PATTERN.test(lines[index + 1] ?? "")) {
      elements.push(renderTable(takeWhile((next) => next.includes("|"))));
    } else if (LIST_ITEM_PATTERN.test(line)) {
      const isOrdered = LIST_ITEM_PATTERN.exec(line)[1] !== undefined;
      const items = takeWhile((next) => LIST_ITEM_PATTERN.test(next) || /^\s{2,}\S/.test(next));
      elements.push(renderList(items, isOrdered));
    } else {
      const startsBlock = (next) =>
        next.trim() === "" || [FENCE_PATTERN, HEADING_PATTERN, LIST_ITEM_PATTERN].some((pattern) => pattern.test(next));
      const paragraph = [lines[index++], ...takeWhile((next) => !startsBlock(next))];
      elements.push(createElement("p", {}, renderInline(paragraph.join(" "))));
    }
  }
  return elements;
}

/** Renders a code block; long code, such as the specification of a model, is collapsed. */
function renderCodeBlock(text) {
  const code = createElement("pre", { tabindex: "0" }, createElement("code", {}, text));
  if (text.split("\n").length <= MAX_CODE_LINES) return code;
  return createElement("details", {}, createElement("summary", {}, "Full specification"), code);
}

function renderList(lines, isOrdered) {
  const items = [];
  for (const line of lines) {
    const item = LIST_ITEM_PATTERN.exec(line);
    if (item !== null) items.push(item[2]);
    else items[items.length - 1] += ` ${line.trim()}`;
  }
  return createElement(isOrdered ? "ol" : "ul", {}, items.map((item) => createElement("li", {}, renderInline(item))));
}

function renderTable(lines) {
  const splitRow = (line) => line.trim().replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim());
  const [header, , ...rows] = lines.map(splitRow);
  const renderRow = (cells, tag) => createElement("tr", {}, cells.map((cell) => {
    const properties = { class: /^-?[\d.]/.test(cell) ? "number" : null, scope: tag === "th" ? "col" : null };
    return createElement(tag, properties, renderInline(cell));
  }));
  return createElement("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Table" },
    createElement("table", {},
      createElement("thead", {}, renderRow(header, "th")),
      createElement("tbody", {}, rows.map((cells) => renderRow(cells, "td")))));
}

/** Returns text and elements for code, strong and emphasized text within a line. */
function renderInline(text) {
  const parts = [];
  let end = 0;
  for (const match of text.matchAll(INLINE_PATTERN)) {
    parts.push(text.slice(end, match.index));
    const [matched, , code, strong, emphasis] = match;
    if (code !== undefined) parts.push(createElement("code", {}, code));
    else if (strong !== undefined) parts.push(createElement("strong", {}, strong));
    else parts.push(createElement("em", {}, emphasis));
    end = match.index + matched.length;
  }
  return [...parts, text.slice(end)].filter((part) => part !== "");
}

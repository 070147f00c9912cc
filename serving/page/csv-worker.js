// Web worker that parses tables, so that a large table does not block the page.

import { parseTable } from "./csv.js";

addEventListener("message", async ({ data: { source, options } }) => {
  const text = typeof source === "string" ? source : await source.text();
  postMessage(parseTable(text, options));
});

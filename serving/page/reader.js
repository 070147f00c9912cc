// Reads tables beside the page, so that a large one does not hold it up.

import { readTable } from "./csv.js";

addEventListener("message", async ({ data: { source, options } }) => {
  const text = typeof source === "string" ? source : await source.text();
  postMessage(readTable(text, options));
});

// Reads tables that are chosen as a file, dropped on the page, or pasted. csv-worker.js parses them in a web worker.

import { byId } from "./dom.js";

const MAX_PASTED_CHARACTERS = 200_000; // a longer text is read without being shown in the text field
const DEBOUNCE_MS = 350; // after the last key press
const MAX_FILE_BYTES = 64_000_000;

/**
 * Calls `onStart(name)` before a table is read and `onTable(result, name)` with the result of `parseTable`, or with an
 * `{ error }`. `getOptions()` returns the options of `parseTable` in csv.js.
 */
export function listenForTables({ onStart, onTable, getOptions }) {
  let worker = null, timer = null;

  function readTable(source, name) {
    clearTimeout(timer);
    worker?.terminate(); // a new table replaces the one being read
    onStart(name);
    if (source instanceof Blob && source.size > MAX_FILE_BYTES) {
      onTable({ error: { title: "The file is too large for this page", expected: "a file of at most 64 MB",
        found: `${Math.round(source.size / 1e6)} MB`, where: name,
        remedy: "Send it from Python or with curl, in several requests." } }, name);
      return;
    }
    worker = new Worker(new URL("csv-worker.js", import.meta.url), { type: "module" });
    worker.addEventListener("message", ({ data }) => onTable(data, name));
    worker.addEventListener("error", () => onTable({ error: { title: "The table cannot be read", expected: "text in UTF-8",
      found: "another format or encoding", where: name, remedy: "Save it as CSV in UTF-8, and try again." } }, name));
    worker.postMessage({ source, options: getOptions() });
  }

  const file = byId("file"), paste = byId("paste");
  file.addEventListener("change", () => {
    if (file.files.length > 0) readTable(file.files[0], file.files[0].name);
    file.value = ""; // so that the same file can be chosen again
  });
  paste.addEventListener("paste", (event) => {
    const text = event.clipboardData?.getData("text/plain") ?? "";
    if (text.length <= MAX_PASTED_CHARACTERS) return;
    event.preventDefault();
    paste.value = `${text.slice(0, 300)}\n…`;
    readTable(text, "pasted text");
  });
  paste.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(() => {
      if (paste.value.trim() !== "") readTable(paste.value, "pasted text");
    }, DEBOUNCE_MS);
  });
  listenForDrops((dropped) => readTable(dropped, dropped.name));
}

function listenForDrops(onFile) {
  const overlay = byId("drop-overlay");
  let depth = 0; // dragenter and dragleave also fire for every element below the pointer
  const setVisible = (isVisible) => { overlay.hidden = !isVisible; };
  addEventListener("dragenter", (event) => {
    if (!event.dataTransfer?.types.includes("Files")) return;
    depth += 1;
    setVisible(true);
  });
  addEventListener("dragleave", () => {
    depth = Math.max(0, depth - 1);
    if (depth === 0) setVisible(false);
  });
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    event.preventDefault();
    depth = 0;
    setVisible(false);
    const [file] = event.dataTransfer?.files ?? [];
    if (file !== undefined) onFile(file);
  });
}

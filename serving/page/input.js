// How a table comes in: chosen, dropped anywhere, or pasted. It is read by reader.js, beside the page.

import { byId } from "./dom.js";

const LARGE = 200_000; // characters that a text field need not show
const PAUSE_MS = 350; // after the last key
const MOST_BYTES = 64_000_000;

/** Tells `read(result, name)` of each table, and `begin(name)` before it is read; `options()` are those of csv.js. */
export function listen({ begin, read, options }) {
  let worker = null, timer = null;

  function take(source, name) {
    clearTimeout(timer);
    worker?.terminate(); // the one before is not wanted any more
    begin(name);
    if (source instanceof Blob && source.size > MOST_BYTES) {
      read({ fault: { title: "Too large to read here", expected: "a file of at most 64 MB", found: `${Math.round(source.size / 1e6)} MB`, where: name,
        remedy: "Send it from Python or with curl, in parts." } }, name);
      return;
    }
    worker = new Worker("/page/reader.js", { type: "module" });
    worker.addEventListener("message", ({ data }) => read(data, name));
    worker.addEventListener("error", () => read({ fault: { title: "The table cannot be read", expected: "text in UTF-8", found: "something else", where: name,
      remedy: "Save it as CSV in UTF-8, and try again." } }, name));
    worker.postMessage({ source, options: options() });
  }

  const file = byId("file"), paste = byId("paste");
  file.addEventListener("change", () => {
    if (file.files.length > 0) take(file.files[0], file.files[0].name);
    file.value = ""; // so that the same one can be chosen again
  });
  paste.addEventListener("paste", (event) => {
    const text = event.clipboardData?.getData("text/plain") ?? "";
    if (text.length <= LARGE) return;
    event.preventDefault();
    paste.value = `${text.slice(0, 300)}\n…`;
    take(text, "pasted");
  });
  paste.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(() => {
      if (paste.value.trim() !== "") take(paste.value, "pasted");
    }, PAUSE_MS);
  });
  listenToDrops((dropped) => take(dropped, dropped.name));
}

function listenToDrops(take) {
  const veil = byId("drop-veil");
  let depth = 0;
  const show = (wanted) => { veil.hidden = !wanted; };
  addEventListener("dragenter", (event) => {
    if (!event.dataTransfer?.types.includes("Files")) return;
    depth += 1;
    show(true);
  });
  addEventListener("dragleave", () => {
    depth = Math.max(0, depth - 1);
    if (depth === 0) show(false);
  });
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    event.preventDefault();
    depth = 0;
    show(false);
    const [file] = event.dataTransfer?.files ?? [];
    if (file !== undefined) take(file);
  });
}

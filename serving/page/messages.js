// What went wrong, told in one way, whoever found it: expected, found, where, what to do.

import { make, put } from "./dom.js";

/** A fault that the page itself found; the server's are of `Failure` in api.js. */
export class Fault extends Error {
  constructor({ title, expected, found, where, remedy }) {
    super(`Expected ${expected}; found ${found}. ${remedy}`);
    Object.assign(this, { title, expected, found, where, remedy });
  }
}

/** Shows an error, in place of what was shown there before. */
export function tell(place, error) {
  put(place, card(error));
  place.scrollIntoView({ block: "nearest" });
}

export function clear(place) {
  put(place);
}

function card(error) {
  if (error instanceof Fault) {
    const rows = { Expected: error.expected, Found: error.found, Where: error.where, "What to do": error.remedy };
    return message(error.title, null, rows);
  }
  if (error.code !== undefined) {
    const rows = { Where: error.where, Code: error.code, Request: error.requestId };
    return message(error.title, error.message, rows);
  }
  console.error(error); // a fault of ours
  return message("The page failed", `${error.name}: ${error.message}. Load it again; if it stays, tell who runs this server.`, {});
}

function message(title, text, rows) {
  const told = Object.entries(rows).filter(([, value]) => value !== null && value !== undefined && value !== "");
  return make("div", { class: "message" },
    make("h2", {}, title),
    text === null ? null : make("p", {}, text),
    told.length === 0 ? null : make("dl", {}, told.map(([name, value]) => [make("dt", {}, name), make("dd", {}, String(value))])),
  );
}

// Shows errors of the page and of the service in one format: expected, found, where, what to do.

import { createElement, replaceChildren } from "./dom.js";

/** A mistake in the user's input that the page itself detects. Errors of the service are `ApiError` in api.js. */
export class UserInputError extends Error {
  constructor({ title, expected, found, where, remedy }) {
    super(`Expected ${expected}; found ${found}. ${remedy}`);
    Object.assign(this, { title, expected, found, where, remedy });
  }
}

/** Shows an error in `container`; it replaces the error shown before. */
export function showError(container, error) {
  replaceChildren(container, renderError(error));
  container.scrollIntoView({ block: "nearest" });
}

export function clearErrors(container) {
  replaceChildren(container);
}

function renderError(error) {
  if (error instanceof UserInputError) {
    const details = { Expected: error.expected, Found: error.found, Where: error.where, "What to do": error.remedy };
    return renderMessage(error.title, null, details);
  }
  if (error.code !== undefined) {
    const details = { Where: error.where, Code: error.code, Request: error.requestId };
    return renderMessage(error.title, error.message, details);
  }
  console.error(error); // a bug in this page
  return renderMessage("Internal error of this page", `${error.name}: ${error.message}. `
    + "Reload the page; if the error persists, report it to the operator of this service.", {});
}

function renderMessage(title, text, details) {
  const entries = Object.entries(details).filter(([, value]) => value !== null && value !== undefined && value !== "");
  return createElement("div", { class: "message" },
    createElement("h2", {}, title),
    text === null ? null : createElement("p", {}, text),
    entries.length === 0 ? null : createElement("dl", {}, entries.map(([name, value]) =>
      [createElement("dt", {}, name), createElement("dd", {}, String(value))])),
  );
}

// Questions to the server that this page came from, with the key of this tab, and its errors as one kind of error.

const PLACE = "forecaster.key";
let kept = "";

/** An answer that is none: its code, message and place, and the request's id. */
export class Failure extends Error {
  constructor({ title, code, message, where, status, requestId, retryAfter }) {
    super(message);
    Object.assign(this, { title, code, where, status, requestId, retryAfter });
  }
}

/** The key of this tab; the session's storage forgets it when the tab is closed. */
export function key() {
  try {
    return sessionStorage.getItem(PLACE) ?? kept;
  } catch {
    return kept; // storage may be forbidden: it lasts as long as the page then
  }
}

export function keep(told) {
  kept = told;
  try {
    if (told === "") sessionStorage.removeItem(PLACE);
    else sessionStorage.setItem(PLACE, told);
  } catch {
    // see key()
  }
}

/** GET, or POST where there is a body: the answer's JSON, and its headers. Throws Failure; an AbortError goes through. */
export async function ask(path, { body, signal } = {}) {
  const headers = { accept: "application/json" };
  if (body !== undefined) headers["content-type"] = "application/json";
  if (key() !== "") headers.authorization = `Bearer ${key()}`;
  let answer, text;
  try {
    answer = await fetch(path, {
      method: body === undefined ? "GET" : "POST",
      headers, signal, body: body === undefined ? undefined : JSON.stringify(body),
      cache: "no-store", credentials: "omit", redirect: "error", referrerPolicy: "no-referrer",
    });
    text = await answer.text();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure({
      title: "The server cannot be reached", code: "unreachable", where: path,
      message: "Expected an answer; the connection failed. See whether the server runs, then try again.",
    });
  }
  const requestId = answer.headers.get("x-request-id");
  const content = parsed(text);
  if (answer.ok && content !== undefined) return { content, headers: answer.headers };
  const { code, message, where } = content?.error ?? {};
  throw new Failure({
    title: TITLES[code] ?? (answer.status >= 500 ? "The server has no answer" : "The server refused the request"),
    code: code ?? `http_${answer.status}`,
    message: message ?? `Expected JSON; found status ${answer.status} and something else. Is there a proxy between?`,
    where, status: answer.status, requestId, retryAfter: Number(answer.headers.get("retry-after")) || 1,
  });
}

const TITLES = {
  unauthorized: "This server asks for a key",
  forbidden: "This key is not for this",
  not_ready: "No model is in use yet",
  too_many_requests: "The server is busy",
  deadline_passed: "It took too long",
};

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

// Sends requests to the service this page came from, with the API key of this tab. All errors become ApiError.

const STORAGE_KEY = "forecaster.key";
let keyInMemory = "";

const ERROR_TITLES = {
  unauthorized: "API key required",
  forbidden: "API key lacks permission",
  not_ready: "No model is deployed yet",
  too_many_requests: "The service is busy",
  deadline_passed: "The request timed out",
};

/** A failed request: the error's code, message and `where` field, the HTTP status and the request id. */
export class ApiError extends Error {
  constructor({ title, code, message, where, status, requestId, retryAfter }) {
    super(message);
    Object.assign(this, { title, code, where, status, requestId, retryAfter });
  }
}

/** Returns the API key of this tab, or "". The session storage is cleared when the tab is closed. */
export function getApiKey() {
  try {
    return sessionStorage.getItem(STORAGE_KEY) ?? keyInMemory;
  } catch {
    return keyInMemory; // storage may be blocked; the key then lasts until the page is reloaded
  }
}

/** Stores the API key of this tab; "" removes it. */
export function setApiKey(key) {
  keyInMemory = key;
  try {
    if (key === "") sessionStorage.removeItem(STORAGE_KEY);
    else sessionStorage.setItem(STORAGE_KEY, key);
  } catch {
    // Storage is blocked: see getApiKey().
  }
}

/** Returns the URL of a path of the service, which may lie below a path of a proxy. */
export function serviceUrl(path = "") {
  return new URL(`..${path}`, import.meta.url).href.replace(/\/$/, "");
}

/**
 * Sends a GET request, or a POST request if there is a body; returns the JSON of the response and its headers.
 * Throws ApiError; an AbortError is passed on.
 */
export async function fetchJson(path, { body, signal } = {}) {
  const headers = { accept: "application/json" };
  if (body !== undefined) headers["content-type"] = "application/json";
  if (getApiKey() !== "") headers.authorization = `Bearer ${getApiKey()}`;
  let response, text;
  try {
    response = await fetch(serviceUrl(path), {
      method: body === undefined ? "GET" : "POST",
      headers, signal, body: body === undefined ? undefined : JSON.stringify(body),
      cache: "no-store", credentials: "omit", redirect: "error", referrerPolicy: "no-referrer",
    });
    text = await response.text();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError({
      title: "The service cannot be reached", code: "unreachable", where: path,
      message: "Expected a response; the connection failed. Check that the service is running, then try again.",
    });
  }
  const requestId = response.headers.get("x-request-id");
  const content = tryParseJson(text);
  if (response.ok && content !== undefined) return { content, headers: response.headers };
  const { code, message, where } = content?.error ?? {};
  throw new ApiError({
    title: ERROR_TITLES[code] ?? (response.status >= 500 ? "The service failed" : "The service rejected the request"),
    code: code ?? `http_${response.status}`,
    message: message ?? `Expected JSON; found another format, with status ${response.status}. `
      + "Check whether a proxy between this page and the service sent the response.",
    where, status: response.status, requestId, retryAfter: Number(response.headers.get("retry-after")) || 1,
  });
}

/** Returns the parsed JSON, or undefined if the text is not JSON. */
function tryParseJson(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

// Forecasts of any number of series, in requests that a server takes: smaller ones where it says that one was too large.

import { ask, Failure } from "./api.js";

const MOST = { series: 200, values: 100_000, numbers: 100_000 };
const TOO_MUCH = new Set(["too_many_series", "request_too_large", "answer_too_large", "body_too_large", "history_too_long", "invalid_request"]);
const PATIENCE = 5; // times that a busy server is asked again
const DIGITS = 4; // of a level: 0.025, not 0.025000000000000022

/** The levels whose quantiles bound bands that hold these shares. */
export function levelsOf(shares) {
  return [...new Set(shares.flatMap((share) => [(1 - share) / 2, (1 + share) / 2]).map((level) => Number(level.toFixed(DIGITS))))].sort((one, other) => one - other);
}

/** A series as a request has it. */
export function asked({ id, ds, y, freq }) {
  return freq === undefined ? { id, ds, y } : freq.start ? { id, start: ds[0], freq: freq.name, y } : { id, ds, y, freq: freq.name };
}

/**
 * Asks for the forecasts of all series and tells `part` of each answer: `{ model, outcomes: Map of id, took }`.
 *
 * Throws the Failure that concerns them all. What concerns one series becomes its outcome, `{ id, error }`.
 */
export async function forecastAll(series, { horizon, levels, signal, part }) {
  const waiting = parts(series, horizon * (1 + levels.length));
  while (waiting.length > 0) {
    const some = waiting.shift();
    try {
      part(await forecast(some, { horizon, levels, signal }), some.length);
    } catch (error) {
      if (!(error instanceof Failure) || !concernsSome(error, some)) throw error;
      if (some.length === 1) {
        const { code, message, where, requestId } = error;
        part({ model: null, outcomes: new Map([[some[0].id, { id: some[0].id, error: { code, message, where, requestId } }]]), took: 0 }, 1);
      } else {
        const half = Math.ceil(some.length / 2);
        waiting.unshift(some.slice(0, half), some.slice(half));
      }
    }
  }
}

function concernsSome(error, some) {
  if (TOO_MUCH.has(error.code)) return some.length > 1 || (error.where ?? "").startsWith("series") || error.code !== "invalid_request";
  return some.length === 1 && error.status === 422 && error.where === some[0].id;
}

async function forecast(some, { horizon, levels, signal }) {
  const body = { series: some.map(asked), horizon, levels };
  const began = performance.now();
  for (let time = 1; ; time += 1) {
    try {
      const { content, headers } = await ask("/v1/forecast", { body, signal });
      const outcomes = new Map(content.forecasts.map((one) => [one.id, one]));
      return { model: content.model, outcomes, took: performance.now() - began, requestId: headers.get("x-request-id") };
    } catch (error) {
      if (error.code !== "too_many_requests" || time === PATIENCE) throw error;
      await pause(error.retryAfter * 1000, signal);
    }
  }
}

function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    signal?.addEventListener("abort", () => { clearTimeout(timer); reject(signal.reason); }, { once: true });
  });
}

function parts(series, numbersEach) {
  const found = [];
  let some = [], values = 0;
  for (const one of series) {
    const full = some.length === MOST.series || values + one.y.length > MOST.values || (some.length + 1) * numbersEach > MOST.numbers;
    if (full && some.length > 0) {
      found.push(some);
      [some, values] = [[], 0];
    }
    some.push(one);
    values += one.y.length;
  }
  return [...found, some];
}

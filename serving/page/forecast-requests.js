// Requests forecasts of any number of series in batches. A batch that the service rejects as too large is halved.

import { ApiError, fetchJson } from "./api.js";

const REQUEST_LIMITS = { series: 200, values: 100_000, numbers: 100_000 }; // `numbers` counts those of the response
const SIZE_ERROR_CODES = new Set(["too_many_series", "request_too_large", "answer_too_large", "body_too_large",
  "history_too_long", "invalid_request"]);
const MAX_ATTEMPTS = 5; // requests to a busy service
const LEVEL_DIGITS = 4; // rounds a level to 0.025 instead of 0.025000000000000022

/** Returns the lower and upper level of the central interval with this coverage: 0.8 -> [0.1, 0.9]. */
export function levelsOfInterval(coverage) {
  return [(1 - coverage) / 2, (1 + coverage) / 2].map((level) => Number(level.toFixed(LEVEL_DIGITS)));
}

/** Returns the levels of the quantiles that bound the intervals with these coverages, in ascending order. */
export function levelsForCoverages(coverages) {
  return [...new Set(coverages.flatMap(levelsOfInterval))].sort((left, right) => left - right);
}

/** Returns a series in the form of a request. */
export function toRequestSeries({ id, ds, y, freq, season }) {
  const declared = season === undefined ? {} : { season };
  if (freq === undefined) return { id, ds, y, ...declared };
  return freq.sendsStart ? { id, start: ds[0], freq: freq.alias, ...declared, y } : { id, ds, y, freq: freq.alias, ...declared };
}

/**
 * Requests the forecasts of all series. Calls `onBatch(batch, count)` after each batch of `count` series; `batch` is
 * `{ model, results: Map from id to forecast or { id, error }, durationMs }`.
 *
 * Throws ApiError if the error concerns all series. An error of one series becomes the result of that series.
 */
export async function forecastAll(series, { horizon, levels, signal, onBatch }) {
  const queue = splitIntoBatches(series, horizon * (1 + levels.length));
  while (queue.length > 0) {
    const batch = queue.shift();
    try {
      onBatch(await requestForecast(batch, { horizon, levels, signal }), batch.length);
    } catch (error) {
      if (!(error instanceof ApiError) || !isBatchError(error, batch)) throw error;
      if (batch.length === 1) {
        const [{ id }] = batch;
        const { code, message, where, requestId } = error;
        onBatch({ model: null, results: new Map([[id, { id, error: { code, message, where, requestId } }]]), durationMs: 0 }, 1);
      } else {
        const half = Math.ceil(batch.length / 2);
        queue.unshift(batch.slice(0, half), batch.slice(half));
      }
    }
  }
}

/** Whether an error concerns this batch (its size, or its only series) rather than all requests. */
function isBatchError(error, batch) {
  if (SIZE_ERROR_CODES.has(error.code)) {
    return batch.length > 1 || (error.where ?? "").startsWith("series") || error.code !== "invalid_request";
  }
  return batch.length === 1 && error.status === 422 && error.where === batch[0].id;
}

/** Requests the forecasts of one batch; waits and retries while the service is busy. */
async function requestForecast(batch, { horizon, levels, signal }) {
  const body = { series: batch.map(toRequestSeries), horizon, levels };
  const start = performance.now();
  for (let attempt = 1; ; attempt += 1) {
    try {
      const { content, headers } = await fetchJson("/v1/forecast", { body, signal });
      const results = new Map(content.forecasts.map((forecast) => [forecast.id, forecast]));
      return { model: content.model, results, durationMs: performance.now() - start, requestId: headers.get("x-request-id") };
    } catch (error) {
      if (error.code !== "too_many_requests" || attempt === MAX_ATTEMPTS) throw error;
      await delay(error.retryAfter * 1000, signal);
    }
  }
}

function delay(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    signal?.addEventListener("abort", () => { clearTimeout(timer); reject(signal.reason); }, { once: true });
  });
}

function splitIntoBatches(series, numbersPerSeries) {
  const batches = [];
  let batch = [], values = 0;
  for (const item of series) {
    const isFull = batch.length === REQUEST_LIMITS.series || values + item.y.length > REQUEST_LIMITS.values
      || (batch.length + 1) * numbersPerSeries > REQUEST_LIMITS.numbers;
    if (isFull && batch.length > 0) {
      batches.push(batch);
      [batch, values] = [[], 0];
    }
    batch.push(item);
    values += item.y.length;
  }
  return [...batches, batch];
}

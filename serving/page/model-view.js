// The view of the deployed model: its model card, its backtest scores and its live accuracy.

import { buildAccuracyElements } from "./accuracy-view.js";
import { ApiError, fetchJson } from "./api.js";
import { byId, createElement, replaceChildren } from "./dom.js";
import { clearErrors, showError } from "./error-messages.js";
import { buildTable } from "./tables.js";
import { formatTimestamp, stepName } from "./timestamps.js";

const METRIC_TITLES = { mase: "MASE", rmsse: "RMSSE", smape: "sMAPE", mae: "MAE" };

/**
 * Returns the last step ahead up to which the model was at least as accurate as seasonal naive in its backtest; null if
 * unknown.
 */
export function getReliableHorizon(modelInfo) {
  const horizon = modelInfo?.model?.reliable_horizon ?? modelInfo?.reliable_horizon ?? modelInfo?.facts?.reliable_horizon;
  return Number.isInteger(horizon) ? horizon : null;
}

/** Loads the model and its live accuracy, and shows both. */
export async function showModel() {
  const body = byId("model-body"), messages = byId("model-messages");
  body.setAttribute("aria-busy", "true");
  try {
    const [{ content: modelInfo }, accuracy] = await Promise.all([fetchJson("/v1/model"), loadAccuracyElements()]);
    clearErrors(messages);
    replaceChildren(body,
      createElement("div", { class: "model-grid" },
        createElement("div", {}, renderCard(modelInfo)),
        createElement("div", {}, renderBacktestScores(modelInfo), section("Live accuracy", accuracy))));
  } catch (error) {
    replaceChildren(body);
    showError(messages, error);
  } finally {
    body.setAttribute("aria-busy", "false");
  }
}

const section = (title, ...content) => createElement("section", { class: "card" }, createElement("h2", {}, title), content);

/** Returns the elements of the live accuracy, or a note why it is not available. */
async function loadAccuracyElements() {
  try {
    return buildAccuracyElements((await fetchJson("/v1/accuracy")).content);
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    const notRecorded = "This service does not record its forecasts, so their accuracy cannot be measured.";
    const notPermitted = "This API key may not read the accuracy of served forecasts.";
    const notes = { ledger_off: notRecorded, not_found: notRecorded, forbidden: notPermitted };
    return [createElement("p", { class: "empty-note" }, notes[error.code] ?? `Live accuracy is not available: ${error.message}`)];
  }
}

/** Returns the model card from the fields of `GET /v1/model`. A fact that the bundle does not record is omitted. */
function renderCard(modelInfo) {
  const { model, spec, freq, season, cutoff, facts, age_s: age } = modelInfo;
  const network = spec.network ?? {};
  const entries = {
    Model: `${model.name}, version ${model.version}`,
    Digest: renderDigest(model.digest),
    Network: network.cell === undefined ? null : `${network.cell.toUpperCase()}, ${network.layers} × ${network.hidden}`,
    Blend: describeBlend(model.blend, facts.blend?.chosen),
    "Training data": facts.data ?? null,
    "Data digest": renderDigest(facts.data_digest),
    Series: describeSeries(facts),
    "Training cutoff": cutoff === null ? "none: it was trained on synthetic series only" : formatCutoff(cutoff),
    "Training steps": Number.isInteger(facts.steps) ? `${facts.steps}, seed ${spec.training?.seed}` : null,
    Frequency: freq === null ? "any: each series keeps its own" : `${stepName(freq)} (${freq})`,
    Season: season === null ? "that of the request, or the usual one of the frequency" : `${season} steps`,
    Context: freq === null ? null : `${spec.context} steps`,
    "Shortest history": `${modelInfo.min_history} steps`,
    "Backtest windows": facts.test_windows || null,
    "Evaluated horizon": freq === null ? null : `${spec.horizon} steps; longer forecasts were never scored`,
    "Reliable horizon": describeReliableHorizon(getReliableHorizon(modelInfo)),
    "Prediction intervals": describeIntervals(modelInfo),
    "Deployed for": formatDuration(age),
  };
  const rows = Object.entries(entries).filter(([, value]) => value !== null).map(([name, value]) =>
    createElement("div", {}, createElement("dt", {}, name), createElement("dd", {}, value)));
  const specification = createElement("details", {}, createElement("summary", {}, "Full specification"),
    createElement("pre", { tabindex: "0" }, createElement("code", {}, JSON.stringify(spec, null, 1))));
  return section("Model card", createElement("dl", { class: "facts" }, rows), specification);
}

function formatCutoff(cutoff) {
  return /^-?\d+$/.test(cutoff) ? cutoff : formatTimestamp(cutoff.slice(0, 19), false);
}

function renderDigest(digest) {
  return typeof digest === "string" ? createElement("code", { title: digest }, digest.slice(0, 12)) : null;
}

function describeSeries({ series, left_out: omitted }) {
  if (!Number.isInteger(series)) return null;
  return omitted ? `${series} (${omitted} more were too short)` : `${series}`;
}

function describeIntervals({ calibration, intervals }) {
  if (intervals === "network") return "the quantiles of the network itself, without a calibration on your data";
  if (calibration === null) return "none: the model was not calibrated and gives point forecasts only";
  if (calibration.basis === "assumed") return "calibrated without any observed error: do not trust them";
  const method = calibration.basis === "ranks" ? "the ranks of the errors" : "the spread of few errors";
  return `calibrated from ${method} on ${calibration.windows} windows; valid while future errors resemble these`;
}

function describeReliableHorizon(horizon) {
  if (horizon === null) return null;
  if (horizon === 0) return "none (less accurate than seasonal naive)";
  return `step ${horizon} (at least as accurate as seasonal naive)`;
}

const BLEND_REASONS = {
  network: "the network alone was as good as a blend",
  equal: "better than the network alone, and no other weights were clearly better",
  optimal: "clearly better than the network alone and than equal weights",
};

function describeBlend(weights, chosen) {
  if (!weights || Object.keys(weights).length === 0) return null;
  const shares = Object.entries(weights).map(([name, weight]) => `${Math.round(weight * 100)}% ${name}`).join(", ");
  return BLEND_REASONS[chosen] === undefined ? shares : `${shares} (on the validation windows: ${BLEND_REASONS[chosen]})`;
}

function renderBacktestScores({ facts, freq }) {
  const backtest = facts.backtest ?? {};
  if (Object.keys(backtest).length === 0) {
    const note = freq === null
      ? "The pretrained network has no scores on your data. POST /v1/backtest measures it on histories that you send."
      : "This model has no backtest scores: it was trained on all data.";
    return section("Backtest", createElement("p", { class: "empty-note" }, note));
  }
  const metrics = [...new Set(Object.values(backtest).flatMap((scores) => Object.keys(scores)))];
  const header = ["Model", ...metrics.map((metric) => METRIC_TITLES[metric] ?? metric)];
  const rows = Object.entries(backtest).map(([name, scores]) => {
    const title = name === "challenger" ? "this model" : name.replaceAll("_", " ");
    return [title, ...metrics.map((metric) => scores[metric] ?? null)];
  });
  return section("Backtest",
    createElement("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Scores of the backtest" },
      buildTable("Errors on windows after the training data; lower is better", header, rows)));
}

/** Formats a duration in its largest unit: "2 hours". */
function formatDuration(seconds) {
  const units = [[86400, "day"], [3600, "hour"], [60, "minute"], [1, "second"]];
  const [length, name] = units.find(([unitSeconds]) => seconds >= unitSeconds) ?? [1, "second"];
  const count = Math.floor(seconds / length);
  return `${count} ${name}${count === 1 ? "" : "s"}`;
}

// The view of the deployed model: its properties, its model card, its backtest scores and its live accuracy.

import { buildAccuracyElements } from "./accuracy-view.js";
import { ApiError, fetchJson } from "./api.js";
import { byId, createElement, replaceChildren } from "./dom.js";
import { clearErrors, showError } from "./error-messages.js";
import { renderMarkdown } from "./markdown.js";
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
    const card = createElement("article", { class: "card prose", "aria-label": "Model card" }, renderMarkdown(modelInfo.card, 2));
    replaceChildren(body,
      createElement("div", { class: "model-grid" },
        createElement("div", {}, renderFacts(modelInfo), card),
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

function renderFacts(modelInfo) {
  const { model, spec, freq, season, cutoff, age_s: age } = modelInfo;
  const network = spec.network ?? {};
  const reliableHorizon = getReliableHorizon(modelInfo);
  const hasBlend = model.blend && Object.keys(model.blend).length > 0;
  const facts = {
    Model: `${model.name}, version ${model.version}`,
    Digest: createElement("code", { title: model.digest }, model.digest.slice(0, 12)),
    Frequency: `${stepName(freq)} (${freq})`,
    "Training cutoff": /^-?\d+$/.test(cutoff) ? cutoff : formatTimestamp(cutoff.slice(0, 19), false),
    Season: `${season} steps`,
    Context: `${spec.context} steps`,
    "Evaluated horizon": `${spec.horizon} steps`,
    "Reliable horizon": describeReliableHorizon(reliableHorizon),
    Network: network.cell === undefined ? null : `${network.cell.toUpperCase()}, ${network.layers} × ${network.hidden}`,
    Blend: hasBlend ? describeBlend(model.blend) : null,
    "Deployed for": formatDuration(age),
  };
  const entries = Object.entries(facts).filter(([, value]) => value !== null);
  return section("Properties", createElement("dl", { class: "facts" }, entries.map(([name, value]) =>
    createElement("div", {}, createElement("dt", {}, name), createElement("dd", {}, value)))));
}

function describeReliableHorizon(horizon) {
  if (horizon === null) return null;
  if (horizon === 0) return "none (less accurate than seasonal naive)";
  return `step ${horizon} (at least as accurate as seasonal naive)`;
}

function describeBlend(weights) {
  return Object.entries(weights).map(([name, weight]) => `${Math.round(weight * 100)}% ${name}`).join(", ");
}

function renderBacktestScores({ facts }) {
  const backtest = facts?.backtest;
  if (backtest === null || backtest === undefined || typeof backtest !== "object") {
    const note = "This model has no backtest scores; its model card may state why.";
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

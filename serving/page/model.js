// The second view: which model is in use, how it did in its backtest and since, and its card.

import { accuracyOf } from "./accuracy.js";
import { ask, Failure } from "./api.js";
import { byId, make, put } from "./dom.js";
import { elementsOf } from "./markdown.js";
import { clear, tell } from "./messages.js";
import { stepName, told as stampTold } from "./stamps.js";
import { tableOf } from "./tables.js";

/** What a model was proved for: the last step ahead that was not worse than seasonal naive; null where nobody looked. */
export function reliableOf(told) {
  const found = told?.model?.reliable_horizon ?? told?.reliable_horizon ?? told?.facts?.reliable_horizon;
  return Number.isInteger(found) ? found : null;
}

/** Asks for all of it and shows it. */
export async function showModel() {
  const body = byId("model-body"), messages = byId("model-messages");
  body.setAttribute("aria-busy", "true");
  try {
    const [{ content }, accuracy] = await Promise.all([ask("/v1/model"), accuracyPart()]);
    clear(messages);
    put(body,
      make("div", { class: "model-grid" },
        make("div", {}, facts(content), make("article", { class: "card prose", "aria-label": "Model card" }, elementsOf(content.card, 2))),
        make("div", {}, scores(content), make("section", { class: "card" }, make("h2", {}, "Since it serves"), accuracy))));
  } catch (error) {
    put(body);
    tell(messages, error);
  } finally {
    body.setAttribute("aria-busy", "false");
  }
}

async function accuracyPart() {
  try {
    return accuracyOf((await ask("/v1/accuracy")).content);
  } catch (error) {
    if (!(error instanceof Failure)) throw error;
    const off = "This server keeps no record of its forecasts, so that there is nothing to score.";
    const closed = "This key may not see how the served forecasts did.";
    const text = { ledger_off: off, not_found: off, forbidden: closed }[error.code] ?? `Not to be had now: ${error.message}`;
    return [make("p", { class: "calm" }, text)];
  }
}

function facts(content) {
  const { model, spec, freq, season, cutoff, age_s: age } = content;
  const network = spec.network ?? {};
  const reliable = reliableOf(content);
  const rows = {
    Model: `${model.name}, version ${model.version}`,
    Digest: make("code", { title: model.digest }, model.digest.slice(0, 12)),
    Frequency: `${stepName(freq)} (${freq})`,
    "Learned up to": /^-?\d+$/.test(cutoff) ? cutoff : stampTold(cutoff.slice(0, 19), false),
    Season: `${season} steps`,
    Reads: `${spec.context} steps`,
    "Scored up to": `${spec.horizon} steps ahead`,
    Proved: reliable === null ? null : reliable === 0 ? "not as good as seasonal naive" : `at least as good as seasonal naive up to step ${reliable}`,
    Network: network.cell === undefined ? null : `${network.cell.toUpperCase()}, ${network.layers} × ${network.hidden}`,
    Blend: model.blend && Object.keys(model.blend).length > 0 ? Object.entries(model.blend).map(([name, weight]) => `${Math.round(weight * 100)} % ${name}`).join(", ") : null,
    "In use for": duration(age),
  };
  return make("section", { class: "card" }, make("h2", {}, "What it is"), make("dl", { class: "facts" },
    Object.entries(rows).filter(([, value]) => value !== null).map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value)))));
}

function scores({ facts: found }) {
  const backtest = found?.backtest;
  if (backtest === null || backtest === undefined || typeof backtest !== "object") {
    return make("section", { class: "card" }, make("h2", {}, "Backtest"), make("p", { class: "calm" }, "No scores came with this model; its card may say why."));
  }
  const names = [...new Set(Object.values(backtest).flatMap((one) => Object.keys(one)))];
  const title = { mase: "MASE", rmsse: "RMSSE", smape: "sMAPE", mae: "MAE" };
  const rows = Object.entries(backtest).map(([who, one]) => [who === "challenger" ? "this model" : who.replaceAll("_", " "), ...names.map((name) => one[name] ?? null)]);
  return make("section", { class: "card" }, make("h2", {}, "Backtest"),
    make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Scores of the backtest" },
      tableOf("Errors on windows after its training; lower is better", ["Forecaster", ...names.map((name) => title[name] ?? name)], rows)));
}

function duration(seconds) {
  const [size, name] = [[86400, "day"], [3600, "hour"], [60, "minute"], [1, "second"]].find(([one]) => seconds >= one) ?? [1, "second"];
  const many = Math.floor(seconds / size);
  return `${many} ${name}${many === 1 ? "" : "s"}`;
}

// How good the forecasts were that this server gave: its error at each step ahead, as bars and as a table.

import { told, valueFormat, valueTicks } from "./axes.js";
import { percent } from "./chart.js";
import { draw, make } from "./dom.js";
import { tableOf } from "./tables.js";
import { told as stampTold } from "./stamps.js";

const WIDTH = 640, HEIGHT = 220, LEFT = 56, BOTTOM = 40, TOP = 12;

/** The elements that tell an answer of GET /v1/accuracy. */
export function accuracyOf(content) {
  const { overall, by_horizon: steps = [], forecasts, scored } = content;
  if (!scored || steps.length === 0) {
    return [make("p", { class: "calm" }, forecasts > 0
      ? `${told(forecasts)} forecasts were kept; none can be scored yet. Send what came to POST /v1/actuals.`
      : "No forecasts were kept yet. They are scored as soon as what came is sent to POST /v1/actuals.")];
  }
  const measure = steps.every((step) => typeof step.mase === "number") ? "mase" : "mae";
  const name = measure === "mase" ? "MASE" : "Mean absolute error";
  const shares = Object.keys(overall.coverage ?? {});
  const period = [content.since, content.until].filter(Boolean).map((stamp) => String(stamp).slice(0, 10).split("-").length === 3 ? stampTold(String(stamp).slice(0, 10), false) : String(stamp)).join(" to ");
  const row = (title, one) => [title, one.n, one.mae, one.bias, one.mase, ...shares.map((share) => (typeof one.coverage?.[share] === "number" ? percent(one.coverage[share]) : null))];
  return [
    make("p", {}, `${told(scored)} of ${told(forecasts)} forecasts were held against what came${period === "" ? "" : `, ${period}`}.`),
    make("figure", {}, make("figcaption", {}, `${name} by step ahead; lower is better`), bars(steps.map((one) => [one.step, one[measure]]))),
    make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Accuracy by step ahead as a table" },
      tableOf("Accuracy by step ahead", ["Step", "Scored", "MAE", "Bias", "MASE", ...shares.map((share) => `Within ${percent(Number(share))} band`)],
        [row("all", overall), ...steps.map((one) => row(String(one.step), one))])),
  ];
}

function bars(pairs) {
  const most = Math.max(...pairs.map(([, value]) => value ?? 0)) || 1;
  const { step } = valueTicks(0, most, 4);
  const top = Math.ceil(most / step - 1e-9) * step;
  const { ticks } = valueTicks(0, top, top / step);
  const format = valueFormat(ticks, step);
  const width = (WIDTH - LEFT - 8) / pairs.length;
  const y = (value) => HEIGHT - BOTTOM - (value / top) * (HEIGHT - BOTTOM - TOP);
  const every = Math.ceil(28 / width);
  return draw("svg", { class: "plot bars", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": "Bars of the error by step ahead; the table below has the numbers" },
    ticks.map((tick) => [
      draw("line", { class: "rule", x1: LEFT, x2: WIDTH - 8, y1: y(tick), y2: y(tick) }),
      draw("text", { class: "tick", x: LEFT - 8, y: y(tick) + 4, "text-anchor": "end" }, format(tick)),
    ]).flat(),
    pairs.map(([number, value], place) => {
      const x = LEFT + place * width, gap = Math.min(6, width * 0.2);
      return [
        value === null || value === undefined ? null : draw("rect", { class: "bar", x: x + gap / 2, width: Math.max(0.5, width - gap), y: y(value), height: y(0) - y(value), rx: 2 },
          draw("title", {}, `step ${number}: ${told(value)}`)),
        place % every === 0 ? draw("text", { class: "tick", x: x + width / 2, y: HEIGHT - BOTTOM + 17, "text-anchor": "middle" }, String(number)) : null,
      ];
    }).flat(),
    draw("text", { class: "tick sub", x: WIDTH - 8, y: HEIGHT - 4, "text-anchor": "end" }, "steps ahead"),
  );
}

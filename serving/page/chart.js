// History, forecast and bands as SVG; read with the pointer, or with the arrow keys where it has the focus.

import { stampTicks, told as number, valueFormat, valueTicks } from "./axes.js";
import { draw, make, put } from "./dom.js";
import { areaPath, linePath } from "./paths.js";
import { told as stampTold } from "./stamps.js";

const MARGIN = { top: 26, right: 18, bottom: 44 };
const LETTER = 7.2; // pixels of a digit on the axis

/** One drawing that can be shown another picture. */
export class Chart {
  constructor(place) {
    this.svg = draw("svg", { class: "plot", "aria-hidden": "true", focusable: "false" });
    this.tip = make("div", { class: "tip", "aria-hidden": "true", hidden: true });
    this.live = make("p", { class: "sr", id: "chart-live", "aria-live": "polite" });
    this.box = make("div", { class: "chart", id: "chart-box", tabindex: "0", role: "application", "aria-roledescription": "chart",
      "aria-describedby": "chart-keys" }, this.svg, this.tip);
    this.legend = make("ul", { class: "legend" });
    put(place, this.box, this.live, this.legend,
      make("p", { class: "sr", id: "chart-keys" }, "Arrow keys read value by value, page keys by ten, Home and End go to the ends, Escape leaves."));
    this.picture = null;
    this.at = null;
    this.box.addEventListener("pointermove", (event) => this.point(event));
    this.box.addEventListener("pointerdown", (event) => this.point(event));
    this.box.addEventListener("pointerleave", () => this.choose(null));
    this.box.addEventListener("blur", () => this.choose(null));
    this.box.addEventListener("keydown", (event) => this.press(event));
    new ResizeObserver(() => {
      if (this.picture !== null && this.box.clientWidth !== this.width) this.render();
    }).observe(this.box);
  }

  /**
   * Shows a picture: `{ title, past: { ds, y }, next: { ds, mean, bands: [{ share, lower, upper }] } | null, reliable }`.
   * `past` is what of the history is to be seen; `reliable` the last step that was proved, or null.
   */
  show(picture) {
    this.picture = picture;
    this.stamps = [...picture.past.ds, ...(picture.next?.ds ?? [])];
    this.begin = picture.past.ds.length; // the first step ahead
    this.fine = this.stamps.some((stamp) => typeof stamp === "string" && /[T ](?!00:00(:00)?($|[Z+-]))/.test(stamp));
    this.at = null;
    const ahead = picture.next === null ? "" : `, then ${picture.next.ds.length} steps of forecast`;
    this.box.setAttribute("aria-label", `${picture.title}: ${this.begin} values of history${ahead}`);
    this.render();
  }

  render() {
    const { past, next, reliable } = this.picture;
    this.width = Math.max(260, this.box.clientWidth);
    this.height = this.width < 560 ? 280 : 380;
    const [lo, hi] = extent(past, next);
    const { ticks, step } = valueTicks(lo, hi, this.height < 300 ? 4 : 6);
    const format = valueFormat(ticks, step);
    const left = 14 + LETTER * Math.max(...ticks.map((tick) => format(tick).length));
    const right = this.width - MARGIN.right, bottom = this.height - MARGIN.bottom;
    const last = Math.max(1, this.stamps.length - 1);
    this.x = (place) => left + (place / last) * (right - left);
    this.y = (value) => bottom - ((value - lo) / (hi - lo)) * (bottom - MARGIN.top);
    this.sides = { left, right, bottom };
    this.cross = draw("g", { class: "cross", visibility: "hidden" });
    this.svg.setAttribute("viewBox", `0 0 ${this.width} ${this.height}`);
    put(this.svg,
      draw("g", { class: "grid" }, ticks.map((tick) => [
        draw("line", { class: "rule", x1: left, x2: right, y1: this.y(tick), y2: this.y(tick) }),
        draw("text", { class: "tick", x: left - 8, y: this.y(tick) + 4, "text-anchor": "end" }, format(tick)),
      ]).flat()),
      this.stampAxis(),
      next === null ? null : this.ahead(next, past, reliable),
      draw("path", { class: "past", d: linePath(past.y, this.x, this.y) }),
      this.cross,
    );
    this.tellLegend(next);
    this.choose(this.at);
  }

  stampAxis() {
    const { left, right, bottom } = this.sides;
    const ticks = stampTicks(this.stamps, right - left);
    let free = -Infinity; // where the label before ends
    return draw("g", {}, draw("line", { class: "base", x1: left, x2: right, y1: bottom, y2: bottom }), ticks.map(({ place, main, sub }) => {
      const x = this.x(place), half = (LETTER * Math.max(main.length, sub.length)) / 2;
      const anchor = x + half > this.width ? "end" : x - half < 0 ? "start" : "middle";
      const begins = x - half;
      if (begins < free) return null;
      free = x + half + 4;
      return [
        draw("line", { class: "base", x1: x, x2: x, y1: bottom, y2: bottom + 5 }),
        draw("text", { class: "tick", x, y: bottom + 19, "text-anchor": anchor }, main),
        sub === "" ? null : draw("text", { class: "tick sub", x, y: bottom + 35, "text-anchor": anchor }, sub),
      ];
    }).flat());
  }

  ahead(next, past, reliable) {
    const { right, bottom } = this.sides;
    const from = Math.max(0, this.begin - 1), now = this.x(from);
    const known = past.y.at(-1) ?? null;
    const joined = (values) => (known === null ? values : [known, ...values]);
    const x = (place) => this.x(this.begin + place - (known === null ? 0 : 1));
    const wide = [...next.bands].sort((one, other) => other.share - one.share);
    const roomy = right - now > 70;
    const proved = reliable !== null && reliable > 0 && reliable < next.mean.length ? this.x(this.begin + reliable - 1) : null;
    return draw("g", {},
      draw("rect", { class: "zone", x: now, y: MARGIN.top, width: Math.max(0, right - now), height: bottom - MARGIN.top }),
      wide.map((band) => draw("path", { class: `band band-${rank(band, next.bands)}`, d: areaPath(joined(band.lower), joined(band.upper), x, this.y) })),
      draw("line", { class: "now", x1: now, x2: now, y1: MARGIN.top - (roomy ? 12 : 0), y2: bottom }),
      proved === null ? null : draw("line", { class: "proved", x1: proved, x2: proved, y1: MARGIN.top, y2: bottom }),
      draw("text", { class: "zone-name", x: roomy ? now + 8 : right, y: MARGIN.top - 8, "text-anchor": roomy ? "start" : "end" }, "forecast"),
      draw("path", { class: "next", d: linePath(joined(next.mean), x, this.y) }),
    );
  }

  tellLegend(next) {
    const entries = [make("li", {}, make("span", { class: "key key-past" }), "history")];
    if (next !== null) {
      entries.push(make("li", {}, make("span", { class: "key key-next" }), "forecast"));
      for (const band of next.bands) {
        entries.push(make("li", {}, make("span", { class: `key key-band band-${rank(band, next.bands)}` }), `${percent(band.share)} band`));
      }
      const { reliable } = this.picture;
      if (reliable !== null && reliable > 0 && reliable < next.mean.length) {
        entries.push(make("li", {}, make("span", { class: "key key-proved" }), `as good as seasonal naive up to step ${reliable}`));
      }
    }
    put(this.legend, entries);
  }

  point(event) {
    if (this.picture === null) return;
    const { left, right } = this.sides;
    const box = this.svg.getBoundingClientRect();
    const share = (((event.clientX - box.left) / box.width) * this.width - left) / (right - left);
    this.choose(Math.round(Math.min(1, Math.max(0, share)) * (this.stamps.length - 1)));
  }

  press(event) {
    if (this.picture === null || event.altKey || event.ctrlKey || event.metaKey) return;
    const end = this.stamps.length - 1;
    const here = this.at ?? Math.min(end, this.begin) - (event.key === "ArrowRight" ? 1 : 0);
    const wanted = { ArrowLeft: here - 1, ArrowRight: here + 1, PageUp: here - 10, PageDown: here + 10, Home: 0, End: end, Escape: null }[event.key];
    if (wanted === undefined) return;
    event.preventDefault();
    this.choose(wanted === null ? null : Math.min(end, Math.max(0, wanted)));
    this.live.textContent = wanted === null ? "" : this.reading(this.at).map(([name, value]) => (value === null ? name : `${name} ${value}`)).join(", ");
  }

  /** What stands at a place: pairs of name and value, the stamp first. */
  reading(place) {
    const { past, next } = this.picture;
    const stamp = [stampTold(this.stamps[place], this.fine), null];
    if (place < this.begin) return [stamp, past.y[place] === null ? ["not observed", null] : ["observed", number(past.y[place])]];
    const step = place - this.begin;
    const bands = next.bands.map(({ share, lower, upper }) => [percent(share), `${number(lower[step])} to ${number(upper[step])}`]);
    return [stamp, ["forecast", number(next.mean[step])], ...bands, ["step", String(step + 1)]];
  }

  choose(place) {
    this.at = place;
    this.cross.setAttribute("visibility", place === null ? "hidden" : "visible");
    this.tip.hidden = place === null;
    if (place === null) return;
    const { past, next } = this.picture;
    const x = this.x(place), value = place < this.begin ? past.y[place] : next.mean[place - this.begin];
    put(this.cross, draw("line", { x1: x, x2: x, y1: MARGIN.top, y2: this.sides.bottom }),
      value === null ? null : draw("circle", { cx: x, cy: this.y(value), r: 4.5, class: place < this.begin ? "dot-past" : "dot-next" }));
    const [[when], ...rows] = this.reading(place);
    put(this.tip, make("strong", {}, when), rows.map(([name, told]) => make("span", {}, make("span", {}, name), told === null ? null : make("b", {}, told))));
    const scale = this.box.clientWidth / this.width, at = x * scale, width = this.tip.offsetWidth;
    const shift = at + 14 + width > this.box.clientWidth ? at - 14 - width : at + 14;
    const { bottom } = this.sides; // out of the way of what is pointed at
    const high = value === null || this.y(value) > (MARGIN.top + bottom) / 2;
    const drop = high ? MARGIN.top * scale : bottom * scale - this.tip.offsetHeight - 8;
    this.tip.style.transform = `translate(${Math.max(0, shift)}px, ${drop}px)`;
  }
}

export const percent = (share) => `${Number((share * 100).toFixed(1))} %`;

/** How wide a band is among those shown: 0 for the narrowest. */
function rank(band, bands) {
  return bands.filter((one) => one.share < band.share).length;
}

/** From the least to the largest value that is shown, with some room; from zero where that is not far. */
function extent(past, next) {
  let lo = Infinity, hi = -Infinity;
  for (const values of [past.y, next?.mean ?? [], ...(next?.bands ?? []).flatMap((band) => [band.lower, band.upper])]) {
    for (const value of values) {
      if (value === null) continue;
      lo = Math.min(lo, value);
      hi = Math.max(hi, value);
    }
  }
  if (lo > hi) return [0, 1];
  if (lo === hi) return lo === 0 ? [-1, 1] : [lo - Math.abs(lo) * 0.1, hi + Math.abs(hi) * 0.1];
  const room = (hi - lo) * 0.06;
  return [lo >= 0 && lo < 0.3 * hi ? 0 : lo - room, hi + room];
}

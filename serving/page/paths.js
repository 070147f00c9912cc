// Lines and areas of a drawing, as the text that SVG reads; a line of very many points is drawn as its outline.

const MOST = 3000; // points that are drawn one by one

const text = (number) => String(Math.round(number * 10) / 10);

/** A line through values at places 0, 1, ...; null breaks it, and a value alone is a dot. */
export function linePath(values, x, y) {
  if (values.length > MOST) return outline(values, x, y);
  let path = "";
  for (let place = 0; place < values.length; place += 1) {
    if (values[place] === null) continue;
    const goesOn = place > 0 && values[place - 1] !== null;
    path += `${goesOn ? "L" : "M"}${text(x(place))} ${text(y(values[place]))}`;
    const alone = !goesOn && (place + 1 === values.length || values[place + 1] === null);
    if (alone) path += "h.01"; // with a round cap
  }
  return path;
}

/** The area between two lines. */
export function areaPath(lower, upper, x, y) {
  const above = upper.map((value, place) => `${place === 0 ? "M" : "L"}${text(x(place))} ${text(y(value))}`);
  const below = lower.map((value, place) => `L${text(x(place))} ${text(y(value))}`).reverse();
  return `${above.join("")}${below.join("")}Z`;
}

/** For each pixel column the first, least, largest and last value, in the order in which they come. */
function outline(values, x, y) {
  let path = "", place = 0, open = false;
  while (place < values.length) {
    const column = Math.floor(x(place));
    let least = -1, largest = -1;
    const from = place;
    for (; place < values.length && Math.floor(x(place)) === column; place += 1) {
      if (values[place] === null) continue;
      if (least < 0 || values[place] < values[least]) least = place;
      if (largest < 0 || values[place] > values[largest]) largest = place;
    }
    if (least < 0) { open = false; continue; }
    const kept = [...new Set([from, least, largest, place - 1])].filter((one) => values[one] !== null).sort((one, other) => one - other);
    for (const one of kept) {
      path += `${open ? "L" : "M"}${text(x(one))} ${text(y(values[one]))}`;
      open = true;
    }
  }
  return path;
}

// Builds the SVG path data of lines and areas. A line of very many points is reduced to its envelope.

const MAX_POINTS = 3000; // a longer line is drawn as its envelope

const formatCoordinate = (number) => String(Math.round(number * 10) / 10);

/** Returns the path through the values at x = 0, 1, ...; null interrupts the line, an isolated value becomes a dot. */
export function linePath(values, x, y) {
  if (values.length > MAX_POINTS) return envelopePath(values, x, y);
  let path = "";
  for (let index = 0; index < values.length; index += 1) {
    if (values[index] === null) continue;
    const continues = index > 0 && values[index - 1] !== null;
    path += `${continues ? "L" : "M"}${formatCoordinate(x(index))} ${formatCoordinate(y(values[index]))}`;
    const isIsolated = !continues && (index + 1 === values.length || values[index + 1] === null);
    if (isIsolated) path += "h.01"; // the round line cap makes it a dot
  }
  return path;
}

/** Returns the path of the area between two lines. */
export function areaPath(lower, upper, x, y) {
  const point = (value, index) => `${formatCoordinate(x(index))} ${formatCoordinate(y(value))}`;
  const above = upper.map((value, index) => `${index === 0 ? "M" : "L"}${point(value, index)}`);
  const below = lower.map((value, index) => `L${point(value, index)}`).reverse();
  return `${above.join("")}${below.join("")}Z`;
}

/** Returns a path through the first, smallest, largest and last value of each pixel column, in order of time. */
function envelopePath(values, x, y) {
  let path = "", index = 0, isOpen = false;
  while (index < values.length) {
    const column = Math.floor(x(index));
    const start = index;
    let smallest = -1, largest = -1; // indices
    for (; index < values.length && Math.floor(x(index)) === column; index += 1) {
      if (values[index] === null) continue;
      if (smallest < 0 || values[index] < values[smallest]) smallest = index;
      if (largest < 0 || values[index] > values[largest]) largest = index;
    }
    if (smallest < 0) { isOpen = false; continue; }
    const selected = [...new Set([start, smallest, largest, index - 1])].filter((candidate) => values[candidate] !== null);
    for (const point of selected.sort((left, right) => left - right)) {
      path += `${isOpen ? "L" : "M"}${formatCoordinate(x(point))} ${formatCoordinate(y(values[point]))}`;
      isOpen = true;
    }
  }
  return path;
}

// Creates elements. A string child becomes a text node; no string is ever parsed as HTML.

const SVG_NAMESPACE = "http://www.w3.org/2000/svg";

/** Returns the element with an id; throws if the page has none. */
export function byId(id) {
  const element = document.getElementById(id);
  if (element === null) throw new Error(`the page has no element #${id}`);
  return element;
}

/**
 * Creates an HTML element. A property that is null, undefined or false is omitted, and so is a null or undefined child;
 * a property "on..." adds an event listener.
 */
export function createElement(name, properties = {}, ...children) {
  return applyProperties(document.createElement(name), properties, children);
}

/** Creates an SVG element; arguments as for `createElement`. */
export function createSvgElement(name, properties = {}, ...children) {
  return applyProperties(document.createElementNS(SVG_NAMESPACE, name), properties, children);
}

/** Replaces the children of an element; null and undefined are omitted. */
export function replaceChildren(element, ...children) {
  element.replaceChildren(...presentChildren(children));
  return element;
}

function applyProperties(element, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...presentChildren(children));
  return element;
}

function presentChildren(children) {
  return children.flat(Infinity).filter((child) => child !== null && child !== undefined);
}

"use strict";
// What page.js writes and draws with. Both stand in one script.

// How figures are written.
const score = (value) => value.toFixed(5);
const signed = (value) => (value < -5e-6 ? "" : "+") + (Math.abs(value) < 5e-6 ? 0 : value).toFixed(5);
const whole = (value) => Math.round(value).toLocaleString("en-US");
const short = (text, length = 60) => (text.length > length ? text.slice(0, length) + "…" : text) || "(not set)";
const collator = new Intl.Collator("en", { numeric: true });

// Drawing.
function svg(name, attributes = {}, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}
function html(name, text) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  return made;
}
const line = (x1, y1, x2, y2, kind) => svg("line", { x1, y1, x2, y2, class: kind });
const context = document.createElement("canvas").getContext("2d");
const family = getComputedStyle(document.body).fontFamily;
function widthOf(text, weight = 400) {
  context.font = `${weight} 12px ${family}`;
  return context.measureText(text).width;
}
// One for each colour; the last is for the values that are left.
const SHAPES = [
  (r) => `M${-r},0a${r},${r} 0 1,0 ${2 * r},0a${r},${r} 0 1,0 ${-2 * r},0Z`,
  (r) => `M${-r},${-r}H${r}V${r}H${-r}Z`,
  (r) => `M0,${-1.2 * r}L${1.15 * r},${r}H${-1.15 * r}Z`,
  (r) => `M0,${-1.35 * r}L${1.35 * r},0L0,${1.35 * r}L${-1.35 * r},0Z`,
  (r) => `M0,${1.2 * r}L${1.15 * r},${-r}H${-1.15 * r}Z`,
  (r) => `M${-r},${-r / 3}H${-r / 3}V${-r}H${r / 3}V${-r / 3}H${r}V${r / 3}H${r / 3}V${r}H${-r / 3}V${r / 3}H${-r}Z`,
  (r) => `M${-1.1 * r},${-r / 2}L0,${-1.2 * r}L${1.1 * r},${-r / 2}V${r / 2}L0,${1.2 * r}L${-1.1 * r},${r / 2}Z`,
  (r) => `M${-r * 0.7},0a${r * 0.7},${r * 0.7} 0 1,0 ${r * 1.4},0a${r * 0.7},${r * 0.7} 0 1,0 ${-r * 1.4},0Z`,
];
const LEFT = SHAPES.length - 1;
const mark = (x, y, r, kind, classes = "") => svg("path", { d: SHAPES[kind](r), transform: `translate(${x},${y})`, class: `mark of${kind} ${classes}` });

function ticks(low, high, count) {
  const raw = (high - low) / Math.max(count, 1);
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].find((one) => one * power >= raw * 0.999) * power;
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9); at * step <= high + step * 1e-9; at++) found.push(at * step + 0); // no -0
  return { found, text: (value) => value.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits }) };
}
function logTicks(low, high, count) {
  let found = [];
  for (let power = 10 ** Math.floor(Math.log10(low)); power <= high; power *= 10)
    found.push(...[1, 2, 5].map((one) => one * power).filter((value) => value >= low && value <= high));
  if (found.length > count) found = found.filter((value) => Math.abs(Math.log10(value) % 1) < 1e-9);
  return { found, text: (value) => value.toLocaleString("en-US", { maximumSignificantDigits: 2 }) };
}
function legend(list, entries) {
  list.replaceChildren(
    ...entries.map(([picture, text]) => {
      const entry = html("li");
      const box = svg("svg", { viewBox: "0 0 22 14", "aria-hidden": "true" });
      box.append(...[picture].flat());
      entry.append(box, text);
      return entry;
    }),
  );
}

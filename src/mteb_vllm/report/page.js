const $ = (id) => document.getElementById(id);
const data = JSON.parse($("data").textContent);
const rows = data.rows;
// A speed in pairs and one in texts have no axis in common.
const scored = rows.filter((row) => row.for);
const plotted = scored.filter((row) => data.unit !== null && row.mean !== null && row.speed !== null).sort((a, b) => a.speed - b.speed);
const MANY = 200; // points, from which on marks are small
const NEAR = 10; // times epsilon: what "near the best" means
const settings = (row) => data.columns.map((column, at) => [column, data.values[at][row.settings[at]]]);
let selected = rows.find((row) => row.roles.includes("answer")) ?? rows.find((row) => row.roles.includes("best")) ?? rows.find((row) => row.roles.includes("fastest")) ?? rows[0];

// Quality against speed.
const quality = $("quality-plot");
const tip = $("tip");
let places = []; // {row, x, y} of what is drawn, by speed
let pointed = null;

function colours() {
  const at = Number($("colour").value);
  if (!data.columns.length) return { of: () => 0, names: [] };
  const counts = new Map();
  for (const row of plotted) counts.set(row.settings[at], (counts.get(row.settings[at]) ?? 0) + 1);
  const own = [...counts.keys()].sort((a, b) => counts.get(b) - counts.get(a)).slice(0, counts.size > LEFT + 1 ? LEFT : LEFT + 1);
  own.sort((a, b) => collator.compare(data.values[at][a], data.values[at][b]));
  const kinds = new Map(own.map((value, kind) => [value, kind]));
  const names = own.map((value) => short(data.values[at][value]));
  if (counts.size > own.length) names.push(`${counts.size - own.length} other values`);
  return { of: (row) => kinds.get(row.settings[at]) ?? LEFT, names };
}

function drawQuality() {
  if (!plotted.length) return;
  const width = quality.parentNode.clientWidth;
  const height = Math.round(Math.min(440, Math.max(300, width * 0.5)));
  const best = Math.max(...plotted.map((row) => row.mean));
  const near = $("near").checked;
  const shown = near ? plotted.filter((row) => row.mean >= best - NEAR * data.epsilon) : plotted;
  const means = shown.map((row) => row.mean);
  const speeds = shown.map((row) => row.speed);
  // At least so much is in the plot that what is only noise looks small.
  const least = Math.max(3 * data.epsilon, 0.0001);
  let low = Math.min(...means, best - least);
  let high = shown.length > 1 ? best : best + least;
  [low, high] = [low - 0.08 * (high - low), high + 0.12 * (high - low)];
  let [slow, fast] = [Math.min(...speeds, 0.7 * Math.max(...speeds)), Math.max(...speeds) * (shown.length > 1 ? 1 : 1.3)];
  const log = slow > 0 && fast / slow > 10;
  const scale = log ? Math.log : (value) => value;
  const room = 0.05 * (scale(fast) - scale(slow));
  [slow, fast] = log ? [Math.exp(Math.log(slow) - room), Math.exp(Math.log(fast) + room)] : [Math.max(0, slow - room), fast + room];

  const up = ticks(low, high, height / 55);
  const left = Math.max(...up.found.map((value) => widthOf(up.text(value)))) + 10;
  const [right, top, bottom] = [width - 6, 26, height - 40];
  const x = (speed) => left + ((scale(speed) - scale(slow)) / (scale(fast) - scale(slow))) * (right - left);
  const y = (mean) => bottom - ((mean - low) / (high - low)) * (bottom - top);
  const drawn = [];

  if (rows.length > 1) drawn.push(svg("rect", { x: left, y: y(best), width: right - left, height: Math.max(1, y(best - data.epsilon) - y(best)), class: "band" }));
  for (const value of up.found)
    drawn.push(line(left, y(value), right, y(value), "grid"), svg("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end", class: "quiet-text" }, up.text(value)));
  const across = log ? logTicks(slow, fast, width / 60) : ticks(slow, fast, width / 110);
  let end = -Infinity;
  for (const value of across.found) {
    const half = widthOf(across.text(value)) / 2;
    const middle = Math.min(x(value), right - half);
    drawn.push(line(x(value), bottom, x(value), bottom + 4, "zero"));
    if (middle - half < end) continue;
    end = middle + half + 8;
    drawn.push(svg("text", { x: middle, y: bottom + 17, "text-anchor": "middle", class: "quiet-text" }, across.text(value)));
  }
  drawn.push(line(left, bottom, right, bottom, "zero"));
  const of = data.shared > 1 ? `mean score over ${data.shared} tasks` : "score";
  drawn.push(svg("text", { x: 0, y: 12, class: "quiet-text" }, `↑ ${of}`));
  drawn.push(svg("text", { x: right, y: height - 4, "text-anchor": "end", class: "quiet-text" }, `${data.unit}/s →`));

  const front = shown.filter((row) => row.front).sort((a, b) => a.speed - b.speed || b.mean - a.mean);
  // Up to a point's speed its score can be had: the step goes down behind it, not before.
  const steps = front.map((row, at) => (at ? `H${x(row.speed)}` : `M${x(row.speed)},${y(row.mean)}`) + (front[at + 1] ? `V${y(front[at + 1].mean)}` : ""));
  if (front.length > 1) drawn.push(svg("path", { d: steps.join(""), class: "front" }));

  const many = shown.length > MANY;
  const r = many ? 3 : 4.5;
  const { of: kindOf, names } = colours();
  places = shown.map((row) => ({ row, x: x(row.speed), y: y(row.mean) }));
  const key = ({ row }) => named(row).length > 0;
  for (const place of [...places].sort((a, b) => key(a) - key(b)))
    drawn.push(mark(place.x, place.y, key(place) ? 5 : r, kindOf(place.row), `${key(place) ? "key" : ""}${place.row.of !== place.row.name ? " hollow" : ""}`));
  drawn.push(...labels(left, right, top, bottom));
  const chosen = places.find((place) => place.row === selected);
  if (chosen && rows.length > 1) drawn.push(svg("circle", { cx: chosen.x, cy: chosen.y, r: 10, class: "ring" }));
  drawn.push(svg("circle", { r: 8, class: "ring pointed", visibility: "hidden" }));

  quality.setAttribute("viewBox", `0 0 ${width} ${height}`);
  quality.setAttribute("height", height);
  quality.classList.toggle("many", many);
  quality.replaceChildren(...drawn);
  const entries = names.map((name, kind) => [mark(11, 7, 4.5, kind), name]);
  if (shown.some((row) => row.of !== row.name)) entries.push([mark(11, 7, 4.5, LEFT, "hollow"), "hollow: speed measured in another point on the same engine"]);
  if (front.length > 1) entries.push([svg("path", { d: "M1,3H11V11H21", class: "front" }), "Pareto front: nothing is both better and faster"]);
  if (rows.length > 1) entries.push(
    [svg("rect", { x: 1, y: 2, width: 20, height: 10, class: "band" }), `within ${score(data.epsilon)} of the best`],
    [svg("circle", { cx: 11, cy: 7, r: 6, class: "ring" }), "selected point"],
  );
  legend($("quality-legend"), entries);
  $("quality-note").textContent = leftOut(shown);
}

const named = (row) => row.roles.filter((role) => role !== "failed");

// Names of the points that matter, each where it covers the fewest others.
function labels(left, right, top, bottom) {
  const taken = [];
  return places.filter(({ row }) => named(row).length).map((place) => {
    const text = named(place.row).join(", ");
    const width = widthOf(text, 600);
    const off = place.row === selected ? 14 : 9; // past the ring
    const spots = [[off, 4], [-off - width, 4], [-width / 2, -off - 2], [-width / 2, off + 11], [off, -off], [off, off + 8], [-off - width, -off], [-off - width, off + 8]];
    const boxes = spots.map(([dx, dy]) => ({ x: Math.min(Math.max(place.x + dx, left + 2), right - width - 2), y: Math.min(Math.max(place.y + dy, top - 2), bottom - 3), width }));
    const covers = (box) =>
      places.filter((one) => one.x > box.x - 6 && one.x < box.x + width + 6 && one.y > box.y - 15 && one.y < box.y + 7).length +
      100 * taken.filter((one) => box.x < one.x + one.width + 6 && one.x < box.x + width + 6 && Math.abs(box.y - one.y) < 15).length;
    const box = boxes.reduce((a, b) => (covers(b) < covers(a) ? b : a));
    taken.push(box);
    return svg("text", { x: box.x, y: box.y, class: "halo" }, text);
  });
}

function leftOut(shown) {
  const mean = scored.filter((row) => row.mean === null).length;
  const speed = scored.filter((row) => row.mean !== null && row.speed === null).length;
  const far = plotted.length - shown.length;
  const said = [
    mean && `${whole(mean)} without a mean (a task failed or is missing)`,
    speed && `${whole(speed)} without a known speed`,
    far && `${whole(far)} further than ${score(NEAR * data.epsilon)} below the best`,
  ].filter(Boolean);
  return said.length ? `Not in the plot: ${said.join("; ")}.` : "";
}

function point(place) {
  pointed = place;
  const ring = quality.querySelector(".pointed");
  tip.hidden = !place;
  ring?.setAttribute("visibility", place ? "visible" : "hidden");
  if (!place) return;
  ring.setAttribute("cx", place.x);
  ring.setAttribute("cy", place.y);
  const { row } = place;
  const said = [`${score(row.mean)}${row.difference === null ? "" : ` (${signed(row.difference)})`}, ${whole(row.speed)} ${data.unit}/s${row.of === row.name ? "" : ` measured in ${row.of}`}`];
  for (const [column, value] of settings(row)) said.push(`${column}: ${short(value, 120)}`);
  const name = html("strong", `Point ${row.name}${row.roles.length ? ` (${row.roles.join(", ")})` : ""}`);
  const first = html("p");
  first.append(name);
  tip.replaceChildren(first, ...said.map((text) => html("p", text)));
  const box = quality.parentNode.clientWidth;
  tip.style.left = `${Math.min(Math.max(0, place.x - tip.offsetWidth / 2), box - tip.offsetWidth)}px`;
  tip.style.top = `${place.y > tip.offsetHeight + 14 ? place.y - tip.offsetHeight - 12 : place.y + 14}px`;
}
function nearest(event) {
  const box = quality.getBoundingClientRect();
  const distance = (place) => Math.hypot(place.x - event.clientX + box.left, place.y - event.clientY + box.top);
  const found = places.reduce((a, b) => (a && distance(a) <= distance(b) ? a : b), null);
  return found && distance(found) < 24 ? found : null;
}

// Score differences per task: over all points, and of the selected one.
const base = rows.find((row) => row.roles.includes("baseline"));
const spreads = !base || rows.length < 2 ? [] : data.tasks.flatMap((task, at) => {
  if (base.scores[at] === null) return [];
  const values = rows.map((row) => row.scores[at]).filter((value) => value !== null).map((value) => value - base.scores[at]).sort((a, b) => a - b);
  const half = values.length >> 1;
  return values.length < 2 ? [] : [{ task, at, low: values[0], high: values.at(-1), median: values.length % 2 ? values[half] : (values[half - 1] + values[half]) / 2 }];
}).sort((a, b) => b.high - b.low - (a.high - a.low));

function drawDifferences() {
  if (!spreads.length) return;
  const plot = $("differences-plot");
  const width = plot.parentNode.clientWidth;
  const names = Math.max(...spreads.map(({ task }) => widthOf(task)));
  const stacked = names > width * 0.35; // a task's name then stands above its line
  const step = stacked ? 40 : 22;
  const height = 24 + spreads.length * step + 6;
  const [left, right] = [stacked ? 6 : names + 16, width - widthOf("+0.00000") - 18];
  const low = Math.min(0, ...spreads.map((one) => one.low));
  const high = Math.max(0, ...spreads.map((one) => one.high));
  const span = high - low || 0.001;
  const x = (value) => left + ((value - low + (high > low ? 0 : span / 2)) / span) * (right - left);
  const drawn = [];
  const { found, text } = ticks(high > low ? low : -span / 2, high > low ? high : span / 2, Math.max(2, (right - left) / 110));
  for (const value of found) {
    const zero = Math.abs(value) < 1e-12;
    const label = (value > 1e-12 ? "+" : "") + text(zero ? 0 : value);
    const half = widthOf(label) / 2;
    drawn.push(line(x(value), 20, x(value), height - 4, zero ? "zero" : "grid"));
    drawn.push(svg("text", { x: Math.min(Math.max(x(value), half), width - half), y: 12, "text-anchor": "middle", class: "quiet-text" }, label));
  }
  spreads.forEach((one, row) => {
    const y = 24 + row * step + (stacked ? 29 : 13);
    drawn.push(svg("text", stacked ? { x: 0, y: y - 12, class: "task-name" } : { x: left - 12, y: y + 4, "text-anchor": "end" }, one.task));
    drawn.push(line(x(one.low), y, x(one.high), y, "range"), line(x(one.median), y - 6, x(one.median), y + 6, "tick"));
    const own = selected.scores[one.at];
    if (own !== null) drawn.push(mark(x(own - base.scores[one.at]), y, 5, 0));
    drawn.push(svg("text", { x: width, y: y + 4, "text-anchor": "end", class: "value" }, own === null ? "no score" : signed(own - base.scores[one.at])));
  });
  plot.setAttribute("viewBox", `0 0 ${width} ${height}`);
  plot.setAttribute("height", height);
  plot.replaceChildren(...drawn);
  legend($("differences-legend"), [
    [mark(11, 7, 5, 0), `point ${selected.name}`],
    [line(3, 7, 19, 7, "range"), "lowest to highest of all points"],
    [line(11, 1, 11, 13, "tick"), "their median"],
  ]);
}

// The table, and which point is selected.
const table = $("points");
const body = table.tBodies[0];
const lines = new Map([...body.rows].map((line) => [rows[line.dataset.at], line]));
function select(row) {
  lines.get(selected).removeAttribute("aria-current");
  selected = row;
  lines.get(row).setAttribute("aria-current", "true");
  const against = base && row !== base && row.difference !== null ? `, ${signed(row.difference)} against point ${base.name}` : "";
  $("selected").textContent = `Point ${row.name}${row.roles.length ? ` (${row.roles.join(", ")})` : ""}: ${row.mean === null ? "no mean" : `${score(row.mean)}${against}`}. Click a point in the plot or a row of the table to select another.`;
  $("selected-settings").replaceChildren(
    ...settings(row).map(([column, value]) => {
      const entry = html("div");
      const shown = html("dd", value || "(not set)");
      shown.dir = "auto";
      entry.append(html("dt", column), shown);
      return entry;
    }),
  );
  drawAll();
}
function sortBy(head) {
  const at = head.cellIndex;
  const figures = head.matches(".figure, .type, .task");
  // Of figures one asks for the highest first, of names not.
  const down = head.ariaSort ? head.ariaSort === "ascending" : figures;
  for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const keys = [...body.rows].map((line) => {
    const text = at ? line.cells[at].textContent : rows[line.dataset.at].name;
    return { line, key: figures ? parseFloat(text.replaceAll(",", "")) : text };
  });
  const missing = ({ key }) => key === "" || Number.isNaN(key);
  keys.sort((a, b) => missing(a) - missing(b) || (missing(a) ? 0 : (down ? -1 : 1) * (figures ? a.key - b.key : collator.compare(a.key, b.key))));
  body.append(...keys.map(({ line }) => line));
}
const haystacks = new Map(rows.map((row) => [row, [row.name, ...row.roles, ...settings(row).map(([, value]) => value)].join("\n").toLowerCase()]));
function filter() {
  const words = $("filter").value.toLowerCase().split(/\s+/);
  let count = 0;
  for (const [row, line] of lines) {
    line.hidden = !words.every((word) => haystacks.get(row).includes(word));
    count += !line.hidden;
  }
  $("count").textContent = count < rows.length ? `${whole(count)} of ${whole(rows.length)} points` : "";
}

"use strict";
// Embeds the charts, keeps the selected point the same in all of them and in the table, and sorts and filters the table.
const $ = (id) => document.getElementById(id);
const data = JSON.parse($("data").textContent);
const rows = data.rows;
const byName = new Map(rows.map((row) => [row.name, row]));
const settings = (row) => data.columns.map((column, at) => [column, data.values[at][row.settings[at]]]);
const score = (value) => value.toFixed(5);
const signed = (value) => (value < -5e-6 ? "" : "+") + (Math.abs(value) < 5e-6 ? 0 : value).toFixed(5);
const collator = new Intl.Collator("en", { numeric: true });
let selected = rows[data.selected];

// Charts. The policy of the page allows neither eval, so that expressions are interpreted, nor styles that are added.
const NARROW = 780; // below it, the lines above a chart are short ones
const options = { ast: true, actions: false, renderer: "svg", defaultStyle: false, tooltip: { disableDefaultStyle: true } };
const views = new Map(); // element to view
const choose = (view, selection, values) =>
  view.signal(`${selection}_tuple`, values && { unit: "", fields: view.signal(`${selection}_tuple_fields`), values });
function fit(plot, view) {
  if (!plot.clientWidth) return;
  // A run sets the signal to the width without axes. Setting it to the same value again would have no effect.
  if (view.width() === plot.clientWidth) view.width(plot.clientWidth + 1).run();
  view.width(plot.clientWidth).signal("narrow", plot.clientWidth < NARROW).run();
}
async function draw([name, chart]) {
  const plot = $(name);
  const { view } = await vegaEmbed(plot, chart, { ...options, bind: $(`${name}-controls`) ?? undefined });
  // Vega calls its box a document.
  plot.setAttribute("role", plot.tabIndex < 0 ? "img" : "application");
  plot.removeAttribute("aria-roledescription");
  views.set(plot, view);
  fit(plot, view);
  view.addSignalListener("picked", (_, { point }) => point && byName.has(point[0]) && select(byName.get(point[0])));
  const signals = view.getState().signals;
  if ("colour" in signals) view.addSignalListener("colour", () => view.signal("legend_kind_legend", null));
}

// Arrow keys go from point to point.
let pointed = null;
function point(plot, mark) {
  const view = views.get(plot);
  pointed = mark;
  const { datum } = mark?.__data__ ?? {};
  const { left, top } = (mark ?? plot).getBoundingClientRect();
  choose(view, "pointed", datum ? [datum.point] : null);
  view.tooltip()(view, { clientX: left, clientY: top }, null, datum?.tip ?? null);
  view.run();
}
function onKey(plot, event) {
  const marks = [...plot.querySelectorAll(".points_marks path")].sort((a, b) => a.__data__.x - b.__data__.x);
  const step = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key];
  const at = marks.findIndex((mark) => mark.__data__.datum.point === (pointed?.__data__.datum.point ?? selected.name));
  if (event.key === "Escape") point(plot, null);
  else if (event.key === "Enter" && pointed) select(byName.get(pointed.__data__.datum.point));
  else if (event.type === "focus") point(plot, marks[Math.max(at, 0)] ?? null);
  else if (step && marks.length) point(plot, marks[(at + step + marks.length) % marks.length]);
  else return;
  event.preventDefault();
}

// The table, and which point is selected.
const table = $("points");
const body = table.tBodies[0];
const lines = new Map([...body.rows].map((line) => [rows[line.dataset.at], line]));
function describe(row) {
  const against = row.name !== data.baseline && row.difference !== null ? `, ${signed(row.difference)} relative to point ${data.baseline}` : "";
  return `Point ${row.name}${row.roles.length ? ` (${row.roles.join(", ")})` : ""}: ${row.mean === null ? row.speed || "no mean" : `${score(row.mean)}${against}`}.`;
}
function select(row) {
  lines.get(selected).removeAttribute("aria-current");
  selected = row;
  lines.get(row).setAttribute("aria-current", "true");
  for (const view of views.values()) {
    if (view.signal("picked").point?.[0] === row.name) continue;
    choose(view, "picked", [row.name]);
    view.runAsync();
  }
  if (!$("selected")) return;
  $("selected").textContent = `${describe(row)} Click a point in a chart or a row of the table to select another.`;
  $("selected-settings").replaceChildren(
    ...settings(row).map(([column, value]) => {
      const [entry, name, shown] = ["div", "dt", "dd"].map((tag) => document.createElement(tag));
      name.append(...column.split(/(?<=[._])/).flatMap((part) => [part, document.createElement("wbr")]));
      [shown.textContent, shown.dir] = [value || "(not set)", "auto"];
      entry.append(name, shown);
      return entry;
    }),
  );
}
function sortBy(head) {
  const at = head.cellIndex;
  const figures = head.matches(".figure, .type, .task");
  // The highest figures come first, and names in their order.
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
  $("count").textContent = count < rows.length ? `${count.toLocaleString("en-US")} of ${rows.length.toLocaleString("en-US")} points` : "";
}

table.tHead.addEventListener("click", ({ target }) => target.closest("button") && sortBy(target.closest("th")));
body.addEventListener("click", ({ target }) => select(rows[target.closest("tr").dataset.at]));
$("filter").addEventListener("input", filter);
select(selected);
Promise.all(Object.entries(data.charts).map(draw)).then(() => {
  for (const plot of document.querySelectorAll(".plot[tabindex]")) {
    plot.addEventListener("keydown", (event) => onKey(plot, event));
    plot.addEventListener("focus", (event) => plot.matches(":focus-visible") && onKey(plot, event));
    plot.addEventListener("blur", () => point(plot, null));
  }
  const main = document.querySelector("main");
  let drawn = main.clientWidth;
  new ResizeObserver(() => {
    if (main.clientWidth === drawn || !main.clientWidth) return; // no width: a window that is being closed
    drawn = main.clientWidth;
    for (const [plot, view] of views) fit(plot, view);
  }).observe(main);
  document.documentElement.dataset.ready = Math.round(performance.now());
});

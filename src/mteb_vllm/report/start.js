// What happens when. It stands last in the page's script.
function drawAll() {
  drawQuality();
  drawDifferences();
  drawMeasured();
}
table.tHead.addEventListener("click", ({ target }) => target.closest("button") && sortBy(target.closest("th")));
body.addEventListener("click", ({ target }) => select(rows[target.closest("tr").dataset.at]));
$("filter").addEventListener("input", filter);
for (const plot of document.querySelectorAll(".measured"))
  plot.addEventListener("click", ({ target }) => {
    const row = target.closest("[data-row]")?.dataset.row;
    if (row !== undefined) select(rows[row]);
  });
quality.addEventListener("pointermove", (event) => point(nearest(event)));
quality.addEventListener("pointerleave", ({ pointerType }) => pointerType === "mouse" && point(null));
document.addEventListener("pointerdown", (event) => quality.contains(event.target) ? point(nearest(event)) : point(null));
quality.addEventListener("click", (event) => {
  const place = nearest(event);
  if (place) select(place.row);
  point(place);
});
quality.addEventListener("focus", () => quality.matches(":focus-visible") && point(places.find(({ row }) => row === selected) ?? places[0]));
quality.addEventListener("blur", () => point(null));
quality.addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key];
  if (event.key === "Escape") point(null);
  else if (event.key === "Enter" && pointed) select(pointed.row);
  else if (step && places.length) point(places[(places.indexOf(pointed) + step + places.length) % places.length]);
  else return;
  event.preventDefault();
});

if (data.columns.length) {
  $("colour").append(...data.columns.map((column, at) => Object.assign(html("option", column), { value: at })));
  $("colour").value = data.values.map((values, at) => [values.length, at]).sort((a, b) => a[0] - b[0] || a[1] - b[1])[0][1];
} else $("colour-label").hidden = true;
const highest = Math.max(...plotted.map((row) => row.mean));
const close = plotted.filter((row) => row.mean >= highest - NEAR * data.epsilon).length;
$("near-label").hidden = close === plotted.length || close < 2;
for (const control of [$("colour"), $("near")]) control.addEventListener("change", () => { point(null); drawQuality(); });
if (!plotted.length) {
  for (const part of [quality.parentNode, $("quality-legend"), $("colour-label")]) part.hidden = true;
  $("quality-note").textContent = data.unit === null
    ? "Not drawn: some points embed texts and others score pairs, and such speeds cannot be compared."
    : leftOut([]).replace("Not in the plot", "No point has both a mean and a speed");
}
if (!spreads.length) $("differences").hidden = true;
const without = data.tasks.length - spreads.length;
if (without) $("differences-note").textContent = `Left out: ${without} ${without > 1 ? "tasks" : "task"} without a score of the baseline, or of any other point.`;
$("differences-note").append(spreads.length > 1 ? " Tasks in which the points differ most stand first." : "");
select(selected);
const main = document.querySelector("main");
let drawnAt = main.clientWidth;
new ResizeObserver(() => {
  const width = main.clientWidth;
  if (width === drawnAt || !width) return; // no width: a window that is being closed
  drawnAt = width;
  point(null);
  drawAll();
}).observe(main);
document.documentElement.dataset.ready = Math.round(performance.now());

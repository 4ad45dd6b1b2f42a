// Throughput and parity: latency against throughput, tokens/s against the roofline, and the difference to a reference against speed.
const curves = data.curves;
const milliseconds = (value) => value.toLocaleString("en-US", { maximumSignificantDigits: 3 });
const rate = (value) => (value < 100 ? value.toFixed(1) : whole(value));
const percent = (value) => `${(100 * value).toFixed(1)}%`;
const sameRow = (at) => rows[at] === selected;

function drawMeasured() {
  if (curves.length) {
    drawLatency();
    drawRooflines();
  }
  if (data.parity.length) drawReference();
}

function fitting(text, width) {
  if (widthOf(text) <= width) return text;
  let length = text.length;
  while (length > 1 && widthOf(text.slice(0, length) + "…") > width) length--;
  return text.slice(0, length) + "…";
}
function show(plot, width, height, drawn) {
  plot.setAttribute("viewBox", `0 0 ${width} ${height}`);
  plot.setAttribute("height", height);
  plot.replaceChildren(...drawn);
}
// With a title, and the row that a click on it selects.
function said(element, text, row) {
  element.append(svg("title", {}, text));
  element.dataset.row = row;
  return element;
}
// From low to high, logarithmic where that is far.
function across(low, high, left, right) {
  const log = low > 0 && high / low > 10;
  const [from, to] = log ? [low / 1.2, high * 1.2] : [0, high * 1.06];
  const scale = log ? Math.log : (value) => value;
  const x = (value) => left + ((scale(value) - scale(from)) / (scale(to) - scale(from))) * (right - left);
  return { x, marks: log ? logTicks(from, to, (right - left) / 60) : ticks(from, to, (right - left) / 110) };
}
function drawAcross({ x, marks }, left, right, bottom) {
  const drawn = [line(left, bottom, right, bottom, "zero")];
  let end = -Infinity;
  for (const value of marks.found) {
    const half = widthOf(marks.text(value)) / 2;
    const middle = Math.min(x(value), right - half);
    drawn.push(line(x(value), bottom, x(value), bottom + 4, "zero"));
    if (middle - half < end) continue;
    end = middle + half + 8;
    drawn.push(svg("text", { x: middle, y: bottom + 17, "text-anchor": "middle", class: "quiet-text" }, marks.text(value)));
  }
  return drawn;
}
function better(right, y) {
  return svg("text", { x: right, y, "text-anchor": "end", class: "quiet-text halo-text" }, "lower right is better ↘");
}

function drawLatency() {
  const plot = $("latency-plot");
  const width = plot.parentNode.clientWidth;
  if (!width) return;
  const height = Math.round(Math.min(460, Math.max(320, width * 0.5)));
  const steps = curves.flatMap((curve) => curve.steps);
  const rates = [...steps.map((step) => step[1]), ...curves.map((curve) => curve.requests).filter((rate) => rate)];
  const least = Math.min(...steps.map((step) => step[2]));
  const most = Math.max(...steps.flatMap((step) => [step[2], step[3]]));
  // The lowest part is for the marks of what came at once.
  const [low, high] = [least / Math.max((most / least) ** 0.14, 1.3), most * Math.max((most / least) ** 0.08, 1.2)];
  const own = logTicks(low, high, height / 26);
  const up = own.found.length > 1 ? own : ticks(low, high, height / 55);
  const left = Math.max(...up.found.map((value) => widthOf(up.text(value)))) + 10;
  const [right, top, bottom] = [width - 6, 26, height - 40];
  const axis = across(Math.min(...rates), Math.max(...rates), left, right);
  const { x } = axis;
  const y = (value) => bottom - ((Math.log(value) - Math.log(low)) / (Math.log(high) - Math.log(low))) * (bottom - top);
  const drawn = [];
  for (const value of up.found)
    drawn.push(line(left, y(value), right, y(value), "grid"), svg("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end", class: "quiet-text" }, up.text(value)));
  drawn.push(...drawAcross(axis, left, right, bottom));
  const units = [...new Set(curves.map((curve) => curve.unit))].join(" or ");
  drawn.push(svg("text", { x: 0, y: 12, class: "quiet-text" }, "↑ median latency of a step, ms"));
  drawn.push(svg("text", { x: right, y: height - 4, "text-anchor": "end", class: "quiet-text" }, `requests/s (${units}) →`));
  drawn.push(better(right, bottom - 24));
  curves.forEach((curve, kind) => {
    const thick = curves.length > 1 && sameRow(curve.row) ? " chosen" : "";
    const path = curve.steps.map((step, at) => `${at ? "L" : "M"}${x(step[1])},${y(step[2])}`).join("");
    drawn.push(svg("path", { d: path, class: `curve of${kind}${thick}` }));
    for (const [, requests, p50, p90] of curve.steps) drawn.push(line(x(requests), y(p50), x(requests), y(p90), `whisker of${kind}`));
    for (const [size, requests, p50, p90] of curve.steps)
      drawn.push(said(mark(x(requests), y(p50), 4, kind), `${curve.name} batch size ${size}: ${rate(requests)} requests/s, p50 ${milliseconds(p50)} ms, p90 ${milliseconds(p90)} ms`, curve.row));
    if (curve.requests)
      drawn.push(said(line(x(curve.requests), bottom - 16, x(curve.requests), bottom, `at-once of${kind}`), `${curve.name} everything at once: ${rate(curve.requests)} requests/s`, curve.row));
  });
  drawn.push(...sizes(x, y));
  show(plot, width, height, drawn);
  const entries = curves.length > 1 ? curves.map((curve, kind) => [[line(1, 7, 21, 7, `curve of${kind}`), mark(11, 7, 4, kind)], short(curve.name)]) : [];
  entries.push([line(11, 1, 11, 13, "whisker of7"), "upwards from a point: to p90"]);
  if (curves.some((curve) => curve.requests)) entries.push([line(11, 1, 11, 13, "at-once of7"), "at the bottom: everything at once (saturated)"]);
  legend($("latency-legend"), entries);
  $("latency-note").textContent = "A number at a point is its batch size." + (data.curvesLeftOut ? ` Not in the plot: ${whole(data.curvesLeftOut)} slower points.` : "");
}

// Batch sizes beside points, where no other one is; the ends of curves first.
function sizes(x, y) {
  const points = curves.flatMap(({ steps }) => steps.map((step, at) => ({ step, inner: at > 0 && at < steps.length - 1 })));
  const taken = points.map(({ step }) => ({ at: x(step[1]), high: y(step[2]), wide: 8 }));
  return points.sort((a, b) => a.inner - b.inner).flatMap(({ step }) => {
    const text = String(step[0]);
    const wide = widthOf(text) + 3;
    const spots = [[9, 9], [-9, -9], [0, 16], [0, -17]].map(([dx, dy]) => [x(step[1]) + dx + (Math.sign(dx) * wide) / 3, y(step[2]) + dy]);
    const spot = spots.find(([at, high]) => taken.every((one) => Math.abs(one.at - at) > (one.wide + wide) / 2 || Math.abs(one.high - high) > 11));
    if (!spot) return [];
    taken.push({ at: spot[0], high: spot[1], wide });
    return [svg("text", { x: spot[0], y: spot[1] + 4, "text-anchor": "middle", class: "quiet-text halo-text" }, text)];
  });
}

function drawRooflines() {
  const plot = $("roofline-plot");
  const width = plot.parentNode.clientWidth;
  if (!width) return;
  const step = 42;
  const height = curves.length * step + 6;
  const highest = Math.max(...curves.flatMap((curve) => [curve.tokens ?? 0, curve.roofline ?? 0])) || 1;
  const x = (value) => 1 + (value / highest) * (width - 2);
  const drawn = curves.flatMap((curve, kind) => {
    const top = kind * step;
    const share = curve.share === null ? "the roofline is not known" : `${percent(curve.share)} MFU${width > 500 ? ` (of ${whole(curve.roofline)})` : ""}`;
    const words = `${curve.tokens === null ? "not measured" : `${whole(curve.tokens)} tokens/s, ${share}`}`;
    const name = curve.name ? fitting(curve.name, width - widthOf(words) - 16) : "";
    return [
      svg("text", { x: 0, y: top + 14 }, name),
      svg("text", { x: name ? width : 0, y: top + 14, "text-anchor": name ? "end" : "start", class: "quiet-text" }, words),
      said(svg("rect", { x: 1, y: top + 20, width: x(curve.tokens ?? 0) - 1, height: 14, class: `bar of${kind}` }), words, curve.row),
      ...(curve.roofline === null ? [] : [svg("rect", { x: 1, y: top + 20, width: x(curve.roofline) - 1, height: 14, class: "roofline" })]),
    ];
  });
  show(plot, width, height, drawn);
  legend($("roofline-legend"), [
    [svg("rect", { x: 1, y: 2, width: 14, height: 10, class: "bar of7" }), "tokens/s with everything at once"],
    [svg("rect", { x: 1, y: 2, width: 20, height: 10, class: "roofline" }), "the roofline: what the machine's arithmetic allows"],
  ]);
}

function drawReference() {
  const plot = $("reference-plot");
  const width = plot.parentNode.clientWidth;
  if (!width) return;
  const height = Math.round(Math.min(440, Math.max(300, width * 0.5)));
  const places = data.parity.map((one) => ({ ...one, off: Math.max(one.difference, data.leastDifference) }));
  const [low, high] = [data.leastDifference / 6, 4 * Math.max(data.tolerance ?? 0, ...places.map(({ off }) => off))];
  const up = [];
  for (let power = -6; 10 ** power <= high; power++) up.push(power);
  const text = (power) => (10 ** power).toLocaleString("en-US", { maximumSignificantDigits: 1 });
  const left = Math.max(...up.map((power) => widthOf(text(power)))) + 10;
  const [right, top, bottom] = [width - 6, 26, height - 40];
  const speeds = places.map(({ tokens }) => tokens);
  const axis = across(Math.min(...speeds), Math.max(...speeds), left, right);
  const { x } = axis;
  const y = (value) => bottom - ((Math.log(value) - Math.log(low)) / (Math.log(high) - Math.log(low))) * (bottom - top);
  const drawn = [];
  if (data.tolerance) drawn.push(svg("rect", { x: left, y: y(data.tolerance), width: right - left, height: bottom - y(data.tolerance), class: "band" }));
  for (const power of up) drawn.push(line(left, y(10 ** power), right, y(10 ** power), "grid"), svg("text", { x: left - 6, y: y(10 ** power) + 4, "text-anchor": "end", class: "quiet-text" }, text(power)));
  drawn.push(...drawAcross(axis, left, right, bottom));
  drawn.push(svg("text", { x: 0, y: 12, class: "quiet-text" }, "↑ worst |score difference| to the reference"));
  drawn.push(svg("text", { x: right, y: height - 4, "text-anchor": "end", class: "quiet-text" }, "tokens/s →"), better(right, bottom - 6));
  const own = ({ row, of }) => of === rows[row].name;
  const words = widthOf("lower right is better ↘");
  const taken = [{ at: right - words, up: bottom - 6, wide: words }];
  for (const place of places) {
    const [at, up] = [x(place.tokens), y(place.off)];
    const name = `point ${rows[place.row].name}`;
    const title = `${name}: ${place.difference.toPrecision(3)}, ${whole(place.tokens)} tokens/s${own(place) ? "" : `, measured in point ${place.of}`}`;
    drawn.push(said(mark(at, up, 4.5, place.passed ? 0 : 1, own(place) ? "" : "hollow"), title, place.row));
    if (sameRow(place.row) && rows.length > 1) drawn.push(svg("circle", { cx: at, cy: up, r: 10, class: "ring" }));
    const wide = widthOf(name);
    const spot = [[12, 4], [-12 - wide, 4], [-wide / 2, -13], [-wide / 2, 22]].find(([dx, dy]) =>
      at + dx > left && at + dx + wide < right && up + dy > top && up + dy < bottom - 2 &&
      taken.every((one) => Math.abs(one.up - up - dy) > 13 || one.at > at + dx + wide || at + dx > one.at + one.wide));
    if (!spot) continue;
    taken.push({ at: at + spot[0], up: up + spot[1], wide });
    drawn.push(svg("text", { x: at + spot[0], y: up + spot[1], class: "halo-text" }, name));
  }
  show(plot, width, height, drawn);
  const entries = [];
  if (places.some(({ passed }) => passed)) entries.push([mark(11, 7, 4.5, 0), "passed"]);
  if (places.some(({ passed }) => !passed)) entries.push([mark(11, 7, 4.5, 1), "not passed"]);
  if (!places.every(own)) entries.push([mark(11, 7, 4.5, LEFT, "hollow"), "hollow: speed of a throughput point on the same engine"]);
  if (data.tolerance) entries.push([svg("rect", { x: 1, y: 2, width: 20, height: 10, class: "band" }), `within the tolerance of ${data.tolerance}`]);
  legend($("reference-legend"), entries);
  const small = places.some(({ difference }) => difference < data.leastDifference) ? `What is less than ${text(-6)} is drawn there. ` : "";
  $("reference-note").textContent = small + (data.parityLeftOut ? `Not in the plot: ${whole(data.parityLeftOut)} without a difference or a speed.` : "");
}

const FIRST_METRICS = ["reward", "eval/accuracy", "kl_from_prior", "entropy", "pass_at_8", "completions/mean_length", "decisions/mean", "no_answer_rate", "reward_std", "approx_kl"];
const AXES = {train_episodes: "training episodes", step: "iterations", train_seconds: "seconds of training", train_tokens: "training tokens"};
const SVG = "http://www.w3.org/2000/svg";
const FRAME = {width: 1100, height: 430, left: 62, right: 16, top: 14, bottom: 44};

function draw(tag, attributes, text = null) {
  const node = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== null) node.textContent = text;
  return node;
}

// The points of a metric over x; a metric that has none there is drawn over the steps.
function pointsOf(curves, metric, x, window) {
  const values = curves[metric] ?? [], along = name => (curves[name] ?? []).map((v, i) => [v, values[i]]).filter(([v, y]) => v !== null && y !== null && y !== undefined);
  let points = along(x), over = x;
  if (!points.length) [points, over] = [along("step"), "step"];
  const smooth = points.map(([v], i) => {
    const part = points.slice(Math.max(0, i + 1 - window), i + 1);
    return [v, part.reduce((sum, p) => sum + p[1], 0) / part.length];
  });
  return {points: smooth, over};
}

function ticks(low, high, n) {
  const raw = (high - low) / n || 1, power = 10 ** Math.floor(Math.log10(raw)), step = [1, 2, 2.5, 5, 10].map(m => m * power).find(s => s >= raw);
  const found = [];
  for (let t = Math.ceil(low / step) * step; t <= high + step * 1e-9; t += step) found.push(Number(t.toPrecision(10)));
  return found;
}

async function showCurves(current) {
  const runs = chosen();
  if (!runs.length) return put(current, make("p", "note", "Tick runs in the table first: their curves are drawn over each other."));
  const found = (await Promise.all(runs.map(async run => ({run, curves: (await details(run)).curves})))).filter(r => Object.keys(r.curves).length);
  const without = runs.length - found.length;
  if (!found.length) return put(current, make("p", "note", "None of these runs has learned: they have no metrics.jsonl."));
  const names = [...new Set(found.flatMap(r => Object.keys(r.curves)))].filter(n => n !== "step" && n !== "iteration").sort();
  const ordered = [...FIRST_METRICS.filter(n => names.includes(n)), ...names.filter(n => !FIRST_METRICS.includes(n))];
  const metric = names.includes(state.metric) ? state.metric : ordered[0], x = state.x ?? "train_episodes", window = Number(state.smooth ?? 1) || 1;
  const lines = found.map((r, i) => ({run: r.run, colour: PALETTE[i % PALETTE.length], dash: ["", "7 3", "2 3"][Math.floor(i / PALETTE.length) % 3], ...pointsOf(r.curves, metric, x, window)})).filter(line => line.points.length);
  const bar = make("div", "row wide", null,
    choice("metric", ordered.map(n => [n, n]), metric, value => go({metric: value}, true)),
    choice("over", Object.entries(AXES), x, value => go({x: value}, true)),
    choice("mean of the last", [["1", "1 point"], ["4", "4 points"], ["16", "16 points"]], String(window), value => go({smooth: value}, true)),
    make("span", "count", `${plural(lines.length, "run")}${without ? `, ${without} without curves` : ""}`));
  if (!lines.length) return put(current, bar, make("p", "note", `No selected run has ${metric}.`));
  const over = lines.every(line => line.over === lines[0].over) ? lines[0].over : x;
  put(current, bar, ...plot(lines, over, metric));
}

function plot(lines, over, metric) {
  const {width, height, left, right, top, bottom} = FRAME, every = lines.flatMap(line => line.points);
  const xs = every.map(p => p[0]), ys = every.map(p => p[1]);
  const x0 = Math.min(0, xs.reduce((a, b) => Math.min(a, b))), x1 = xs.reduce((a, b) => Math.max(a, b), x0 + 1e-9);
  let y0 = ys.reduce((a, b) => Math.min(a, b)), y1 = ys.reduce((a, b) => Math.max(a, b));
  if (y0 >= 0 && y1 <= 1 && y1 > 0.2) [y0, y1] = [0, 1];
  else { const pad = (y1 - y0 || Math.abs(y1) || 1) * 0.06; [y0, y1] = [y0 >= 0 ? Math.max(0, y0 - pad) : y0 - pad, y1 + pad]; }
  const px = v => left + (v - x0) / (x1 - x0) * (width - left - right), py = v => height - bottom - (v - y0) / (y1 - y0) * (height - top - bottom);
  const svg = draw("svg", {viewBox: `0 0 ${width} ${height}`, class: "plot", role: "img", "aria-label": `${metric} over ${over}`});
  for (const t of ticks(y0, y1, 5)) svg.append(draw("line", {x1: left, x2: width - right, y1: py(t), y2: py(t), class: "grid"}), draw("text", {x: left - 8, y: py(t) + 4, "text-anchor": "end"}, short(t)));
  for (const t of ticks(x0, x1, 8)) svg.append(draw("line", {x1: px(t), x2: px(t), y1: height - bottom, y2: height - bottom + 5, class: "axis"}), draw("text", {x: px(t), y: height - bottom + 19, "text-anchor": "middle"}, short(t)));
  svg.append(draw("line", {x1: left, x2: width - right, y1: height - bottom, y2: height - bottom, class: "axis"}), draw("text", {x: (left + width - right) / 2, y: height - 6, "text-anchor": "middle"}, AXES[over]));
  for (const line of lines) {
    const few = line.points.length <= 40;
    svg.append(draw("polyline", {points: line.points.map(([a, b]) => `${px(a).toFixed(1)},${py(b).toFixed(1)}`).join(" "), fill: "none", stroke: line.colour, "stroke-width": 1.8, "stroke-dasharray": line.dash, "data-run": line.run.id}));
    if (few) for (const [a, b] of line.points) svg.append(draw("circle", {cx: px(a).toFixed(1), cy: py(b).toFixed(1), r: 2.6, fill: line.colour}));
  }
  const cross = draw("line", {y1: top, y2: height - bottom, class: "cross", visibility: "hidden"});
  svg.append(cross);
  const said = make("span", "count", "the last values; point at the curves for others");
  const rows = lines.map(line => {
    const value = make("td", "num", short(line.points.at(-1)[1])), swatch = make("span", "swatch");
    swatch.style.background = line.colour;
    return {line, value, row: make("tr", "", null, make("td", "left", null, swatch, link(line.run.name, {view: "run", run: line.run.id, set: null, ep: null, page: null})), make("td", "left", line.run.task ?? "–"), make("td", "left", line.run.agent ?? "–"), make("td", "num", line.run.seed ?? "–"), value,
      make("td", "", null, control("button", {click: () => go({sel: chosen().filter(r => r !== line.run).map(r => r.id).join(",")}, true)}, {textContent: "×", title: "leave out", ariaLabel: `leave out ${line.run.name}`})))};
  });
  svg.addEventListener("mousemove", event => {
    const box = svg.getBoundingClientRect(), at = x0 + ((event.clientX - box.left) / box.width * width - left) / (width - left - right) * (x1 - x0);
    const near = line => line.points.reduce((best, p) => Math.abs(p[0] - at) < Math.abs(best[0] - at) ? p : best);
    cross.setAttribute("x1", px(Math.min(Math.max(at, x0), x1)));
    cross.setAttribute("x2", cross.getAttribute("x1"));
    cross.setAttribute("visibility", "visible");
    for (const {line, value} of rows) value.textContent = short(near(line)[1]);
    said.textContent = `at ${AXES[over]} ${short(Math.min(Math.max(at, x0), x1))}`;
  });
  const head = make("tr", "", null, ...["run", "task", "agent"].map(n => make("th", "left", n)), make("th", "", "seed"), make("th", "", metric), make("th"));
  return [svg, make("div", "row", null, said), make("table", "legend", null, head, ...rows.map(r => r.row))];
}

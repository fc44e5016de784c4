const COLUMNS = [
  {key: "name", text: true, cell: nameCell},
  {key: "command", text: true}, {key: "task", text: true}, {key: "backbone", text: true}, {key: "agent", text: true, cell: run => Object.assign(make("td", "left cut", run.agent ?? "–"), {title: run.agent ?? ""})},
  {key: "seed", cell: run => make("td", "num", run.seed ?? "–")},
  {key: "accuracy", title: "one greedy answer a problem, with its 95% Wilson interval; of a search the solved share", cell: accuracyCell},
  {key: "avg", name: "avg@k", title: "mean accuracy of k sampled answers", cell: run => sampledCell(run, "avg")},
  {key: "pass", name: "pass@k", title: "share of problems of which one of k sampled answers is right", cell: run => sampledCell(run, "pass")},
  {key: "episodes", title: "training episodes", cell: run => make("td", "num", run.episodes ? number(Math.round(run.episodes), 0) : "–")},
  {key: "seconds", title: "seconds of training", cell: run => make("td", "num", run.seconds ? number(Math.round(run.seconds), 0) : "–")},
  {key: "when", title: "when its files were last written", cell: run => Object.assign(make("td", "num dim", dateOf(run.when)), {title: new Date(1000 * run.when).toString()})},
  {key: "state", text: true, cell: run => make("td", "left", null, stateOf(run))},
];
function dateOf(seconds) {
  const at = new Date(1000 * seconds), two = n => String(n).padStart(2, "0");
  return `${at.getFullYear() === new Date().getFullYear() ? "" : `${at.getFullYear()}-`}${two(at.getMonth() + 1)}-${two(at.getDate())} ${two(at.getHours())}:${two(at.getMinutes())}`;
}
const FILTERS = ["command", "task", "backbone", "agent", "state"];

// Runs of a comparison begin alike: the beginning is what is cut off.
function nameCell(run) {
  return Object.assign(make("td", "left name", null, make("bdi", "", run.name)), {title: run.name});
}
const stateOf = run => make("span", `state ${run.state}`, run.state);
function sampledCell(run, key) {
  return run[key] === null ? make("td", "none", "–") : Object.assign(make("td", "num", number(run[key]), ...(key === "pass" ? [make("span", "dim", ` @${run.k}`)] : [])), {title: `k = ${run.k}`});
}
function accuracyCell(run) {
  if (run.accuracy === null) return make("td", "none", "–");
  const bar = make("span", "interval", null, make("i"), make("b"));
  bar.firstChild.style.left = `${100 * run.low}%`;
  bar.firstChild.style.width = `${100 * (run.high - run.low)}%`;
  bar.lastChild.style.left = `${100 * run.accuracy}%`;
  return Object.assign(make("td", "num", number(run.accuracy), make("span", "ci", ` [${number(run.low, 2)}, ${number(run.high, 2)}]`), bar), {title: `n = ${run.n}`});
}

function filtered() {
  const words = (state.q ?? "").toLowerCase().split(/\s+/).filter(Boolean);
  return index.runs.filter(run => {
    const all = COLUMNS.filter(c => c.text).map(c => run[c.key] ?? "").join(" ").toLowerCase() + ` seed ${run.seed}`;
    return words.every(word => all.includes(word)) && FILTERS.every(key => !state[`f_${key}`] || String(run[key]) === state[`f_${key}`]);
  });
}

// What is not known comes last, whichever way is sorted.
function sorted(runs) {
  const key = COLUMNS.some(c => c.key === state.sort) ? state.sort : "when", down = state.sort ? state.desc === "1" : true;
  const order = (a, b) => typeof a === "string" ? a.localeCompare(b, "en", {numeric: true}) : a - b;
  return [...runs].sort((one, other) => {
    const a = one[key], b = other[key], none = x => x === null || x === undefined;
    if (none(a) || none(b)) return none(a) - none(b);
    return (down ? -1 : 1) * order(a, b) || order(one.name, other.name);
  });
}

function select(ids) {
  go({sel: [...new Set(ids)].join(",")}, true);
}

function showRuns(current) {
  const runs = sorted(filtered()), picked = chosen(), ids = new Set(picked.map(run => run.id));
  const menus = FILTERS.map(key => {
    const counts = new Map();
    for (const run of index.runs) if (run[key]) counts.set(run[key], (counts.get(run[key]) ?? 0) + 1);
    const options = [...counts].sort(([a], [b]) => a.localeCompare(b)).map(([name, n]) => [name, `${name} (${n})`]);
    return options.length > 1 ? choice(key, [["", "all"], ...options], state[`f_${key}`] ?? "", value => go({[`f_${key}`]: value}, true)) : "";
  });
  const pair = picked.filter(run => run.stored);
  const bar = make("div", "row", null, field("q", "filter runs, such as: grpo chain_sum", "q"), ...menus, make("span", "count", `${runs.length} of ${plural(index.runs.length, "run")}`));
  const acts = make("div", "row", null,
    control("button", {click: () => go({view: "curves"})}, {className: "first", textContent: `Curves of ${picked.length}`, disabled: !picked.length}),
    control("button", {click: () => go({view: "compare", a: pair[0].id, b: pair[1].id, sa: null, sb: null, only: null, page: null})}, {textContent: "Compare two, problem by problem", disabled: pair.length !== 2}),
    control("button", {click: () => select([])}, {textContent: "Clear selection", disabled: !picked.length}),
    make("span", "count", picked.length ? `${picked.length} selected` : "Tick runs to draw or to compare them; click one for its episodes."));
  const all = runs.length > 0 && runs.every(run => ids.has(run.id));
  const every = control("input", {change: () => select(all ? [] : runs.slice(0, 50).map(run => run.id))}, {type: "checkbox", checked: all, title: "select the first 50 that are shown", ariaLabel: "select all"});
  const head = make("tr", "", null, make("th", "", null, every), ...COLUMNS.map(column => {
    const key = state.sort ?? "when", down = state.sort ? state.desc === "1" : true, on = column.key === key;
    const cell = make("th", `sort ${column.text ? "left" : ""}`, `${column.name ?? column.key}${on ? (down ? " ▾" : " ▴") : ""}`);
    cell.title = column.title ?? "";
    cell.dataset.sort = column.key;
    cell.addEventListener("click", () => go({sort: column.key, desc: on ? (down ? "0" : "1") : (column.text ? "0" : "1")}, true));
    return cell;
  }));
  const rows = runs.map(run => {
    const box = control("input", {click: event => event.stopPropagation(), change: () => select(ids.has(run.id) ? [...ids].filter(id => id !== run.id) : [...ids, run.id])}, {type: "checkbox", checked: ids.has(run.id), ariaLabel: `select ${run.name}`});
    const row = make("tr", `r ${ids.has(run.id) ? "chosen" : ""}`, null, make("td", "", null, box), ...COLUMNS.map(c => c.cell ? c.cell(run) : make("td", "left", run[c.key] ?? "–")));
    row.dataset.run = run.id;
    row.tabIndex = 0;
    row.addEventListener("click", event => { if (event.target.tagName !== "INPUT") openRun(run); });
    row.addEventListener("keydown", event => { if (event.key === "Enter" && event.target === row) openRun(run); });
    return row;
  });
  const notes = index.notes.length ? [make("details", "", null, make("summary", "", `${plural(index.notes.length, "note")}: what was passed over`), ...index.notes.map(note => make("div", "note", note)))] : [];
  put(current, bar, acts, make("table", "runs", null, head, ...rows), ...(runs.length ? [] : [make("p", "note", "No run fits the filter.")]), ...notes);
}

const openRun = run => go({view: "run", run: run.id, set: null, ep: null, page: null, verdict: null, text: null});

const at = id => document.getElementById(id);
const KEPT = 16;  // chunks in memory beside those that are shown
const arrived = new Map(), loading = new Map(), kept = new Map();
let index = null, state = {}, turn = 0;

// Files of data call this: a page that is opened from a disk may load scripts, but read no files.
window.ollm = (name, packed) => arrived.set(name, packed);

// Everything that a model or a task says goes in as text, never as HTML.
function make(tag, classes = "", text = null, ...inside) {
  const node = document.createElement(tag);
  if (classes) node.className = classes;
  if (text !== null) node.textContent = text;
  node.append(...inside);
  return node;
}

function control(tag, on, properties, ...inside) {
  const node = Object.assign(make(tag, "", null, ...inside), properties);
  for (const [event, handler] of Object.entries(on)) node.addEventListener(event, handler);
  return node;
}

function choice(label, options, value, chosen) {
  const list = make("select");
  list.append(...options.map(([key, name]) => Object.assign(make("option", "", name), {value: key, selected: key === value})));
  list.addEventListener("change", () => chosen(list.value));
  list.setAttribute("aria-label", label);
  return make("label", "", label, list);
}

// A file of data; those used last stay in memory.
function load(file, keep = true) {
  const name = file.split("?")[0];
  if (kept.has(name)) {
    const found = kept.get(name);
    kept.delete(name);
    kept.set(name, found);
    return Promise.resolve(found);
  }
  if (!loading.has(name)) loading.set(name, fetchScript(file, name).finally(() => loading.delete(name)));
  return loading.get(name).then(found => {
    if (keep) kept.set(name, found);
    while (kept.size > KEPT) kept.delete(kept.keys().next().value);
    return found;
  });
}

function fetchScript(file, name) {
  return new Promise((done, failed) => {
    const script = make("script");
    script.src = `data/${file}`;
    script.onerror = () => { script.remove(); failed(new Error(`data/${name} is missing: run ollm-rl view again`)); };
    script.onload = () => {
      script.remove();
      const packed = arrived.get(name);
      arrived.delete(name);
      packed === undefined ? failed(new Error(`data/${name} is damaged: delete it and run ollm-rl view again`)) : unpack(packed).then(done, failed);
    };
    document.head.append(script);
  });
}

function unpack(packed) {
  const bytes = Uint8Array.from(atob(packed), c => c.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).json();
}

const runOf = id => index.byId.get(id);
const chosen = () => (state.sel ? state.sel.split(",") : []).map(runOf).filter(Boolean);
const details = run => load(run.data);

// The episodes of a set, or those from `first` on, `n` of them.
async function episodesOf(run, set, first = 0, n = Infinity) {
  const found = (await details(run)).sets[set], picked = [];
  if (!found) return [];
  for (const [file, start, count] of found.parts) {
    if (start + count <= first || start >= first + n) continue;
    for (const episode of await load(file)) if (episode.set === set && episode.i >= first && episode.i < first + n) picked.push(episode);
  }
  return picked;
}

const TRAINING = /^train_(\d+)$/;
const isTraining = set => TRAINING.test(set);
const setName = set => isTraining(set) ? `training, iteration ${TRAINING.exec(set)[1]}` : set;
const heldOut = sets => Object.keys(sets).filter(set => !isTraining(set));

function firstSet(run, sets) {
  if (run.first && sets[run.first]) return run.first;
  return heldOut(sets)[0] ?? Object.keys(sets).at(-1) ?? null;
}

const number = (value, digits = 3) => value === null || value === undefined ? "–" : Number.isInteger(value) && digits === 0 ? value.toLocaleString("en") : value.toFixed(digits);
const short = value => value === null || value === undefined ? "–" : Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(4)));
const plural = (n, word) => `${n.toLocaleString("en")} ${word}${n === 1 ? "" : "s"}`;

// All that is shown is in the address, so that it can be kept and sent, and the browser's back button works.
function address(changes) {
  const next = {...state, ...changes};
  return "#" + new URLSearchParams(Object.entries(next).filter(([, value]) => value !== null && value !== undefined && value !== "")).toString();
}
const link = (text, changes, classes = "") => Object.assign(make("a", classes, text), {href: address(changes)});
function go(changes, replace = false) {
  const to = address(changes);
  if (to === location.hash) return;
  if (replace) { history.replaceState(null, "", to); show(); } else location.hash = to;
}

const TABS = [["runs", "Runs"], ["curves", "Curves"], ["compare", "Problem by problem"], ["run", "Episodes"], ["search", "Search texts"]];
const VIEWS = {runs: showRuns, curves: showCurves, compare: showCompare, run: showRun, search: showSearch};

async function show() {
  const mine = ++turn;
  state = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  const view = VIEWS[state.view] ? state.view : "runs";
  at("tabs").replaceChildren(...TABS.map(([key, name]) => {
    const n = key === "curves" && chosen().length;
    return link(n ? `${name} (${n})` : name, {view: key}, key === view ? "on" : "");
  }));
  at("error").textContent = "";
  document.body.dataset.ready = "";
  try {
    await VIEWS[view](() => mine === turn);
  } catch (error) {
    if (mine === turn) at("error").textContent = error.message;
  }
  if (mine === turn) document.body.dataset.ready = view;
}

// Takes the place of what is shown, unless something else was asked for meanwhile; the field that is typed in stays as it is.
function put(current, ...nodes) {
  if (!current()) return;
  const typing = document.activeElement?.dataset?.field, place = document.activeElement?.selectionStart;
  at("main").replaceChildren(...nodes);
  const again = typing && document.querySelector(`[data-field="${typing}"]`);
  if (again) { again.focus(); again.setSelectionRange?.(place, place); }
}

function field(name, label, key, more = {}) {
  let timer = 0;
  const input = control("input", {input: () => { clearTimeout(timer); timer = setTimeout(() => go({[key]: input.value, ...more}, true), 150); }}, {type: "search", placeholder: label, value: state[key] ?? "", ariaLabel: label});
  input.dataset.field = name;
  return input;
}

async function start() {
  try {
    index = await load(INDEX, false);
    index.byId = new Map(index.runs.map(run => [run.id, run]));
  } catch (error) {
    at("error").textContent = error.message;
    return;
  }
  addEventListener("hashchange", show);
  await show();
  document.body.dataset.milliseconds = Math.round(performance.now());
}

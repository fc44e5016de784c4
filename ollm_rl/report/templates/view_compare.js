const ON_A_PAGE = 20;
const KINDS = [["a", "only the first solves"], ["b", "only the second solves"], ["both", "both solve"], ["neither", "neither solves"]];

// By what is asked: numbers of problems differ between runs where their seeds do.
function byProblem(episodes) {
  const found = new Map();
  for (const episode of episodes) {
    const asked = episode.record.problem;
    found.has(asked) ? found.get(asked).push(episode) : found.set(asked, [episode]);
  }
  return found;
}

async function showCompare(current) {
  const able = index.runs.filter(run => run.stored).sort((a, b) => a.name.localeCompare(b.name, "en", {numeric: true}));
  const picked = chosen().filter(run => run.stored), one = runOf(state.a) ?? picked[0], other = runOf(state.b) ?? picked[1];
  const pick = (label, key, run, set) => choice(label, [["", "choose a run"], ...able.map(r => [r.id, `${r.name}${r.task ? ` · ${r.task}` : ""}`])], run?.id ?? "", value => go({[key]: value, [set]: null, page: null, only: null}, true));
  const bar = make("div", "row wide", null, pick("first", "a", one, "sa"), pick("second", "b", other, "sb"));
  if (!one || !other) return put(current, bar, make("p", "note", "Choose two runs: those of one task and seed were asked the same problems."));
  const sides = [], sets = [];
  for (const [run, key] of [[one, "sa"], [other, "sb"]]) {
    const has = (await details(run)).sets, set = has[state[key]] ? state[key] : firstSet(run, has);
    sets.push(set);
    bar.append(choice(`texts of the ${key === "sa" ? "first" : "second"}`, Object.keys(has).map(s => [s, `${setName(s)} (${has[s].n})`]), set, value => go({[key]: value, page: null}, true)));
    sides.push(byProblem(set === null ? [] : await episodesOf(run, set)));
  }
  const shared = [...sides[0].keys()].filter(asked => sides[1].has(asked));
  const right = asked => sides.map(side => side.get(asked).some(e => e.solved));
  const groups = {a: [], b: [], both: [], neither: []};
  for (const asked of shared) {
    const [a, b] = right(asked);
    groups[a ? (b ? "both" : "a") : b ? "b" : "neither"].push(asked);
  }
  const names = {a: `solved by ${one.name} only`, b: `solved by ${other.name} only`, both: "solved by both", neither: "solved by neither"};
  if (!shared.length) return put(current, bar, make("p", "note", `These texts answer no problem in common: the first has ${plural(sides[0].size, "problem")}, the second ${sides[1].size}. Choose runs of the same task, split and seed.`));
  const only = groups[state.only] ? state.only : KINDS.map(([kind]) => kind).find(kind => groups[kind].length);
  const boxes = make("div", "boxes", null, ...KINDS.map(([kind]) => {
    const box = control("button", {click: () => go({only: kind, page: null}, true)}, {className: `${kind} ${kind === only ? "on" : ""}`}, make("b", "", String(groups[kind].length)), names[kind]);
    box.dataset.kind = kind;
    return box;
  }));
  const several = sides.some(side => [...side.values()].some(e => e.length > 1));
  const left = [sides[0].size - shared.length, sides[1].size - shared.length];
  const note = `${plural(shared.length, "problem")} in common${left[0] + left[1] ? `; ${left[0]} of the first and ${left[1]} of the second are not` : ""}.${several ? " Of several texts a problem, one right one solves it." : ""} Grey: where the two texts are still the same.`;
  const page = pageOf(groups[only].length);
  const cards = groups[only].slice(page * ON_A_PAGE, (page + 1) * ON_A_PAGE).map(asked => pair(asked, [one, other], sets, sides));
  put(current, bar, boxes, make("p", "note", note), ...cards, pager(groups[only].length));
}

function pair(asked, runs, sets, sides) {
  const shown = sides.map(side => side.get(asked).find(e => e.solved) ?? side.get(asked)[0]), texts = shown.map(e => e.record.text);
  let same = 0;
  while (same < Math.min(texts[0].length, texts[1].length) && texts[0][same] === texts[1][same]) same++;
  const columns = shown.map((episode, i) => {
    const all = sides[i].get(asked), share = all.length > 1 ? `${all.filter(e => e.solved).length} of ${all.length} right` : episode.said;
    const head = make("div", "head", null, make("span", "", null, make("b", episode.solved ? "ok" : "no", episode.solved ? "✓ " : "✗ "), `${runs[i].name}: ${share}`), link("token by token", {view: "run", run: runs[i].id, set: sets[i], ep: episode.i, page: null}));
    return make("div", `side ${episode.solved ? "right" : ""}`, null, head, make("div", "said clip", null, make("span", "same", texts[i].slice(0, same)), texts[i].slice(same)));
  });
  const gold = shown[0].record.gold, long = String(gold ?? "").includes("\n");
  return make("div", "pair", null, make("div", "problem clip", asked, ...(gold && !long ? [make("b", "", `  (${gold})`)] : [])), make("div", "two", null, ...columns));
}

const pageOf = (n, size = ON_A_PAGE) => Math.min(Math.max(0, Number(state.page ?? 0) || 0), Math.max(0, Math.ceil(n / size) - 1));
function pager(n, size = ON_A_PAGE) {
  const page = pageOf(n, size), pages = Math.ceil(n / size);
  if (pages < 2) return make("span");
  const button = (text, to) => control("button", {click: () => go({page: to})}, {textContent: text, disabled: to < 0 || to >= pages});
  return make("div", "row", null, button("◂ earlier", page - 1), make("span", "count", `${page * size + 1} to ${Math.min(n, (page + 1) * size)} of ${n.toLocaleString("en")}`), button("later ▸", page + 1));
}

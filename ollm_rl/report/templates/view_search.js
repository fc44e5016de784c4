const HITS = 200;  // that are shown
const SCOPES = [["", "all runs"], ["sel", "the selected runs"], ["q", "the runs that the table shows"]];
const PARTS = [["", "evaluations and training"], ["held", "evaluations"], ["train", "training"]];
const FIELDS = [["", "texts and problems"], ["text", "texts"], ["problem", "problems"]];

// The files of episodes of a run that are to be read, each once.
async function filesOf(run, part) {
  const sets = Object.entries((await details(run)).sets).filter(([name]) => !part || isTraining(name) === (part === "train"));
  return [...new Set(sets.flatMap(([, set]) => set.parts.map(([file]) => file)))];
}

async function showSearch(current) {
  const input = control("input", {keydown: event => { if (event.key === "Enter") go({find: input.value}); }}, {type: "search", placeholder: "what to look for", value: state.find ?? "", ariaLabel: "what to look for"});
  input.dataset.field = "find";
  const bar = make("div", "row wide", null, input, control("button", {click: () => go({find: input.value})}, {className: "first", textContent: "Search"}),
    choice("in", FIELDS, state.field ?? "", value => go({field: value}, true)), choice("of", SCOPES, state.scope ?? "", value => go({scope: value}, true)), choice("from", PARTS, state.part ?? "", value => go({part: value}, true)));
  const wanted = (state.find ?? "").toLowerCase();
  if (!wanted) return put(current, bar, make("p", "note", "The files are read one after the other; upper and lower case are the same."));
  const seen = new Set(), runs = (state.scope === "sel" ? chosen() : state.scope === "q" ? filtered() : index.runs).filter(run => run.stored && !seen.has(run.run) && seen.add(run.run));
  const meter = make("progress"), said = make("span", "count"), list = make("div"), found = {hits: 0, episodes: 0, stopped: false};
  const stop = control("button", {click: () => { found.stopped = true; }}, {textContent: "Stop"});
  put(current, bar, make("div", "row", null, meter, said, stop), list);
  meter.max = runs.length;
  const report = done => {
    meter.value = done;
    said.textContent = `${plural(found.hits, "hit")} in ${plural(found.episodes, "episode")} of ${done} of ${plural(runs.length, "run")}${found.hits > HITS ? `; the first ${HITS} are shown` : ""}${found.stopped ? "; stopped" : ""}`;
  };
  for (const [number, run] of runs.entries()) {
    report(number);
    for (const file of await filesOf(run, state.part)) {
      if (!current()) return;
      if (found.stopped) { report(number); stop.disabled = true; return; }
      for (const episode of await load(file, false)) {
        if (state.part && isTraining(episode.set) !== (state.part === "train")) continue;
        found.episodes++;
        const where = ["text", "problem"].find(f => (!state.field || state.field === f) && episode.record[f].toLowerCase().includes(wanted));
        if (where && ++found.hits <= HITS) list.append(hit(run, episode, where, wanted));
      }
    }
  }
  report(runs.length);
  if (!found.hits) list.append(make("p", "note", "Nothing was found."));
  stop.disabled = true;
  meter.dataset.done = "yes";
}

function hit(run, episode, where, wanted) {
  const text = episode.record[where], start = text.toLowerCase().indexOf(wanted), from = Math.max(0, start - 80), end = start + wanted.length;
  const to = {view: "run", run: run.id, set: episode.set, ep: episode.i, page: null};
  return make("div", "pair hit", null, make("div", "row", null, make("b", episode.solved ? "ok" : "no", episode.solved ? "✓" : "✗"), link(`${run.name}, ${setName(episode.set)}, episode ${episode.i + 1}`, to), make("span", "count", where)),
    make("div", "said", null, (from ? "…" : "") + text.slice(from, start), make("mark", "", text.slice(start, end)), text.slice(end, end + 160) + (end + 160 < text.length ? "…" : "")));
}

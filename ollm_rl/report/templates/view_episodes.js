const LISTED = 50;
const VERDICTS = [["", "all"], ["solved", "solved"], ["failed", "failed"], ["options", "with all options"]];
const FITS = {solved: e => e.solved, failed: e => !e.solved, options: e => Boolean(e.steps)};

async function showRun(current) {
  const run = runOf(state.run) ?? chosen()[0] ?? sorted(index.runs).find(r => r.stored);
  if (!run) return put(current, make("p", "note", "No run has episodes to look at."));
  const found = await details(run), sets = found.sets, set = sets[state.set] ? state.set : firstSet(run, sets);
  const head = [make("h2", "", run.name), facts(run, found)];
  if (set === null) return put(current, ...head, make("p", "note", "This run has stored no episodes."), ...more(found));
  const bar = setBar(sets, set);
  if (state.ep !== undefined) return put(current, ...head, bar, ...(await episodePage(run, sets[set], set, Number(state.ep))), ...more(found));
  const fits = FITS[state.verdict] ?? (() => true), words = (state.text ?? "").toLowerCase();
  const filters = make("div", "row", null, choice("verdict", VERDICTS, state.verdict ?? "", value => go({verdict: value, page: null}, true)), field("text", "with this in problem or text", "text", {page: null}));
  let episodes, total = sets[set].n;
  if (state.verdict || words) {
    episodes = (await episodesOf(run, set)).filter(e => fits(e) && (!words || `${e.record.problem}\n${e.record.text}`.toLowerCase().includes(words)));
    total = episodes.length;
    episodes = episodes.slice(pageOf(total, LISTED) * LISTED, (pageOf(total, LISTED) + 1) * LISTED);
  } else episodes = await episodesOf(run, set, pageOf(total, LISTED) * LISTED, LISTED);
  filters.append(make("span", "count", `${plural(total, "episode")}; ${sets[set].solved.toLocaleString("en")} of ${sets[set].n.toLocaleString("en")} solved`));
  put(current, ...head, bar, filters, listOf(episodes), pager(total, LISTED), ...more(found));
}

function facts(run, found) {
  const said = [["task", run.task], ["backbone", run.backbone], ["agent", run.agent], ["seed", run.seed], ["command", run.command], ["accuracy", run.accuracy === null ? null : `${number(run.accuracy)} [${number(run.low, 2)}, ${number(run.high, 2)}]`], ["before", run.before === null ? null : number(run.before)], ["training episodes", run.episodes ? number(Math.round(run.episodes), 0) : null], ["options cover", Number.isFinite(found.conversion?.coverage?.all) ? number(found.conversion.coverage.all, 4) : null]];
  const line = make("div", "facts", null, ...said.filter(([, value]) => value !== null && value !== undefined).map(([name, value]) => make("span", "", `${name} `, make("b", "", String(value)))), stateOf(run));
  if (run.report) line.append(Object.assign(make("a", "", "its report"), {href: run.report}));
  if (run.curve) line.append(link("its curves", {view: "curves", sel: [...new Set([...chosen().map(r => r.id), run.id])].join(",")}));
  return line;
}

function more(found) {
  return found.config ? [make("details", "", null, make("summary", "", "Configuration"), make("pre", "", found.config))] : [];
}

function setBar(sets, set) {
  const bar = make("div", "row"), to = name => ({set: name, ep: null, page: null});
  for (const name of heldOut(sets)) {
    const button = control("button", {click: () => go(to(name))}, {textContent: `${name} (${sets[name].n.toLocaleString("en")})`, className: name === set ? "on" : ""});
    button.dataset.set = name;
    bar.append(button);
  }
  const training = Object.keys(sets).filter(isTraining);
  if (training.length) {
    const at = training.indexOf(set), label = make("span", "count", at < 0 ? `training: ${plural(training.length, "iteration")}` : `${setName(set)} of ${training.length}: ${sets[set].solved} of ${sets[set].n} solved`);
    const slider = control("input", {
      input: () => { const name = training[slider.value]; label.textContent = `${setName(name)} of ${training.length}: ${sets[name].solved} of ${sets[name].n} solved`; },
      change: () => go(to(training[slider.value])),
    }, {type: "range", min: 0, max: training.length - 1, ariaLabel: "training iteration"});
    slider.value = Math.max(0, at);
    const step = (text, i) => control("button", {click: () => go(to(training[i]))}, {textContent: text, disabled: i < 0 || i >= training.length, ariaLabel: text === "◂" ? "earlier iteration" : "later iteration"});
    bar.append(step("◂", at < 0 ? -1 : at - 1), slider, step("▸", at < 0 ? 0 : at + 1), label);
  }
  return bar;
}

function listOf(episodes) {
  const head = make("tr", "", null, make("th"), ...["problem", "text"].map(n => make("th", "left", n)), ...["answer", "reward", "tokens", "decisions"].map(n => make("th", "", n)));
  return make("div", "wrap", null, make("table", "list", null, head, ...episodes.map(e => {
    const r = e.record, line = make("tr", "e", null, make("td", e.solved ? "ok" : "no", e.solved ? "✓" : "✗"), make("td", "cut", oneLine(r.problem, 120)), make("td", "cut", oneLine(r.text, 120)),
      make("td", "", oneLine(r.answer ?? "–", 24)), make("td", "num", short(r.reward)), make("td", "num", r.tokens?.length ?? "–"), make("td", "num", r.latents ? String(r.latents.filter(z => z >= 0).length) : "–"));
    line.title = e.steps ? "with what every option would have said" : "";
    if (e.steps) line.firstChild.append(" ◆");
    line.tabIndex = 0;
    line.dataset.episode = e.i;
    line.addEventListener("click", () => go({ep: e.i}));
    line.addEventListener("keydown", event => { if (event.key === "Enter") go({ep: e.i}); });
    return line;
  })), ...(episodes.some(e => e.steps) ? [make("p", "note", "◆: with what every option would have said.")] : []));
}
const oneLine = (text, n) => { const line = String(text).replace(/\s+/g, " "); return line.length > n ? line.slice(0, n) + "…" : line; };

async function episodePage(run, found, set, i) {
  const [episode] = await episodesOf(run, set, i, 1);
  const move = (text, to) => control("button", {click: () => go({ep: to})}, {textContent: text, disabled: to < 0 || to >= found.n});
  const bar = make("div", "row", null, control("button", {click: () => go({ep: null})}, {textContent: "▴ all of them"}), move("◂ previous", i - 1), move("next ▸", i + 1), make("span", "count", `episode ${i + 1} of ${found.n.toLocaleString("en")}, ${setName(set)}`));
  if (!episode) return [bar, make("p", "note", "There is no such episode.")];
  bar.append(exportLink(run, episode));
  const r = episode.record, said = [["reward", r.reward], ["answer", r.answer], ["expected", r.gold], ["verdict", r.verdict], ["ends with", r.stop], ["tokens", r.tokens?.length], ["seed", r.seed], ["log-probability", r.log_prob], ["value", r.value], ["problem", r.problem_id]];
  const line = make("div", "facts", null, ...said.filter(([, v]) => v !== null && v !== undefined && v !== "").map(([name, v]) => make("span", "", `${name} `, make("b", "", oneLine(typeof v === "number" ? short(v) : v, 80)))));
  const card = make("div", `episode ${episode.solved ? "solved" : "failed"}`, null, make("div", "problem", r.problem, make("b", "", `  ${episode.said}`)), await traceOf(run, episode));
  return [bar, card, line, make("p", "note", explained(run, episode)), make("details", "", null, make("summary", "", "The text as it is"), make("pre", "", r.text))];
}

// As the line of the run's file has it, with the steps where they are known.
function exportLink(run, episode) {
  const value = {run: run.name, set: episode.set, index: episode.i, ...episode.record, ...(episode.steps ? {steps: episode.steps} : {})};
  const a = make("a", "button", "Export as JSON");
  a.href = URL.createObjectURL(new Blob([JSON.stringify(value, null, 1)], {type: "application/json"}));
  a.download = `${run.name}-${episode.set}-${episode.i}.json`.replace(/[^\w.-]+/g, "_");
  a.id = "export";
  return a;
}

function explained(run, episode) {
  const what = "Shaded tokens are decision points: the options disagreed there. The number under a token is the latent that was picked (a dash: all options gave this token, or nobody was asked)";
  if (episode.steps) return `${what}; orange where the prior gave it less than 10%. Point at a token for what each option would have said, and how likely the prior finds it.`;
  if (run.tokens) return `${what}. What the other options would have said is stored for the episodes marked ◆.`;
  return "The tokenizer of this backbone is not on the machine that made this page: below the text stand the latents, a dash where nobody was asked.";
}

async function traceOf(run, episode) {
  const r = episode.record, latents = r.latents ?? [];
  if (episode.steps) return make("div", "trace", null, ...episode.steps.map(token));
  if (!run.tokens || !r.tokens?.length) return make("div", "", null, make("div", "said", r.text), make("div", "note", latents.map(z => z >= 0 ? z : "–").join(" ")));
  const texts = await load(run.tokens);
  return make("div", "trace", null, ...r.tokens.map((id, i) => token({token: texts[id] ?? `[${id}]`, latent: latents[i] ?? -1, options: []})));
}

function token(step) {
  const text = step.token.replaceAll("\n", "⏎\n"), offered = step.latent >= 0 && step.options.length > 1 ? [...step.options].sort((a, b) => b[2] - a[2]) : [];
  const deciding = step.latent >= 0, prior = offered.filter(([, said]) => said === step.token).reduce((sum, o) => sum + o[2], 0);
  if (!deciding || (step.options.length && !offered.length)) return make("span", "t", text, make("small", "", "–"));
  const node = make("span", `t d ${offered.length && prior < 0.1 ? "rare" : ""}`, text, make("small", "", String(step.latent)));
  if (offered.length) {
    node.tabIndex = 0;
    node.append(make("span", "o", null, ...offered.map(([z, said, p]) => make("div", said === step.token ? "picked" : "", `${z}: “${JSON.stringify(said).slice(1, -1)}” ${(100 * p).toFixed(1)}%`))));
  }
  return node;
}

document.addEventListener("keydown", event => {
  if (state.view !== "run" || state.ep === undefined || event.ctrlKey || event.metaKey || event.altKey || ["INPUT", "SELECT"].includes(event.target.tagName)) return;
  const to = {ArrowLeft: "◂ previous", ArrowRight: "next ▸"}[event.key];
  if (to) [...document.querySelectorAll("#main button")].find(b => b.textContent === to)?.click();
});

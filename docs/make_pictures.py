"""The pictures of docs/start/idea.md, from a run of `make demo`: `python docs/make_pictures.py runs/demo`."""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import ollm_rl as ol
from ollm_rl.serving.game import Game

FOLDER = Path(__file__).parent / "pictures"
FORCED, DECIDED, INK, QUIET, GOOD, BAD = "#eceff1", "#ffd180", "#263238", "#78909c", "#2e7d32", "#c62828"
PRIOR, POLICY = "#90a4ae", "#00796b"
ROW = 24  # tokens of a text in a row of cells


def main(run: Path) -> None:
    agent = ol.load_agent(run / "grpo-0" / "policy")
    game = Game(agent.session, agent)
    told = example(game)
    FOLDER.mkdir(exist_ok=True)
    draw_texts(told, FOLDER / "texts.png")
    draw_decision(told, FOLDER / "decision.png")
    draw_accuracies(run, FOLDER / "accuracies.png")
    agent.session.close()


def example(game: Game, tries: int = 50) -> dict[str, Any]:
    """The first test problem that the prior fails and the policy solves: its first decision, and both texts."""
    for index in range(tries):
        found: dict[str, Any] = {}
        for by in ("prior", "policy"):
            game.new("test", index)
            found["options"], found["problem"] = game.state()["options"], game.problem.problem
            found["hidden"] = game.engine.hidden[0].float().tolist()
            found["own"] = game.session.backbone.hidden_size
            while not game.episode.stop:
                decision = game._asked()
                game.choose(decision.takes[by])
            found[by] = game.state()
        if found["policy"]["ended"]["solved"] and not found["prior"]["ended"]["solved"]:
            return found
    raise SystemExit(f"the policy solves none of the first {tries} test problems that the prior fails")


def shown(text: str) -> str:
    return text.replace("\n", "↵").replace(" ", "␣")


def draw_texts(told: dict[str, Any], path: Path) -> None:
    """Both greedy texts, a cell a token: grey where all options agree, orange with its latent where one was chosen."""
    texts = [(name, told[by]) for name, by in (("prior (before RL)", "prior"), ("policy (after RL)", "policy"))]
    rows = [-(-len(state["tokens"]) // ROW) for _, state in texts]
    figure, axes = plt.subplots(figsize=(11, 1.1 + 0.62 * sum(rows) + 0.5 * len(texts)))
    axes.axis("off")
    y = 0.0
    axes.text(0, y, f"problem: {told['problem']}", fontsize=11, color=INK, va="center")
    for name, state in texts:
        end = state["ended"]
        y -= 1.0
        verdict = f"answers {end['answer']}: " + ("right" if end["solved"] else f"wrong, it is {end['gold']}")
        axes.text(0, y, name, fontsize=11, weight="bold", color=INK, va="center")
        axes.text(ROW, y, verdict, fontsize=11, color=GOOD if end["solved"] else BAD, ha="right", va="center")
        for at, token in enumerate(state["tokens"]):
            if at % ROW == 0:
                y -= 1.0
            chosen = bool(token["by"])
            x = at % ROW
            axes.add_patch(plt.Rectangle((x + 0.03, y - 0.38), 0.94, 0.76, color=DECIDED if chosen else FORCED, lw=0))
            text = "end" if token["ends"] else shown(token["text"])
            size = 8 if len(text) < 6 else 5.5
            axes.text(x + 0.5, y + 0.06, text, ha="center", va="center", fontsize=size, family="monospace", color=INK)
            if chosen:
                axes.text(x + 0.93, y - 0.33, f"z={token['latent']}", ha="right", va="bottom", fontsize=5.5, color=INK)
    axes.set_xlim(0, ROW)
    axes.set_ylim(y - 0.6, 0.6)
    save(figure, path)


def draw_decision(told: dict[str, Any], path: Path) -> None:
    """The first decision: the state that is read, and the options with the probabilities of prior and policy."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.4), width_ratios=(1.25, 1), gridspec_kw={"wspace": 0.3})
    hidden, own = told["hidden"], told["own"]
    limit = sorted(map(abs, hidden))[int(0.98 * len(hidden))]
    wide = 48
    padded = hidden + [0.0] * (-len(hidden) % wide)
    left.imshow([padded[at : at + wide] for at in range(0, len(padded), wide)], cmap="RdBu_r", vmin=-limit, vmax=limit)
    left.axhline(own / wide - 0.5, color=INK, lw=1)
    left.set_xticks([])
    left.set_yticks(
        [(own / wide - 1) / 2, (own + len(hidden)) / 2 / wide - 0.5], [f"h: {own}", f"g: {len(hidden) - own}"]
    )
    left.set_title("what is read: the state before the next token", fontsize=10, color=INK)
    options = sorted(told["options"], key=lambda o: max(o["prior"], o["policy"]))
    for y, option in enumerate(options):
        for shift, who, colour, name in ((0.2, "prior", PRIOR, "prior"), (-0.2, "policy", POLICY, "policy after RL")):
            right.barh(y + shift, option[who], 0.38, color=colour, label=None if y else name)
            right.text(option[who] + 0.01, y + shift, f"{option[who]:.2f}", va="center", fontsize=7, color=INK)
    right.set_yticks(range(len(options)), [f"z={o['latent']}: “{shown(o['text'])}”" for o in options], fontsize=9)
    right.set_xlabel("probability", fontsize=9)
    right.set_xlim(0, 1)
    right.set_title("what can be chosen: the options' tokens", fontsize=10, color=INK)
    right.legend(loc="lower right", frameon=False, fontsize=9)
    right.spines[["top", "right"]].set_visible(False)
    save(figure, path)


def draw_accuracies(run: Path, path: Path) -> None:
    """Greedy accuracies of the run's agents with their 95% intervals, and the share that the oracle solves."""
    rows = {row["agent"]: row for row in json.loads((run / "results.json").read_text())["rows"]}
    bars = [
        ("oracle", "oracle: search that sees the verdict", GOOD),
        ("grpo", "policy after RL (grpo)", POLICY),
        ("prior", "prior: before RL", PRIOR),
        ("random", "random options", PRIOR),
        ("backbone", "backbone, without options", PRIOR),
    ]
    figure, axes = plt.subplots(figsize=(8, 2.6))
    for y, (agent, _, colour) in enumerate(reversed(bars)):
        row = rows[agent]
        low, high = row["accuracy_ci95"]
        axes.barh(y, row["accuracy"], 0.62, color=colour)
        axes.plot([low, high], [y, y], color=INK, lw=1.2)
        axes.text(high + 0.012, y, f"{row['accuracy']:.3f}", va="center", fontsize=9, color=INK)
    axes.set_yticks(range(len(bars)), [name for _, name, _ in reversed(bars)], fontsize=9)
    axes.set_xlim(0, 1.08)
    axes.set_xlabel(
        f"share of {rows['prior']['n_problems']} test problems solved, one answer each (line: 95% interval)", fontsize=9
    )
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)


def save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=130, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)
    print(path)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo"))

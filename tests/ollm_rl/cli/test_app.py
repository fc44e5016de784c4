"""The command line end to end on the tiny backbone, and what it says to mistakes."""

import contextlib
import io
import json
import textwrap

import pytest

from agents.config import GRPOConfig
from ollm_rl.cli.app import main
from ollm_rl.common.config_files import members
from ollm_rl.config.compose import check_classes, compose
from ollm_rl.errors import DataError
from ollm_rl.evaluation.evaluator import evaluate
from ollm_rl.experiments.overrides import of_tasks, trial_settings
from tests.conftest import QUICK_KEYS

KEYS = [
    *QUICK_KEYS, "agent.num_generations=4", "agent.problems_per_iteration=4", "agent.total_episodes=32", "agent.num_problems=40",
]  # fmt: skip
OUTSIDE = """
    import torch

    class Stubborn:
        def __init__(self, session, favourite=3):
            self.favourite, self.learnt = favourite, False

        def learn(self, run):
            self.learnt = True
            run.log_metrics(1, {"reward": 0.0, "train_episodes": 1})
            return {"train_episodes": 1}

        def predict(self, hidden, deterministic=True):
            return torch.full((len(hidden),), self.favourite)

        def save(self, path):
            path.mkdir(parents=True, exist_ok=True)
            (path / "favourite").write_text(str(self.favourite))

        def load(self, path):
            self.favourite = int((path / "favourite").read_text())
"""


@pytest.fixture(autouse=True)
def in_scratch(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_every_shipped_configuration_composes():
    for group in ("backbone", "agent", "oracle", "task", "reward", "experiment"):
        for name in members(group):
            if name != "custom":
                compose([f"{group}={name}"])


def test_demo_writes_rows_table_plots_and_report(tmp_path, capsys):
    main(["demo", *KEYS])
    run = tmp_path / "runs" / "demo"
    results = json.loads((run / "results.json").read_text())
    assert [r["agent"] for r in results["rows"]] == ["backbone", "random", "prior", "grpo", "oracle"]
    for row in results["rows"]:
        assert row["n_problems"] == 6 and 0 <= row["accuracy"] <= 1 and len(row["accuracy_ci95"]) == 2
    page = (run / "report.html").read_text()
    assert page.startswith("<!doctype html>") and "data:image/png" in page and 'class="episode' in page
    assert "accuracy" in capsys.readouterr().out
    before = (run / "grpo-0" / "metrics.jsonl").read_text()
    main(["demo", *KEYS])
    assert (run / "grpo-0" / "metrics.jsonl").read_text() == before


BASELINES = [
    "agents=[prior,grpo,shortlist_head,lora_sft,lora_grpo]", "with_oracle=true", "agent.total_episodes=16", "agent.num_generations=4",
    "agent.problems_per_iteration=2", "agent.sft_batch_size=16", "lora_grpo.micro_batch_size=4",
    "evaluate.num_ood=4", "evaluate.num_kl=2", "evaluate.num_problems=4", "evaluate.samples=2",
]  # fmt: skip


@pytest.fixture(scope="module")
def compared(own_cache, tmp_path_factory):
    """A comparison on two tasks: its directory, what was evaluated, and what was printed."""
    evaluated, folder, printed = [], tmp_path_factory.mktemp("compared"), io.StringIO()

    def watched(session, agent, name, *rest):
        evaluated.append(name)
        return evaluate(session, agent, name, *rest)

    with pytest.MonkeyPatch.context() as patched, contextlib.redirect_stdout(printed):
        patched.setattr("ollm_rl.experiments.single.evaluate", watched)
        main(["compare", *KEYS, *BASELINES, "tasks=[chain_sum,leg_counting]", f"runs_dir={folder}", "name=both"])
    return folder / "both", evaluated, printed.getvalue()


@pytest.mark.slow
def test_latents_are_compared_with_baselines_on_several_tasks(compared):
    run, evaluated, printed = compared
    results = json.loads((run / "results.json").read_text())
    assert {(r["task"], r["agent"]) for r in results["rows"]} == {
        (t, a)
        for t in ("chain_sum", "leg_counting")
        for a in ("prior", "grpo", "shortlist_head", "lora_sft", "lora_grpo", "oracle")
    }
    rows = {r["agent"]: r for r in results["tasks"]["chain_sum"]["rows"]}
    for one, other in (
        ("prior", "grpo"),
        ("lora_sft", "lora_grpo"),
    ):  # one begins as the other, and is not evaluated again
        assert {k: rows[one][k] for k in rows[other]["before"]} == rows[other]["before"]
        assert rows[other]["before"]["ood"] and rows[other]["before"]["verdicts"]
    assert {name for name in evaluated if "before" in name} == {"shortlist_head before training"}
    for row in results["tasks"]["leg_counting"]["rows"]:
        if row["agent"] in ("grpo", "shortlist_head", "lora_grpo"):
            assert row["before"]["n_problems"] == 4 and row["train_episodes"] == 16 and row["kl_from_start"] >= 0
            assert set(row["ood"]) == set(row["before"]["ood"]) == {"more animals", "larger numbers", "another wording"}
    page = (run / "leg_counting" / "report.html").read_text()
    assert "Out of distribution" in page and "Paired differences" in page
    assert {p.name for p in (run / "chain_sum" / "plots").glob("*.png")} >= {"headroom.png", "learning_costs.png"}
    assert "Degeneration" in printed


@pytest.mark.slow
def test_a_comparison_repeated_gives_the_same_numbers(compared, tmp_path):
    """By itself too, without the other task."""
    main(["compare", *KEYS, *BASELINES, "name=again"])
    again = json.loads((tmp_path / "runs" / "again" / "results.json").read_text())
    before = json.loads((compared[0] / "results.json").read_text())["tasks"]["chain_sum"]
    found = [
        [{k: v for k, v in row.items() if "seconds" not in k} for row in results["rows"]] for results in (before, again)
    ]
    assert found[0] == found[1]


def test_an_experiment_sets_what_it_says_and_quick_reduces_it():
    settings = compose(["experiment=headline"])
    assert settings.config.evaluate.num_ood == 20 and settings.config.convert.num_solutions == 2000
    parts = of_tasks(["experiment=headline"], settings)
    assert list(parts) == ["chain_sum", "leg_counting", "shortest_path"]
    assert parts["leg_counting"][0].choices["task"] == "leg_counting"
    quick = ["experiment=headline", "quick=true", "agents=[prior,grpo]", "evaluate.num_ood=5"]
    [(mine, given)] = of_tasks(quick, compose(quick)).values()
    assert list(mine.config.seeds) == [0] and mine.config.convert.num_solutions == 800
    assert mine.config.evaluate.num_ood == 5 and mine.config.evaluate.num_problems == 60
    cell = trial_settings(given, mine, "grpo").config
    assert cell.agent.total_episodes == 384 and cell.agent.learning_rate == GRPOConfig.learning_rate
    turns = compose(["experiment=headline", "rollout.address=null"]).config.rollout
    assert (settings.config.rollout.address, turns.address) == ("local", None)
    for one in (
        ["experiment=headline", "task=leg_counting"],
        ["experiment=headline", "task=leg_counting", "quick=true"],
    ):
        [(mine, _)] = of_tasks(one, compose(one)).values()
        assert mine.choices["task"] == "leg_counting"


def test_agents_that_need_the_model_are_refused_on_a_cluster_at_once(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["compare", *KEYS, "agents=[prior,shortlist_head]", "rollout=ray"])
    assert stopped.value.code == 2
    assert "needs the model in its own process" in capsys.readouterr().err


def test_settings_of_an_experiment_are_for_its_agents(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["compare", *KEYS, "agents=[prior,grpo]", "ppo.learning_rate=1"])
    assert stopped.value.code == 2
    assert "the comparison has no agent 'ppo'" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        main(["compare", *KEYS, "task=chain_sum", "tasks=[chain_sum]"])
    assert stopped.value.code == 2
    assert not (tmp_path / "runs").exists()


def test_an_agent_from_outside_trains_and_is_compared(tmp_path):
    (tmp_path / "my_agents.py").write_text(textwrap.dedent(OUTSIDE))
    main(["train", "agent._target_=my_agents.Stubborn", "agent.favourite=2", *QUICK_KEYS])
    assert (tmp_path / "runs/train/policy/favourite").read_text() == "2"
    main(["compare", "agents=[prior,my_agents.Stubborn]", "seeds=[0,1]", "agent.favourite=1", *QUICK_KEYS])
    results = json.loads((tmp_path / "runs/compare/results.json").read_text())
    assert {r["agent"] for r in results["rows"]} == {"prior", "Stubborn"}
    assert {p["agent"]: p["n_problems"] for p in results["pooled"]} == {"prior": 12, "Stubborn": 12}


REWARD = """
    def whole(prompts, completions, answer, domain, bonus=0.0, **columns):
        assert len(prompts) == len(completions) == len(answer) == len(domain)
        return [1.0 + bonus for _ in completions]
"""


def test_a_reward_from_outside_and_a_breakdown(tmp_path, capsys):
    """On a file with domains: the reward function gets the columns, and results come by domain and difficulty."""
    (tmp_path / "my_rewards.py").write_text(textwrap.dedent(REWARD))
    rows = [
        {"problem": f"{i}+1?", "answer": i + 1, "solution": f"{i + 1}", "domain": f"d{i % 2}", "difficulty": i % 3}
        for i in range(150)
    ]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = ["task=jsonl", "task.path=data.jsonl"]
    main(["evaluate", "agent=prior", "reward=my_rewards.whole", "reward.bonus=0.5", *task, *QUICK_KEYS])
    results = json.loads((tmp_path / "runs/evaluate/results.json").read_text())
    row = results["rows"][0]
    assert row["accuracy"] == 1.0 and row["mean_reward"] == 1.5
    assert sum(x["n"] for x in row["breakdown"]["domain"].values()) == 6
    assert set(row["breakdown"]["difficulty"]) <= {"0", "1", "2"}
    assert "Accuracy by domain" in (tmp_path / "runs/evaluate/report.html").read_text()
    assert "Accuracy by difficulty" in capsys.readouterr().out
    capsys.readouterr()
    main(["doctor", *task, "backbone=tiny"])
    assert "150 of 150 gold answers are accepted" in " ".join(capsys.readouterr().out.split())


def test_the_doctor_lists_malformed_golds(tmp_path, capsys):
    golds = ["5", r"\frac{1}{2", r"\frac{1}{2} \max A[x] + 3"]
    rows = [{"problem": f"{i}?", "answer": g, "split": "test"} for i, g in enumerate(golds)]
    rows += [{"problem": " 0? ", "answer": "5", "split": "train"}]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    main(["doctor", "task=jsonl", "task.path=data.jsonl", "backbone=tiny"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "2 of 3 gold answers are accepted" in printed
    assert "2: '\\\\frac{1}{2' (its braces do not close)" in printed
    assert "max A[x] + 3' (unparsable)" in printed
    assert "1 row of train left out, whose problems are in test too" in printed


def test_the_doctor_says_once_what_is_wrong_with_data(tmp_path, capsys):
    (tmp_path / "data.jsonl").write_text(json.dumps({"problem": ["2+3?"], "answer": 5}))
    with pytest.raises(SystemExit) as stopped:
        main(["doctor", "task=jsonl", "task.path=data.jsonl", "backbone=tiny"])
    lines = capsys.readouterr().out.splitlines()
    assert stopped.value.code == 2 and [line.split()[1] for line in lines if line.startswith("fail")] == ["task"]
    assert [line.split()[1] for line in lines if line.startswith("skip")] == ["golds", "prompt", "reward", "solutions"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "sead=3"], "Did you mean 'seed'?"),
        (["train", "agent=grop"], "Did you mean 'grpo'?"),
        (["train", "agent.learning_rat=1"], "agent.learning_rate"),
        (["train", "agent.learning_rate=abc"], "expected a number"),
        (["trian"], "Did you mean 'train'?"),
        (["train", "task=jsonl", "task.path=missing.jsonl"], "no such file"),
        (["train", "agent._target_=nowhere.Agent"], "No module named"),
        (["train", "backbone=./nowhere"], "not a model directory"),
        (["train", "plugin.path=nowhere"], "plugin.path=nowhere is not there"),
        (
            ["train", "convert.solutions=sampled", "convert.sampled_by=nowhere"],
            "convert.sampled_by=nowhere is not there",
        ),
        (["train", "plugin.path=."], "plugin.json"),
        (["train", "convert.rounds=2"], "together with convert.solutions=sampled"),
        (["compare", "agents=[prior,gropo]"], "Did you mean 'grpo'?"),
        (["train", "--fast"], "unknown option"),
        (["train", "engine.kv_cache_gib=much"], "expected null or a number above 0"),
        (["train", "backbone=tiny", "engine.kv_cache_gib=1e-9"], "does not hold one episode"),
        (["oracle", "oracle.also=[best_frist]"], "Did you mean 'best_first'?"),
        (["train", "reward=math_verfy"], "Did you mean 'math_verify'?"),
        (["train", "reward=nowhere.reward"], "reward._target_=nowhere.reward: No module named"),
        (["train", "reward._target_=math.nothing"], "no 'nothing' in 'math'"),
        (["train", "reward.timeout_s=-1"], "expected a number above 0"),
        (["train", "task.max_new_tokens=many"], "expected an integer"),
        (["evaluate", "task=reasoning_gym", "task.dataset=gsm_symbol"], "Did you mean 'gsm_symbolic'?"),
        (["train", "agent.num_generations=1", *QUICK_KEYS], "an integer from 2"),
    ],
)
def test_mistakes_exit_with_2_and_a_remedy(arguments, words, capsys, tmp_path):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert words in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    "command", [["train"], ["compare", "agents=[prior]"], ["train", "--dry-run", "estimate.measure=false"]]
)
@pytest.mark.parametrize("more", [[], ["reward.conversational=true", "reward.solved_at=0.5", "reward.limit_s=9"]])
def test_a_misspelt_setting_of_a_reward_is_refused_at_once(command, more, tmp_path, capsys):
    (tmp_path / "my_rewards.py").write_text(textwrap.dedent(REWARD))
    with pytest.raises(SystemExit) as stopped:
        main([*command, "reward=my_rewards.whole", "reward.bonsu=0.5", *more, *QUICK_KEYS])
    said = " ".join(capsys.readouterr().err.split())
    assert stopped.value.code == 2 and not (tmp_path / "runs").exists()
    assert "my_rewards.whole has no setting 'bonsu'; it takes bonus, domain" in said and "Did you mean 'bonus'?" in said


@pytest.mark.parametrize(
    ("agent", "row", "words"),
    [
        (
            "reference",
            {"solution": "It is 5."},
            "found no solution with style='steps' in split 'sft' of task 'jsonl' (columns are good)",
        ),
        ("reference", {}, "found no solution with style='steps'"),
        ("lora_sft", {}, "agent=lora_sft (split 'sft') needs worked solutions"),
        ("lora_grpo", {}, "agent=lora_sft (split 'sft') needs worked solutions"),
        ("shortlist_head", {}, "agent=shortlist_head (split 'sft') needs worked solutions"),
    ],
)
def test_an_agent_that_the_data_have_nothing_for_is_found_before_anything_starts(agent, row, words, tmp_path, capsys):
    rows = [{"problem": f"{i} + 1?", "answer": i + 1, "good": i % 2 == 0, **row} for i in range(80)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    task = ["task=jsonl", "task.path=data.jsonl", "reward=math_verify"]
    with pytest.raises(SystemExit) as stopped:
        main(["compare", f"agents=[prior,{agent}]", *task, *QUICK_KEYS])
    assert stopped.value.code == 2 and not (tmp_path / "runs").exists()
    assert words in " ".join(capsys.readouterr().err.split())
    settings = compose([*task, f"agent={agent}", "convert.solutions=sampled"])
    if agent == "reference":  # sampled solutions have their problems' columns
        with pytest.raises(DataError, match="found no solution"):
            check_classes(settings)
        settings = compose(
            [*task, "agent=reference", "agent.column=good", "agent.value=true", "convert.solutions=sampled"]
        )
    check_classes(settings)


def test_a_checkpoint_of_another_backbone_is_refused(tmp_path, capsys):
    main(["convert", *QUICK_KEYS])
    path = tmp_path / "runs/convert/plugin/plugin.json"
    path.write_text(path.read_text().replace(json.loads(path.read_text())["fingerprint"], "another"))
    with pytest.raises(SystemExit) as stopped:
        main(["train", "plugin.path=runs/convert/plugin", *QUICK_KEYS])
    assert stopped.value.code == 2
    assert "was made for backbone" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["train", "agents=[prior,grpo]"], "agents=[prior,grpo] is a setting of compare; train takes agent=a,b, a run for each"),
        (["evaluate", "agent=prior", "seeds=[0,1]"], "evaluate takes seed=0,1, a run for each"),
        (["oracle", "with_oracle=true"], "with_oracle=true is a setting of compare; leave it out"),
        (["inspect", "prompt= "], "inspect.prompt is empty; expected a problem"),
        (["evaluate"], "evaluate needs policy=<run, or directory of a trained policy> for agent=grpo"),
        (["evaluate", "agent=lora_grpo"], "What it begins as is agent=prior (of LoRA: agent=lora_sft)"),
        (["train", "lr=1e-3"], "Did you mean 'agent.learning_rate'?"),
        (["evaluate", "policy=rnus/first"], "policy=rnus/first is not there."),
    ],
)  # fmt: skip
def test_what_a_command_would_not_heed_is_refused(words, told, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([*words, *QUICK_KEYS])
    assert stopped.value.code == 2 and told in " ".join(capsys.readouterr().err.split())


def test_a_path_with_a_mistyped_part_gets_the_one_that_was_meant(tmp_path, capsys):
    (tmp_path / "runs/first/policy").mkdir(parents=True)
    with pytest.raises(SystemExit):
        main(["evaluate", "policy=runs/frist/policy", *QUICK_KEYS])
    assert "Did you mean 'runs/first/policy'?" in " ".join(capsys.readouterr().err.split())


def test_one_agent_is_trained_with_what_the_experiment_has_for_it():
    """`train experiment=smoke` did not heed the experiment's episodes."""
    from ollm_rl.experiments.overrides import of_experiment

    def trained(*words: str):
        return compose(of_experiment(list(words))).config.agent

    assert trained("experiment=smoke", "agent=grpo").total_episodes == 128
    assert trained("experiment=smoke", "agent=grpo", "agent.total_episodes=64").total_episodes == 64
    planned = trained("experiment=planning", "agent=steer")
    assert planned.learning_rate == 0.1 and planned.total_episodes == 2048
    assert "total_episodes" not in trained("experiment=smoke", "agent=prior")
    assert of_experiment(["agent=grpo"]) == ["agent=grpo"]


def test_a_run_is_not_overwritten_by_another_configuration(capsys):
    main(["evaluate", "agent=prior", *QUICK_KEYS])
    with pytest.raises(SystemExit):
        main(["evaluate", "agent=random", *QUICK_KEYS])
    assert "another configuration" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    "words",
    [
        (["evaluate", "agent=prior"], ["compare", "agents=[prior]", "seeds=[0]"]),
        (["evaluate", "agent=prior"], ["oracle"]),
        (["compare", "agents=[prior]", "seeds=[0]"], ["evaluate", "agent=prior"]),
        (["oracle"], ["train", "agent=grpo", "agent.total_episodes=8", "agent.num_generations=4"]),
    ],
)
def test_runs_with_and_without_an_agent_are_not_each_other(words, capsys):
    first, second = ([*command, "name=same", *QUICK_KEYS] for command in words)
    main(first)
    with pytest.raises(SystemExit) as refused:
        main(second)
    assert refused.value.code == 2 and "another configuration" in " ".join(capsys.readouterr().err.split())


def test_dry_run_says_what_it_would_take(capsys, tmp_path):
    main(["train", "--dry-run", "estimate.measure=false"])
    printed = capsys.readouterr().out
    assert "134,515,008" in printed and "KV cache" in printed
    assert not (tmp_path / "runs").exists()


def test_searches_are_compared_in_one_run(tmp_path, capsys):
    main(["oracle", "oracle=puct", "oracle.also=[best_first,best_of_n,teacher_forced]", *QUICK_KEYS])
    run = tmp_path / "runs" / "oracle"
    results = json.loads((run / "results.json").read_text())
    agents = ["oracle", "oracle_best_first", "oracle_best_of_n", "teacher_forced_encoder", "teacher_forced_cover"]
    assert [r["agent"] for r in results["rows"]] == agents
    assert list(results["curves"]) == ["puct", "best_first", "best_of_n"]
    assert (run / "plots" / "solved_against_budget.png").exists()
    assert len((run / "searches_puct.jsonl").read_text().splitlines()) == 6
    page = (run / "report.html").read_text()
    assert {p.name for p in run.glob("replays*.json")} == {
        "replays.json", "replays_oracle_best_first.json", "replays_oracle_best_of_n.json",
    }  # fmt: skip
    assert "Teacher forcing asks" in page and "oracle (puct)" in page


def test_a_policy_is_distilled_from_searches(tmp_path, capsys):
    small = ["agent.problems_per_round=6", "agent.budget=60", "agent.rounds=1"]
    main(["train", "agent=distill", "name=distilled", "engine.profile=true", *small, *QUICK_KEYS])
    row = json.loads((tmp_path / "runs/distilled/results.json").read_text())["rows"][0]
    assert row["agent"] == "distill" and row["train_tokens"] > 0
    main(["evaluate", "agent=distill", "policy=runs/distilled/policy", "name=again", *QUICK_KEYS])
    again = json.loads((tmp_path / "runs/again/results.json").read_text())["rows"][0]
    assert again["accuracy"] == row["accuracy"]


def test_a_comparison_keeps_what_was_given_for_its_agents(tmp_path):
    from ollm_rl.experiments.overrides import shared, with_overrides

    given = ["agents=[prior,grpo]", "agent.total_episodes=128", "grpo.beta=0.1", "evaluate.samples=2"]
    kept = with_overrides(compose(shared(given)), given)
    assert kept.config.agent_overrides == ["agent.total_episodes=128", "grpo.beta=0.1"]
    assert "agent.total_episodes=128" in kept.yaml()


@pytest.mark.parametrize("agent", ["grpo,nope", "../grpo", "grpo,agents.", "a b.C"])
def test_a_dry_run_refuses_what_the_run_would(agent, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["train", f"agent={agent}", "backbone=tiny", "--dry-run"])
    assert stopped.value.code == 2
    assert "unknown agent" in capsys.readouterr().err


def test_a_policy_is_not_evaluated_under_another_agents_name(capsys):
    """`evaluate policy=<of grpo> agent=prior` had a row `prior` with the policy's answers."""
    main(["train", "agent=steer", "agent.total_episodes=16", "agent.num_generations=4", "name=steered", *QUICK_KEYS])
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", "policy=runs/steered", "agent=prior", "name=other", *QUICK_KEYS])
    said = " ".join(capsys.readouterr().err.split())
    assert stopped.value.code == 2 and "is of agents.controls.Steer, and not of agent=prior" in said
    main(["evaluate", "agent=prior", "plugin.path=runs/steered", "name=before", *QUICK_KEYS])
    main(["evaluate", "policy=runs/steered", "agent=steer", "name=after", *QUICK_KEYS])

"""lm-evaluation-harness on exports: its numbers are the engine's, and a floor is no likelihood."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

import ollm_rl as ol
from ollm_rl import lm_eval as ours
from ollm_rl.rollout.acting import PolicyAdapter
from ollm_rl.rollout.sampler import rollout

ROOT = Path(__file__).parents[2]
GENERATE = {
    "output_type": "generate_until", "doc_to_text": "{{problem}}", "doc_to_target": "{{answer}}",
    "generation_kwargs": {"until": [], "temperature": 0, "max_gen_toks": 9}, "metric_list": [{"metric": "exact_match"}],
}  # fmt: skip
CHOOSE = {
    "output_type": "multiple_choice", "doc_to_text": "{{problem}}", "doc_to_target": 0, "doc_to_choice": ["4", "17"],
    "metric_list": [{"metric": "acc"}],
}  # fmt: skip


@pytest.fixture(scope="module")
def agent(tiny):
    """One whose exports have a longer budget than the tasks here."""
    session = ol.Session(tiny.backbone, tiny.plugin, ol.make_task("chain_sum"), engine={"max_new_tokens": 12}, seed=5)
    agent = ol.make_agent("grpo", session)
    with torch.no_grad():
        agent.policy.net[-1].bias[1] += 2.0
    return agent


@pytest.fixture(scope="module")
def place(agent, tmp_path_factory):
    """Two exports and two tasks."""
    place = tmp_path_factory.mktemp("harness")
    for kind in ("policy", "mixture"):
        ol.export(agent, place / kind, kind=kind)
    problems = agent.session.problems("test", 6)
    lines = [json.dumps({"problem": p.problem, "answer": p.answer}) for p in problems]
    (place / "sums.jsonl").write_text("\n".join(lines) + "\n")
    for name, said in (("generate", GENERATE), ("choose", CHOOSE)):
        data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(place / "sums.jsonl")}}}
        (place / f"{name}.yaml").write_text(
            yaml.safe_dump({"task": f"tiny_{name}", "test_split": "test"} | data | said)
        )
    return place


def evaluated(place, kind, task, **more):
    lm_eval = pytest.importorskip("lm_eval", reason="the extra `harness` is not installed")
    from lm_eval.tasks import TaskManager

    ours.register()
    found = lm_eval.simple_evaluate(
        model=ours.MODEL, model_args={"pretrained": str(place / kind), "dtype": "float32"}, tasks=[f"tiny_{task}"], batch_size=3,
        task_manager=TaskManager(include_path=str(place), include_defaults=False), log_samples=True, bootstrap_iters=0, **more,
    )  # fmt: skip
    return sorted(found["samples"][f"tiny_{task}"], key=lambda sample: sample["doc_id"])


def test_texts_are_those_of_the_engine_within_the_budget_of_the_task(agent, place):
    samples = evaluated(place, "policy", "generate", apply_chat_template=True)
    problems = agent.session.problems("test", 6)
    engine = agent.session.new_engine(num_slots=6, max_new_tokens=9)
    requests = [agent.request(p, 0, True) for p in problems]
    episodes = dict(rollout(engine, requests, PolicyAdapter(agent, True)))
    assert [sample["resps"][0][0] for sample in samples] == [episodes[i].text for i in range(6)]


def test_likelihoods_are_those_of_the_mixture(place):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import ollm_rl.options.hf  # noqa: F401  registers the classes

    samples = evaluated(place, "mixture", "choose")
    model = AutoModelForCausalLM.from_pretrained(place / "mixture", dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(place / "mixture")
    for sample in samples:
        for choice, [(likely, _)] in zip(CHOOSE["doc_to_choice"], sample["resps"], strict=True):
            begun, all_ = (
                tokenizer(sample["doc"]["problem"])["input_ids"],
                tokenizer(f"{sample['doc']['problem']} {choice}")["input_ids"],
            )
            with torch.inference_mode():
                logits = model(torch.tensor([all_])).logits[0].log_softmax(-1)
            expected = sum(float(logits[i - 1, all_[i]]) for i in range(len(begun), len(all_)))
            assert float(likely) == pytest.approx(expected, abs=1e-3)


@pytest.mark.slow
def test_likelihoods_of_a_policy_are_refused_by_the_command(place):
    pytest.importorskip("lm_eval", reason="the extra `harness` is not installed")
    command = [
        sys.executable, "-m", "ollm_rl.lm_eval", "run", "--model_args", f"pretrained={place / 'policy'}", "--tasks", "tiny_choose",
        "--include_path", str(place),
    ]  # fmt: skip
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 2, ran.stderr
    assert "tiny_choose compares likelihoods" in ran.stderr.replace("\n", " ")
    assert "kind=mixture" in ran.stderr


def test_without_the_harness_it_says_what_to_install(monkeypatch, capsys):
    for name in ("lm_eval", "lm_eval.api.registry"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SystemExit) as ended:
        ours.main(["run", "--tasks", "chain_sum"])
    assert ended.value.code == 2
    assert "pip install -c constraints.txt -e '.[harness]'" in capsys.readouterr().err.replace("\n", " ")


@pytest.mark.parametrize(
    ("given", "ours_is_added"),
    [
        (["run", "--tasks", "a"], True),
        (["--tasks", "a"], True),
        (["run", "--model", "hf", "--tasks", "a"], False),
        (["run", "--model=hf"], False),
        (["run", "--config", "a.yaml"], False),
        (["ls", "tasks"], False),
        (["--help"], False),
        ([], False),
    ],
)
def test_our_model_is_taken_where_none_is_named(given, ours_is_added):
    assert ours.with_model(given) == given + ["--model", ours.MODEL] * ours_is_added

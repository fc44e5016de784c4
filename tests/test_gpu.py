"""The same on a GPU: `pytest -m gpu`. What needs Ray is left out where Ray is missing."""

import copy
import json
from importlib.util import find_spec

import gymnasium
import pytest
import torch

import envs  # noqa: F401 (registers the environments)
from agents.prior import Prior
from ollm_rl.cli.app import main
from ollm_rl.rollout.acting import PolicyAdapter
from ollm_rl.rollout.sampler import Request
from ollm_rl.session.local import Session, make_session, shared_backbone
from tests.conftest import QUICK, QUICK_KEYS

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")]
SHORT = {"num_slots": 16, "max_new_tokens": 20}


@pytest.fixture(scope="module")
def on_gpu() -> Session:
    session = make_session("tiny", "chain_sum", dtype="float32", convert=QUICK)
    session.engine_settings = {**SHORT, "cuda_graphs": False}
    return session


def texts(session: Session, n: int = 40) -> list[list[int]]:
    requests = [Request(p, i) for i, p in enumerate(session.problems("test", n, 0))]
    return [e.tokens for e in session.rollout(requests, PolicyAdapter(Prior(session), deterministic=False))]


def beside(session: Session, **engine) -> Session:
    other = Session(session.backbone, session.plugin, session.task, session.judge, {**SHORT, **engine}, session.seed)
    other.prompter = session.prompter
    return other


def test_graphs_say_what_ordinary_steps_say(on_gpu):
    replayed = beside(on_gpu)
    assert texts(replayed) == texts(on_gpu)
    assert replayed.engine.graphs.enabled and len(replayed.engine.graphs._steps) > 1
    assert not on_gpu.engine.graphs.enabled


def test_graphs_read_blocks_that_rows_share(on_gpu, monkeypatch):
    """In which keys and values move from step to step, while a captured graph reads them at one address."""
    monkeypatch.setattr("ollm_rl.rollout.engine.BLOCK", 4)
    replayed = beside(on_gpu, kv_cache_gib=1e-4)
    assert replayed.engine.kv.blocks is not None
    assert texts(replayed) == texts(on_gpu)
    assert replayed.engine.graphs.enabled and len(replayed.engine.graphs._steps) > 1


def test_a_gpu_says_what_a_cpu_says(on_gpu):
    """But for the few texts in which two sums of another order round to another choice."""
    backbone = shared_backbone("tiny", "float32", "cpu")
    cpu = Session(backbone, copy.deepcopy(on_gpu.plugin), on_gpu.task, on_gpu.judge, SHORT, on_gpu.seed)
    same = [a == b for a, b in zip(texts(cpu), texts(on_gpu), strict=True)]
    assert sum(same) >= 0.9 * len(same)


def test_environments_step(on_gpu):
    env = gymnasium.make_vec("ollm_rl/LatentReasoning-v0", 4, "vector_entry_point", session=on_gpu, num_problems=8)
    env.reset(seed=0)
    env.action_space.seed(0)
    ended = 0
    for _ in range(60):
        _, rewards, terminated, truncated, _ = env.step(env.action_space.sample())
        ended += int((terminated | truncated).sum())
    assert ended > 0 and len(rewards) == 4


def test_agents_are_compared(tmp_path):
    agents = ["prior", "grpo", "shortlist_head", "lora_sft", "lora_grpo", "distill", "reference"]
    agents += ["ppo"] if find_spec("ray") else []
    main([
        "compare", *QUICK_KEYS, f"agents=[{','.join(agents)}]", "seeds=[0]", "with_oracle=true", "agent.total_episodes=64",
        f"runs_dir={tmp_path}", "name=all",
    ])  # fmt: skip
    rows = json.loads((tmp_path / "all/results.json").read_text())["rows"]
    assert {*agents, "oracle"} <= {row["agent"] for row in rows}


@pytest.mark.parametrize("search", ["best_first", "beam", "puct", "best_of_n", "teacher_forced"])
def test_searches_run(tmp_path, search):
    main(["oracle", *QUICK_KEYS, f"oracle.search={search}", f"runs_dir={tmp_path}", f"name={search}"])
    assert (tmp_path / search / "results.json").exists()

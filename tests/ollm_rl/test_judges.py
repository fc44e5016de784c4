"""Rewards with TRL's signature: written for TRL they run here, and ours runs in TRL."""

import asyncio

import pytest

from ollm_rl.errors import ConfigurationError
from ollm_rl.judges import Judge, MathVerify, ReasoningGym, make_judge
from ollm_rl.tasks import ChainSum, Problem
from ollm_rl.tasks import ReasoningGym as GymTask
from ollm_rl.trajectory import Episode


def episodes(*texts, answer="5", **extra):
    return [Episode(Problem(str(i), "2+3?", answer, "so \\boxed{5}", extra), text=t) for i, t in enumerate(texts)]


@pytest.fixture(scope="module")
def math_verify():
    reward = MathVerify()
    yield reward
    reward.close()


def test_math_verify_takes_texts_and_messages(math_verify):
    texts = [r"\boxed{5}", r"\boxed{\frac{10}{2}}", r"\boxed{6}", ""]
    messages = [[{"role": "assistant", "content": t}] for t in texts]
    assert math_verify(prompts=[""] * 4, completions=texts, answer=["5"] * 4) == [1.0, 1.0, 0.0, 0.0]
    assert math_verify(prompts=[""] * 4, completions=messages, answer=["5"] * 4) == [1.0, 1.0, 0.0, 0.0]
    with pytest.raises(ConfigurationError, match="column 'answer'.*found solution"):
        math_verify(prompts=[""], completions=["5"], solution=["5"])


def test_the_default_judge_says_why(math_verify):
    played = episodes(r"\boxed{5}", r"\boxed{6}", "hm", r"\boxed{\frac{}{}}")
    Judge(math_verify)(played)
    assert [e.verdict for e in played] == ["equal", "different", "no_answer", "unparsable"]
    assert [e.solved for e in played] == [True, False, False, False]
    assert [e.answer for e in played] == ["5", "6", None, r"\frac{}{}"]


def brevity(completions, target=3, **kwargs):
    """A reward as TRL's documentation shows it."""
    return [-abs(target - len(c)) / 10 for c in completions]


def of_columns(prompts, completions, answer, domain, log_extra=None):
    log_extra("verdict", [f"{d} {a}" for d, a in zip(domain, answer, strict=True)])
    return [float(p == "2+3?" and a in c) for p, c, a in zip(prompts, completions, answer, strict=True)]


def of_messages(prompts, completions, **kwargs):
    assert prompts[0][0] == {"role": "user", "content": "2+3?"}
    return [float("5" in c[0]["content"]) for c in completions]


async def asynchronous(completions, **kwargs):
    await asyncio.sleep(0)
    return [1.0 for _ in completions]


def sometimes(completions, **kwargs):
    return [None if c == "" else 0.5 for c in completions]


class Shaped:
    def __init__(self, scale: float = 1.0):
        self.scale = scale

    def __call__(self, prompts, completions, **columns):
        return [self.scale * len(c) for c in completions]


def constant():
    return 1.0


def factory(bonus: float):
    return lambda completions, **columns: [bonus for _ in completions]


@pytest.mark.parametrize(
    ("target", "settings", "rewards"),
    [
        (brevity, {}, [0.0, -0.3]),
        (brevity, {"target": 0}, [-0.3, 0.0]),
        (of_columns, {}, [1.0, 0.0]),
        (of_messages, {"conversational": True}, [1.0, 0.0]),
        (asynchronous, {}, [1.0, 1.0]),
        (sometimes, {}, [0.5, 0.0]),
        (Shaped, {"scale": 2.0}, [6.0, 0.0]),
        (factory, {"bonus": 0.25}, [0.25, 0.25]),
    ],
)
def test_rewards_from_elsewhere(target, settings, rewards):
    played = episodes("is5", "", domain="sums")
    make_judge(target, settings)(played)
    assert [e.reward for e in played] == rewards
    assert played[0].verdict == ("sums 5" if target is of_columns else "")


@pytest.mark.parametrize(
    ("target", "settings", "words"),
    [
        (Shaped, {"scal": 2.0}, "Did you mean 'scale'"),
        (factory, {}, "bonus"),
        (len, {}, "missing a required argument"),
        (constant, {}, "expected a reward function"),
    ],
)
def test_settings_that_do_not_fit(target, settings, words):
    with pytest.raises(ConfigurationError, match=words):
        make_judge(target, settings)


@pytest.mark.parametrize("returned", [[1.0], [1.0, float("nan")], None, ["a", "b"]])
def test_a_reward_that_returns_nonsense_is_named(returned):
    def broken(completions, **columns):
        return returned

    with pytest.raises(ConfigurationError, match="reward 'broken' returned"):
        Judge(broken)(episodes("a", "b"))


def test_reasoning_gym_judges_its_own():
    for task in (ChainSum(), GymTask("spell_backward")):
        problems = task.problems("test", 3)
        played = [Episode(p, text=p.solution) for p in problems] + [Episode(p, text="no") for p in problems]
        Judge(ReasoningGym())(played)
        assert [e.solved for e in played] == [True] * 3 + [False] * 3
    with pytest.raises(ConfigurationError, match="task=reasoning_gym"):
        Judge(ReasoningGym())(episodes("5"))


def test_a_reward_of_trl_runs_here():
    rewards = pytest.importorskip("trl.rewards")
    played = episodes(r"\boxed{5}", r"\boxed{6}")
    make_judge(rewards.accuracy_reward, {"conversational": True})(played)
    assert [e.solved for e in played] == [True, False]


@pytest.mark.slow
def test_ours_runs_in_trl(tmp_path, math_verify):
    trl = pytest.importorskip("trl")
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tests.conftest import REAL_CACHE

    path = REAL_CACHE / "backbones" / "smollm2-135m-instruct"
    if not path.exists():
        pytest.skip("SmolLM2 has not been fetched")
    data = Dataset.from_list([{"prompt": "Say 5.", "answer": "5"}] * 4)
    settings = trl.GRPOConfig(
        output_dir=str(tmp_path), per_device_train_batch_size=2, num_generations=2, max_completion_length=8, max_steps=1,
        report_to=[], use_cpu=True, save_strategy="no", logging_steps=1,
    )  # fmt: skip
    trainer = trl.GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(path), processing_class=AutoTokenizer.from_pretrained(path),
        reward_funcs=[math_verify], args=settings, train_dataset=data,
    )  # fmt: skip
    trainer.train()
    assert any("rewards/math_verify/mean" in line for line in trainer.state.log_history)

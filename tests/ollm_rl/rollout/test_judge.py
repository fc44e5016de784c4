"""Rewards with TRL's signature: written for TRL they run here, and ours runs in TRL."""

import asyncio
import itertools
import json
import pickle
import re
import time
from functools import partial

import numpy as np
import pytest
import torch

from agents.grpo import describe
from ollm_rl.cli.app import main
from ollm_rl.errors import ConfigurationError, OLLMError, RewardError
from ollm_rl.options.policies import LatentPolicy, Sampling
from ollm_rl.reward.functions import MathVerify, ReasoningGym
from ollm_rl.reward.per_completion import PerCompletion
from ollm_rl.rollout.episode import Episode, pack, unpack
from ollm_rl.rollout.judge import Judge, Weighted, judge_by, make_judge
from ollm_rl.rollout.sampler import Request
from ollm_rl.session.local import Session
from ollm_rl.tasks import ChainSum, Problem, make_task
from ollm_rl.tasks import ReasoningGym as GymTask
from tests.conftest import QUICK_KEYS


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


def length_penalty(completions, target=3, **kwargs):
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
        (length_penalty, {}, [0.0, -0.3]),
        (length_penalty, {"target": 0}, [-0.3, 0.0]),
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


def returning(value):
    def broken(completions, **columns):
        return value() if callable(value) else value

    return broken


async def later(*values):
    await asyncio.sleep(0)
    return list(values)


async def one_by_one(*values):
    for value in values:
        await asyncio.sleep(0)
        yield value


@pytest.mark.parametrize(
    "returned",
    [
        [1, 0.5], (1.0, 0.5), np.array([1.0, 0.5]), np.array([1.0, 0.5], dtype=np.float16), torch.tensor([1.0, 0.5], requires_grad=True),
        [torch.tensor(1.0), np.float32(0.5)], [True, 0.5], np.array([True, 0.5], dtype=object), lambda: (x for x in (1.0, 0.5)),
        lambda: map(float, ("1", "0.5")), lambda: later(1.0, 0.5), lambda: one_by_one(1.0, 0.5), {1: 1.0, 2: 0.5}.values(),
    ],
)  # fmt: skip
def test_what_a_reward_may_return(returned):
    """As in TRL: whatever holds one number for each completion, at once or later."""
    played = episodes("a", "b")
    Judge(returning(returned))(played)
    assert [e.reward for e in played] == [1.0, 0.5] and all(type(e.reward) is float for e in played)

    async def in_a_notebook():
        Judge(returning(returned))(again)

    again = episodes("a", "b")
    asyncio.run(in_a_notebook())
    assert [e.reward for e in again] == [1.0, 0.5]


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        (None, "returned NoneType None"), ({"a": 1.0, "b": 2.0}, "returned dict"), ({1.0, 2.0}, "returned set"), ("11", "returned str '11'"),
        (b"11", "returned bytes"), (1.0, "returned float 1.0"), (True, "returned bool"), (np.float64(1), "returned float64"),
        (np.array(1.0), "returned ndarray"), (torch.tensor(1.0), "returned Tensor"), ([1.0], "returned 1 values"), ([], "returned 0 values"),
        ([1.0, 2.0, 3.0], "returned more values"), (lambda: itertools.repeat(1.0), "returned more values"), (["a", "b"], "'a' as number 1"),
        ([1.0, float("nan")], "nan as number 2"), ([float("inf"), 1.0], "inf as number 1"), ([1.0, -1e38], "-1e.38 as number 2"),
        ([1.0, 1e300], "as number 2"), ([1.0, 10**400], "as number 2"), ([[1.0], [2.0]], "\\[1.0\\] as number 1"), (np.ones((2, 1)), "as number 1"),
        (torch.ones(2, 1), "as number 1"), ([1.0, 1j], "as number 2"), ([1.0, {"score": 1}], "as number 2"), (lambda: later(1.0), "returned 1 values"),
        (lambda: later, "returned function"),
    ],
)  # fmt: skip
def test_a_reward_that_returns_nonsense_is_named(returned, words):
    played = episodes("a", "b")
    with pytest.raises(ConfigurationError, match=f"reward 'broken' .*{words}.*expected a list of 2 finite numbers"):
        Judge(returning(returned))(played)
    assert [e.reward for e in played] == [0.0, 0.0]


def test_the_error_of_a_reward_names_it_and_is_the_cause():
    def raising(completions, **columns):
        return [float(c) for c in completions]

    def halfway(completions, **columns):
        yield 1.0
        raise KeyError("score")

    async def asleep(completions, **columns):
        raise RuntimeError("no service")

    def greedy(completions, trainer_state):
        return [1.0]

    def exits(completions, **columns):
        raise StopIteration

    for reward, cause in (
        (raising, ValueError),
        (halfway, KeyError),
        (asleep, RuntimeError),
        (greedy, TypeError),
        (exits, StopIteration),
    ):
        with pytest.raises(RewardError, match=f"reward '{reward.__name__}' raised {cause.__name__}") as caught:
            Judge(partial(reward))(episodes("a"))
        assert isinstance(caught.value.__cause__, cause)
    with pytest.raises(RewardError, match=r"test_judge.py, line \d+"):
        Judge(raising)(episodes("a"))


def deep(completions, **columns):
    return [float(json.loads(c)["score"]) for c in completions]


async def one(completion, **columns):
    try:
        return float(json.loads(completion))
    except ValueError as error:
        raise KeyError("score") from error


@pytest.mark.parametrize(
    "reward",
    [deep, Weighted([sometimes, deep]), PerCompletion(one, retries=0)],
)
def test_the_traceback_of_a_reward_has_the_users_frames_only(reward):
    """The place is the user's line too, and not that of the library which raised; both come along from another process."""
    with pytest.raises(RewardError, match=r"raised \w+: .* \(\S+test_judge.py, line \d+\)") as caught:
        Judge(reward)(episodes("no json"))
    told = pickle.loads(pickle.dumps(caught.value)).traceback
    files = set(re.findall(r'File "(.*?)"', told))
    assert files == {__file__} and "json.loads(c" in told and "JSONDecodeError: Expecting value" in told
    assert isinstance(caught.value, OLLMError)


def test_a_call_that_does_not_fit_has_no_traceback():
    with pytest.raises(RewardError, match="raised TypeError") as caught:
        Judge(lambda completions, trainer_state: [1.0])(episodes("a"))
    assert not caught.value.traceback


def test_a_reward_may_change_what_it_is_given():
    def careless(prompts, completions, completion_ids, answer, domain, metadata, **columns):
        for values in (prompts, completions, answer):
            values.clear()
        for tokens, names, facts in zip(completion_ids, domain, metadata, strict=True):
            tokens.clear()
            names.append("x")
            facts["inner"].clear()
        return [1.0, 1.0]

    played = episodes("a", "b", domain=["sums"], metadata={"inner": [1]})
    for episode in played:
        episode.tokens = [1, 2]
    Judge(careless)(played)
    assert [e.tokens for e in played] == [[1, 2]] * 2 and [e.text for e in played] == ["a", "b"]
    assert played[0].problem.extra == {"domain": ["sums"], "metadata": {"inner": [1]}}


def test_rewards_log_as_they_do_in_trl():
    def logging(completions, **kwargs):
        kwargs["log_metric"]("share", 0.5)
        kwargs["log_extra"]("verdict", np.array(["good", "bad"]))
        return [1.0, 0.0]

    def only(completions):
        return [1.0 for _ in completions]

    played = episodes("a", "b")
    Judge(logging)(played)
    assert [e.verdict for e in played] == ["good", "bad"]
    Judge(only)(played)
    with pytest.raises(ConfigurationError, match="logged 1 verdicts"):
        Judge(lambda completions, log_extra: log_extra("verdict", ["x"]) or [1.0, 1.0])(played)


def test_a_reward_that_cannot_be_made_is_named():
    class Needy:
        def __init__(self, url="x"):
            raise ConnectionError(f"no {url}")

    with pytest.raises(ConfigurationError, match="Needy raised ConnectionError when it was made: no y") as caught:
        make_judge(Needy, {"url": "y"})
    assert isinstance(caught.value.__cause__, ConnectionError) and "in __init__" in caught.value.traceback


def test_a_bad_reward_ends_a_run_with_one_message(tmp_path, monkeypatch, capsys):
    (tmp_path / "odd_rewards.py").write_text("def scores(completions, **columns):\n    return {'score': 1.0}\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", "agent=prior", "reward=odd_rewards.scores", f"runs_dir={tmp_path}", *QUICK_KEYS])
    assert stopped.value.code == 2
    assert "reward 'scores' returned dict" in " ".join(capsys.readouterr().err.split())


def test_a_reward_that_raises_ends_a_run_with_its_traceback(tmp_path, monkeypatch, capsys):
    (tmp_path / "my_raising.py").write_text(
        "def scores(completions, **columns):\n    return [float('x' + c) for c in completions]\n"
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", "agent=prior", "reward=my_raising.scores", f"runs_dir={tmp_path}", *QUICK_KEYS])
    printed = capsys.readouterr().err
    said = " ".join(printed.partition("Traceback")[2].split())
    assert stopped.value.code == 2
    assert (
        "line 2, in scores return [float('x' + c)" in said and said.count("File ") <= 2
    )  # a comprehension may have a frame
    assert (
        "error: reward 'scores' raised ValueError" in said
        and "my_raising.py, line 2)" in said
        and "It fails for" in said
    )


def in_tone(completions, tone="calm", **columns):
    return [float(t == tone) for t in completions]


def test_a_setting_that_is_a_column_of_the_data_is_refused():
    judge = make_judge(in_tone, {"tone": "calm"})
    judge(episodes("calm"))
    with pytest.raises(
        ConfigurationError, match=r"reward.tone is set, and the data has a column 'tone'.*task.columns="
    ):
        judge(episodes("calm", tone="angry"))


def test_an_attribute_called_keywords_is_no_setting():
    class Mentions:
        __name__, keywords = "mentions", ("answer",)

        def __call__(self, completions, answer, **columns):
            return [float(a in c) for c, a in zip(completions, answer, strict=True)]

    played = episodes("it is 5", "no")
    Judge(Mentions())(played)
    assert [e.reward for e in played] == [1.0, 0.0]


def test_a_reward_is_tried_before_anything_long_begins():
    asked = list[str]()

    def picky(completions, **columns):
        asked.extend(completions)
        return [1.0 / len(c) for c in completions]

    with pytest.raises(RewardError, match="ZeroDivisionError.*It fails for ''"):
        Judge(picky).try_out(episodes("5")[0].problem)
    assert asked[:2] == ["", "?!"]
    Judge(MathVerify()).try_out(episodes("5")[0].problem)  # ours is not asked


def test_reasoning_gym_judges_its_own():
    for task in (ChainSum(), GymTask(dataset="spell_backward")):
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


def right(completions, answer, **columns):
    return [float(c == a) for c, a in zip(completions, answer, strict=True)]


def short(completions, limit=2, **columns):
    return [None if c == "skip" else float(len(c) < limit) for c in completions]


def test_several_rewards_are_weighted_and_logged_apart():
    judge = make_judge(
        Weighted,
        {"functions": ["tests.ollm_rl.rollout.test_judge.right", short], "weights": [1.0, 0.5], "solved_at": 1.5},
    )
    played = episodes("1", "11", "skip")
    for episode in played:
        episode.problem = Problem("p", "?", "1")
    judge(played)
    assert [e.reward for e in played] == [1.5, 0.0, 0.0] and [e.solved for e in played] == [True, False, False]
    assert played[0].parts == {"right": 1.0, "short": 1.0} and played[2].parts == {"right": 0.0} and played[2].judged
    assert played[0].to_dict()["rewards"] == {"right": 1.0, "short": 1.0} and played[0].to_dict()["solved"]
    sent = unpack(pack(played), [e.problem for e in played])
    assert [(e.parts, e.solved) for e in sent] == [(e.parts, e.solved) for e in played]
    found = describe(played, 3)
    assert (
        found["rewards/right/mean"] == pytest.approx(1 / 3)
        and found["rewards/short/mean"] == 0.5
        and found["unjudged_rate"] == 0
    )
    none = judge_by([short, short])
    none(played)
    assert [e.judged for e in played] == [True, True, False] and set(played[0].parts) >= {"short_1", "short_2"}
    with pytest.raises(ConfigurationError, match="expected 2 numbers"):
        Weighted([right, short], weights=[1.0])
    with pytest.raises(ConfigurationError, match="expected a list of rewards"):
        Weighted([])


def test_from_which_reward_on_an_episode_is_solved():
    judge = make_judge(lambda completions, **_: [0.4, 0.6], {"solved_at": 0.5})
    judge(played := episodes("a", "b"))
    assert [e.solved for e in played] == [False, True]
    for value in (0, "x", True, float("nan")):
        with pytest.raises(ConfigurationError, match="reward.solved_at=.*expected a (finite )?number above 0"):
            make_judge(right, {"solved_at": value})


def test_a_reward_that_hangs_ends_with_one_message():
    with pytest.raises(ConfigurationError, match=r"took more than 0.2 s for 1 completions.*reward.limit_s="):
        Judge(lambda completions: time.sleep(30), limit_s=0.2)(episodes("a"))
    assert Judge(right).limit_s == 300 and Judge(MathVerify()).limit_s is None


def test_the_completion_that_a_reward_fails_for_is_named():
    def parsed(completions):
        return [float(c) for c in completions]

    with pytest.raises(RewardError, match=r"It fails for 'two \\\\x' \(problem 5\)"):
        Judge(parsed)(episodes("1", "2", "3", "4", "5", "two \\x", "7"))


def test_what_one_of_several_rewards_changes_the_others_do_not_see():
    def careless(completions, answer, **columns):
        completions.clear()
        answer.clear()
        return [1.0]

    judge_by([careless, right])(played := episodes("5"))
    assert played[0].parts == {"careless": 1.0, "right": 1.0}


SAW: list[object] = []


def looks(prompts, completions, **columns):
    SAW.append((prompts, columns["problem"]))
    return [0.0 for _ in completions]


@pytest.mark.parametrize("conversational", [False, True])
def test_prompts_are_what_the_model_saw(tiny, tmp_path, conversational):
    said = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello?"},
        {"role": "assistant", "content": "Yes?"},
    ]
    rows = [
        {"prompt": [*said, {"role": "user", "content": f"{i}+{i}?"}], "answer": 2 * i, "split": "train"}
        for i in range(3)
    ]
    rows += [
        {
            "prompt": [said[0], {"role": "user", "content": "1+3?"}],
            "completion": "It is \\boxed{4}.",
            "answer": 4,
            "split": "sft",
        }
    ]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = make_task("jsonl", path=str(tmp_path / "x.jsonl"), instruction="Solve: {problem}", num_examples=1)
    judge = Judge(looks, conversational=conversational)
    session = Session(tiny.backbone, tiny.plugin, task, judge, tiny.engine_settings)
    SAW.clear()
    problems = task.problems("train", 3)
    session.rollout([Request(p, s) for p in problems for s in range(2)], Sampling(LatentPolicy.from_prior(tiny.plugin)))
    [(prompts, bare)] = SAW
    assert bare == [p.problem for p in problems for _ in range(2)]
    shown = [{"role": "user", "content": "Solve: 1+3?"}, {"role": "assistant", "content": "It is \\boxed{4}."}]
    for prompt, problem in zip(prompts[::2], problems, strict=True):
        if conversational:
            assert prompt == [said[0], *shown, *said[1:], {"role": "user", "content": f"Solve: {problem.problem}"}]
        else:
            assert prompt == session.prompter.text(problem.problem, problem.turns) and "It is \\boxed{4}." in prompt
            tokens = session.prompter._tokens(prompt)
            assert tokens == session.prompter.prefix + session.prompter.encode(problem)

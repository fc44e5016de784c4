"""`ollm-rl doctor`: every part checked for real, each failure with its remedy."""

import os
import platform
from collections.abc import Callable
from contextlib import suppress
from importlib import metadata

import torch
from rich.console import Console
from rich.markup import escape

from ollm_rl.common.cache import cache_dir
from ollm_rl.common.locate import locate
from ollm_rl.common.own_packages import BESIDE, check_own_packages
from ollm_rl.config.compose import MATH_VERIFY, Settings
from ollm_rl.errors import ConfigurationError, DataError, OLLMError
from ollm_rl.models.backbone import Backbone, describe
from ollm_rl.models.precision import prefer_bf16
from ollm_rl.reward.config import SOLVED_AT
from ollm_rl.reward.verifier import Verifier
from ollm_rl.rollout.episode import Episode
from ollm_rl.rollout.judge import ODD_TEXTS
from ollm_rl.session.local import shared_backbone
from ollm_rl.session.opening import backbone_settings, judge_of, task_of
from ollm_rl.tasks import TASKS
from ollm_rl.tasks.base import SPLITS, Task, format_answer, has_end
from ollm_rl.tasks.prompts import Prompter
from ollm_rl.tasks.records import EXAMPLES, Jsonl

NEEDED = ("torch", "transformers", "gymnasium", "datasets", "math-verify", "hydra-core", "sympy", "numpy")
PATIENCE_S = 20.0  # of a verdict: a busy machine is no fault of the installation
MAX_GOLDS, GENERATED_GOLDS = 100_000, 200  # of a split: of a file, all
NEEDS = {
    "golds": ("task",),
    "prompt": ("task", "backbone"),
    "reward": ("task", "golds"),
    "solutions": ("task", "reward"),
}  # checks, and what has to have passed
OPTIONAL = ("ray", "optuna", "trl", "peft", "stable-baselines3")
UNDER = f"\n{'':17}"  # a further line of a finding


class Doubtful(str):
    """What a check found that is probably not as it was meant; it is printed as a warning."""


def examine(settings: Settings, out: Console) -> int:
    """Run all checks and print one line each; the exit code: 0 if nothing failed, 2 if what failed is the user's to change."""
    checks: list[tuple[str, Callable[[Settings], str], str]] = [
        ("versions", _versions, "pip install -c constraints.txt -e ."),
        ("packages", _packages, ""),
        ("processor", _processor, "use backbone.device=cpu, or repair the GPU driver"),
        ("cache", _cache, "set OLLM_RL_CACHE to a directory that you may write"),
        ("task", _task, "check task= and task.path="),
        ("golds", _golds, "mend or remove these lines of the data"),
        ("agent", _agent, "check agent= or agent._target_="),
        ("verifier", _verifier, "pip install -c constraints.txt math-verify"),
        ("backbone", _backbone, "check backbone= and the network"),
        ("prompt", _prompt, "check the settings task.instruction, task.examples and the like"),
        ("reward", _reward, "mend the reward, or check reward="),
        ("solutions", _solutions, "mend or remove these lines of the data, or check reward="),
    ]
    failed: dict[str, bool] = {}  # whether it is the user's to change
    for name, check, remedy in checks:
        if missing := [needed for needed in NEEDS.get(name, ()) if needed in failed]:
            out.print(f"[yellow]skip[/]  {name:<10} needs what failed: {', '.join(missing)}", highlight=False)
            continue
        try:
            found = check(settings)
            sign = "[yellow]warn[/]" if isinstance(found, Doubtful) else "[green]ok[/]  "
            out.print(f"{sign}  {name:<10} {escape(found)}", soft_wrap=True, highlight=False)
        except Exception as error:  # whatever is broken is what we are here to report
            failed[name] = isinstance(error, OLLMError)
            fix = "" if isinstance(error, OLLMError) else f" Remedy: {remedy}."
            traceback = f"\n{error.traceback}" if isinstance(error, OLLMError) and error.traceback else ""
            line = f"{str(error).rstrip('.')}.{fix}{traceback}"
            out.print(f"[red]fail[/]  {name:<10} {escape(line)}", soft_wrap=True, highlight=False)
    return (2 if all(failed.values()) else 1) if failed else 0


def _versions(settings: Settings) -> str:
    found = [f"{name} {metadata.version(name)}" for name in NEEDED]
    for name in OPTIONAL:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            found.append(f"{name} not installed (optional)")
    return f"Python {platform.python_version()}, " + ", ".join(found)


def _packages(settings: Settings) -> str:
    return f"{', '.join(BESIDE)} are ollm_rl's own, in {check_own_packages()}"


def _processor(settings: Settings) -> str:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    product = torch.ones(64, 64, device=device, dtype=torch.bfloat16) @ torch.ones(64, 64, device=device).bfloat16()
    assert float(product[0, 0]) == 64.0
    return f"{device}, {os.cpu_count()} cores, {torch.get_num_threads()} threads; {prefer_bf16(device)[1]}"


def _cache(settings: Settings) -> str:
    folder = cache_dir()
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f".probe-{os.getpid()}"
    probe.write_text("x")
    probe.unlink()
    size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    return f"{folder} is writable and holds {size / 2**20:.0f} MiB"


def _task(settings: Settings) -> str:
    task = task_of(settings.config)
    problems = task.problems("test", 3)
    shown = (
        f": for example {problems[0].problem!r:.200}, answer {problems[0].answer!r}"
        if problems
        else ", without problems in split test"
    )
    unanswered = f"{task.unanswered} Such problems stay, and rewards get '' as their answer." if task.unanswered else ""
    said = [*task.table, *task.notes, *([unanswered] if unanswered else [])]
    return UNDER.join([f"{task.name}{shown}", *said])


def _golds(settings: Settings) -> str:
    """Every gold answer given as an answer; those that are lost, and those that only the very same text would equal."""
    if settings.config.reward._target_ != MATH_VERIFY:
        return "not checked: that is for reward=math_verify"
    task = task_of(settings.config)
    most = MAX_GOLDS if isinstance(task, Jsonl) else GENERATED_GOLDS
    problems = [p for split in SPLITS for p in task.problems(split, most)]
    problems += [e for e in task.examples if e not in EXAMPLES and e.answer]
    if task.unanswered:
        raise DataError(
            f"reward=math_verify compares with an answer, and {task.unanswered} Give answers, or choose a reward that needs none."
        )
    ids, golds = [p.id for p in problems], [p.answer for p in problems]
    with Verifier(PATIENCE_S) as verifier:
        verdicts = verifier.check_many([(gold, format_answer(gold)) for gold in golds])
        reasons = verifier.understand_many(golds)
    rows = list(zip(ids, golds, verdicts, reasons, strict=True))
    lost = [_gold_line(i, gold, verdict.reason) for i, gold, verdict, _ in rows if not verdict.correct]
    literal = [_gold_line(i, gold, why) for i, gold, verdict, why in rows if verdict.correct and why != "equal"]
    parts = [f"{len(rows) - len(lost)} of {len(rows)} gold answers are accepted when given as an answer"]
    if lost:
        parts.append(f"malformed, no answer equals them:\n{_lines(lost)}")
    if literal:
        parts.append(f"not understood, only the very same text equals them:\n{_lines(literal)}")
    return _graded(len(rows) - len(lost), len(rows), parts, "Check the column of the answers (task.columns).")


def _graded(good: int, n: int, parts: list[str], remedy: str, expected: float = 0.5) -> str:
    """A finding about `n` rows: doubtful where a smaller share than `expected` is good.

    Raises:
        DataError: none is.
    """
    if n and not good:
        raise DataError(UNDER.join([*parts, remedy]))
    return Doubtful(UNDER.join([*parts, remedy])) if good < expected * n else UNDER.join(parts)


def _reward(settings: Settings) -> str:
    """What the reward makes of texts that are no answers: it has to give a number for these too."""
    task = task_of(settings.config)
    problem = next((p for split in SPLITS for p in task.problems(split, 1)), None)
    if problem is None:
        return "not tried: the task has no problems"
    each = [_judged(settings, task, [Episode(problem, text=text)]) for text in ODD_TEXTS]
    judge, _ = _judged(settings, task, [Episode(problem, text=text) for text in ODD_TEXTS])  # several at once, too
    given = [f"{_given(episodes[0])} for {episodes[0].text!r}" for _, episodes in each]
    told = f"'{judge}' gives {', '.join(given)} (problem {problem.id})"
    full = settings.config.reward.get("solved_at", SOLVED_AT)
    if all(episodes[0].judged and episodes[0].reward >= full for _, episodes in each):
        return Doubtful(UNDER.join([told, "It pays texts that answer nothing in full, so there is nothing to learn."]))
    return told


def _judged(settings: Settings, task: Task, episodes: list[Episode]) -> tuple[str, list[Episode]]:
    """The reward's name, and the episodes with what it gives them.

    Raises:
        OLLMError: it raised an error, or gave something else than a number for each.
    """
    judge, prompter = judge_of(settings.config), None
    with suppress(OLLMError):  # which the check of the backbone has said
        prompter = Prompter.for_task(_loaded(settings), task)  # rewards are handed whole prompts, and tokens
        for episode in episodes:
            episode.tokens = prompter.encode_solution(episode.text)
    try:
        judge(episodes, prompter)
    except ConfigurationError as error:
        if len(episodes) > 1:
            raise
        raise ConfigurationError(
            f"{str(error).rstrip('.')}. It was asked about the text {episodes[0].text!r}."
        ) from error
    finally:
        judge.close()
    return judge.name, episodes


def _given(episode: Episode) -> str:
    return f"{f'reward {episode.reward:g}' if episode.judged else 'no reward (None)'} {episode.verdict}".rstrip()


def _solutions(settings: Settings) -> str:
    """Every worked solution judged by the task's reward, as a text that says it would be; those that are not paid in full."""
    task = task_of(settings.config)
    most = MAX_GOLDS if isinstance(task, Jsonl) else GENERATED_GOLDS
    problems = [p for split in SPLITS for p in task.problems(split, most) if p.solution is not None]
    if not problems:
        return "none: the task has no worked solutions, and conversion needs some: convert.solutions=sampled (docs/tasks.md)"
    judge, episodes = _judged(settings, task, [Episode(p, text=p.solution or "") for p in problems])
    lost = [e for e in episodes if not e.solved]
    parts = [f"{len(episodes) - len(lost)} of {len(episodes)} worked solutions get the full reward from '{judge}'"]
    if lost:
        parts.append(f"not paid in full:\n{_lines([f'{e.problem.id}: {_given(e)}' for e in lost])}")
        least = min(lost, key=lambda e: e.reward)
        parts.append(f"the least got {_shortened(least.text)} (problem {least.problem.id}): {_given(least)}")
    budget = settings.config.engine.max_new_tokens or task.max_new_tokens
    if long := [e for e in episodes if len(e.tokens) > budget]:
        parts.append(
            f"{len(long)} have more than {budget} tokens, so texts like them are cut off before their answers: a larger engine.max_new_tokens"
        )
    full = f"The full reward is {settings.config.reward.get('solved_at', SOLVED_AT):g} (reward.solved_at)."
    remedy = f"{full} Mend the reward, or the solutions that it does not find right."
    mixed = type(task) in TASKS.values() and not has_end(task)  # ours that generate solutions of several qualities
    found = _graded(len(episodes) - len(lost), len(episodes), parts, remedy, 0.0 if mixed else 0.5)
    return Doubtful(found) if len(long) > len(episodes) / 2 else found


def _shortened(text: str, most: int = 200) -> str:
    """A text as Python writes it; of a long one its beginning and its end, where answers stand."""
    if len(text) <= most:
        return repr(text)
    return f"{text[: most // 2]!r} ... {text[-most // 2 :]!r}"


def _gold_line(id: str, gold: str, reason: str) -> str:
    why = "its braces do not close" if gold.count("{") != gold.count("}") else reason
    return f"{id}: {gold!r:.100} ({why})"


def _lines(found: list[str], shown: int = 20) -> str:
    more = [f"and {len(found) - shown} more"] if len(found) > shown else []
    return "\n".join(f"{'':19}{line}" for line in [*found[:shown], *more])


def _agent(settings: Settings) -> str:
    return f"{locate(settings.config.agent._target_).__qualname__} can be imported"


def _verifier(settings: Settings) -> str:
    cases = [("1/2", r"\boxed{0.5}", True), ("12679621", r"\boxed{12679605}", False), ("x+1", r"\boxed{1+x}", True)]
    with Verifier(PATIENCE_S) as verifier:
        for gold, text, expected in cases:
            verdict = verifier.check(gold, text)
            assert verdict.correct is expected, f"{text} against {gold} gave {verdict}"
    return f"{len(cases)} verdicts right, symbolic ones in worker processes"


def _loaded(settings: Settings) -> Backbone:
    return shared_backbone(**backbone_settings(settings.config))


def _backbone(settings: Settings) -> str:
    return describe(_loaded(settings))


def _prompt(settings: Settings) -> str:
    task = task_of(settings.config)
    prompter = Prompter.for_task(_loaded(settings), task)
    problem = next((p for split in ("train", "test", "tune", "sft") for p in task.problems(split, 1)), None)
    if problem is None:
        return "none: the task has no problems"
    tokens = len(prompter.prefix) + len(prompter.encode(problem))
    text = prompter.text(problem.problem, problem.turns)
    lines = [
        f"{tokens} tokens, of which all share the first {len(prompter.prefix)}:",
        *(f"  {line}" for line in text.split("\n")),
    ]
    return UNDER.join(lines)

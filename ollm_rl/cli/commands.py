"""The commands: `train`, `evaluate`, `oracle`, `compare`, `tune`, `demo`, `convert`, `inspect`, `play`, `export`, `chat`, `serve`, `view`, `doctor`; the same overrides for all of them."""

import json
import logging
import shutil
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ollm_rl.common.distributed import processes
from ollm_rl.common.run_dir import CONFIG, CONVERSION, INSPECTION, METRICS, RESULTS, Run
from ollm_rl.common.terminal import console
from ollm_rl.config.compose import Settings, preflight
from ollm_rl.errors import ConfigurationError, DataError

if TYPE_CHECKING:
    from ollm_rl.evaluation.results import Results

out = console()
log = logging.getLogger(__name__)


def convert(settings: Settings, overrides: list[str]) -> None:
    """convert a backbone: train a plug-in on solutions"""
    from ollm_rl.session.opening import open_session
    from ollm_rl.session.solutions import write_solutions

    if not processes().is_main:
        open_session(settings).close()
        return
    with closing(_run(settings, "convert")) as run, closing(open_session(settings, run=run)) as session:
        assert session.plugin_path is not None
        shutil.copytree(session.plugin_path, run.path / "plugin", dirs_exist_ok=True)
        session.lm.save_pretrained(run.path / "plugin")
        run.write_json(CONVERSION, session.conversion)
        write_solutions(session.task, run)
        out.print_json(json.dumps(session.conversion))
        out.print(f"plug-in: {run.path / 'plugin'}")


def train(settings: Settings, overrides: list[str]) -> None:
    """train an agent and evaluate it on held-out problems"""
    _one(settings, "train", learn=True)


def evaluate(settings: Settings, overrides: list[str]) -> None:
    """evaluate an agent (policy=<directory> loads a trained one)"""
    check_evaluated(settings)
    _one(settings, "evaluate", learn=False)


def check_evaluated(settings: Settings) -> None:
    """Whether what is evaluated is what its row will be called.

    Raises:
        ConfigurationError: an agent that has learned nothing yet, or the policy of another agent under the name of one that loads none.
    """
    from ollm_rl.common.locate import dotted_name, locate
    from ollm_rl.session.agent import declared
    from ollm_rl.session.saving import read_description

    kind, name, policy = locate(settings.config.agent._target_), settings.agent_name, settings.config.policy
    learns = declared(kind, "learns_from_rewards")
    if policy is None and learns:
        raise ConfigurationError(
            f"evaluate needs policy=<run, or directory of a trained policy> for agent={name}, which has learned nothing yet. "
            "What it begins as is agent=prior (of LoRA: agent=lora_sft); `train` trains it."
        )
    found = None if policy is None or learns else read_description(Path(policy))
    if found is not None and found["_target_"] != dotted_name(kind):
        raise ConfigurationError(
            f"policy={policy} is of {found['_target_']}, and not of agent={name}; leave agent= out. For the prior of its plug-in: "
            f"agent=prior plugin.path={policy}, without policy="
        )


def _one(settings: Settings, command: str, learn: bool) -> None:
    from ollm_rl.experiments.single import SessionCache, run_trial

    sessions = SessionCache()
    with closing(_run(settings, command)) as run, closing(sessions):
        _present(run, run_trial(settings, run, sessions, settings.config.seed, learn))


def oracle(settings: Settings, overrides: list[str]) -> None:
    """search for the latents that solve each problem"""
    from ollm_rl.experiments.oracle_run import run_oracle
    from ollm_rl.experiments.single import SessionCache

    sessions = SessionCache()
    with (
        closing(_run(settings if settings.config.policy else settings.without_agent(), "oracle")) as run,
        closing(sessions),
    ):
        _present(run, run_oracle(settings, run, sessions, settings.config.seed))


def compare(settings: Settings, overrides: list[str], command: str = "compare") -> None:
    """compare agents=[...] over seeds=[...], with the oracle if with_oracle=true"""
    from ollm_rl.evaluation.results import Results
    from ollm_rl.experiments.compare import compare as run_all
    from ollm_rl.experiments.compare import run_parts
    from ollm_rl.experiments.overrides import of_tasks, trial_settings, with_overrides

    tasks = of_tasks(overrides, settings)
    for mine, given in tasks.values():  # a user error in the last agent should not show after the first has trained
        for name in mine.config.agents:
            preflight(trial_settings(given, mine, name))
    if "" in tasks:
        mine, given = tasks[""]
        with closing(_run(with_overrides(mine, given), command)) as run:
            _present(run, run_all(given, mine, run))
        return
    run, found = _run(with_overrides(settings, overrides), command), dict[str, Results]()
    comparisons = {
        task: (given, mine, Run(run.path, task, with_overrides(mine, given).yaml(), settings.config.resume))
        for task, (mine, given) in tasks.items()
    }
    run_parts(list(comparisons.values()))  # of all tasks at once
    for task, (given, mine, own) in comparisons.items():
        found[task] = run_all(given, mine, own)
        _present(own, found[task])
    rows = [replace(row, task=task) for task, results in found.items() for row in results.rows]
    whole = Results(rows, ", ".join(found), settings.config.backbone.name, tasks=found, directory=run.path)
    run.write_json(RESULTS, whole.to_dict())
    run.close()


def tune(settings: Settings, overrides: list[str]) -> None:
    """try settings of agents=[...] with equal budgets: <agent>.<setting>=a,b or interval(low,high)"""
    from ollm_rl.experiments.tune import TUNE, tuning_table
    from ollm_rl.experiments.tune import tune as try_all
    from ollm_rl.experiments.tuning_plan import plan_of
    from ollm_rl.report.plots import draw_tuning

    plan = plan_of(overrides, settings)
    with closing(_run(plan.settings, "tune")) as run:
        result = try_all(plan, run, overrides)
        plot = draw_tuning(result, run.path / "plots")
        out.print(tuning_table(result).to_rich())
        for agent, best in result["overrides"].items():
            out.print(
                f"best of {agent}: {' '.join(best) or 'its defaults'}", markup=False, highlight=False, soft_wrap=True
            )
        out.print(f"results: {run.path / TUNE}\nplot:    {plot}", soft_wrap=True)


def demo(settings: Settings, overrides: list[str]) -> None:
    """the main job: every agent and the oracle on SmolLM2"""
    compare(settings, overrides, "demo")


def inspect(settings: Settings, overrides: list[str]) -> None:
    """show what the options say on gold solutions, or in the answer (of policy=<directory>) to prompt=<text>"""
    from ollm_rl.evaluation.inspection import inspect_problems, inspect_prompt, latent_meanings
    from ollm_rl.report.inspection_page import prompt_table, write_inspection
    from ollm_rl.serving.opening import opened

    config = settings.config
    if config.inspect.prompt is not None and not str(config.inspect.prompt).strip():
        raise ConfigurationError("inspect.prompt is empty; expected a problem, such as prompt='3 + 9 - 4'")
    session, agent = opened(settings, overrides, judged=False)
    try:
        if agent is not None and (agent.acts_on_logits or agent.acting_session is not None):
            raise ConfigurationError(
                f"policy={config.policy} is of {type(agent).__name__}, which chooses tokens; inspect shows options, and expects the policy of an "
                "agent that chooses latents"
            )
        if config.inspect.prompt is not None:
            whose = "the prior" if agent is None else f"the policy in {config.policy}"
            answered = inspect_prompt(session, str(config.inspect.prompt), agent)
            out.print(prompt_table(answered, whose))
            out.print(answered["text"], markup=False, highlight=False, soft_wrap=True)
            return
        problems = session.problems(config.inspect.split, config.inspect.num_problems, config.seed)
        problems = [p for p in problems if p.solution]
        if not problems:
            raise DataError(f"task '{session.task.name}' has no solutions in split '{config.inspect.split}' to look at")
        run = _page_anew(settings)
        positions = inspect_problems(session, problems)
        facts = f"{len(problems)} problems of split {config.inspect.split}, seed {config.seed}; plug-in {session.plugin_path}"
        title = f"Options of {session.backbone.name} on {session.task.name}"
        meanings = latent_meanings(positions, session.plugin.num_options)
        page = write_inspection(run.path / INSPECTION, title, facts, problems, positions, meanings)
        out.print(f"page: {page}", soft_wrap=True)
    finally:
        session.close()


def play(settings: Settings, overrides: list[str]) -> None:
    """choose the options yourself, on a page in the browser (policy=<directory>: beside a policy)"""
    from ollm_rl.serving.opening import play as serve

    serve(settings, overrides, lambda line: out.print(line, soft_wrap=True, highlight=False, markup=False))


def export(settings: Settings, overrides: list[str]) -> None:
    """write a trained policy as a model that transformers loads: policy=<directory> out=<directory>"""
    from ollm_rl.serving.export import export as write
    from ollm_rl.serving.opening import opened_agent

    wanted = settings.config.export
    if wanted.out is None:
        raise ConfigurationError("export needs out=<directory>, where the model is to be written")
    agent = opened_agent(settings, overrides, "export")
    try:
        path = write(agent, wanted.out, wanted.kind, wanted.bundle, wanted.push_to_hub)
    finally:
        agent.session.close()
    out.print(f"model: {path}", soft_wrap=True)
    out.print(f"talk to it: ollm-rl chat policy={path}", soft_wrap=True, markup=False, highlight=False)


def chat(settings: Settings, overrides: list[str]) -> None:
    """talk to a trained policy or an exported model in the terminal: policy=<directory>"""
    from ollm_rl.serving.chat import Conversation, load_model, talk
    from ollm_rl.serving.export import exported, is_export
    from ollm_rl.serving.opening import opened_agent

    config = settings.config
    if config.policy is not None and is_export(Path(config.policy)):
        model, tokenizer = load_model(config.policy)
    else:
        agent = opened_agent(settings, overrides, "chat")
        agent.session.close()  # nothing is judged
        model, tokenizer = exported(agent)
    talk(
        Conversation(model, tokenizer, config.chat.temperature, config.chat.max_new_tokens, config.seed),
        config.chat.latents,
        out,
    )


def serve(settings: Settings, overrides: list[str]) -> None:
    """offer a trained policy or an exported model to clients of the OpenAI API: policy=<directory>"""
    try:
        from ollm_rl.serving.serve import serve as run
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("ollm_rl"):
            raise
        raise ConfigurationError(
            f"serve needs the package {error.name}, which is not here; expected the extra `serve`: pip install -c constraints.txt -e '.[serve]'"
        ) from error
    run(settings, overrides, lambda line: out.print(line, soft_wrap=True, highlight=False, markup=False))


def view(settings: Settings, overrides: list[str]) -> None:
    """look at many runs on one page: view <directory> [out=<directory>]"""
    from ollm_rl.config.checks import check_values
    from ollm_rl.view.opening import view as show

    check_values(settings.config, settings.choices)
    show(settings, lambda line: out.print(line, soft_wrap=True, highlight=False, markup=False))


def doctor(settings: Settings, overrides: list[str]) -> None:
    """check versions, processor or GPU, backbone, cache, task, reward and verifier"""
    from ollm_rl.cli.doctor import examine

    if code := examine(settings, out):
        sys.exit(code)


COMMANDS: dict[str, Callable[[Settings, list[str]], None]] = {
    f.__name__: f
    for f in (demo, convert, train, evaluate, oracle, compare, tune, inspect, play, export, chat, serve, view, doctor)
}


def _run(settings: Settings, command: str) -> Run:
    config = settings.config
    return Run(config.runs_dir, config.name or command, settings.yaml(), config.resume)


def _page_anew(settings: Settings) -> Run:
    """The directory of an inspection; a page that is there was made in seconds, and is replaced whatever its settings were."""
    path = Path(settings.config.runs_dir) / (settings.config.name or "inspect")
    if (path / INSPECTION).is_file() and not (path / RESULTS).exists() and not (path / METRICS).exists():
        (path / CONFIG).unlink(missing_ok=True)
    return _run(settings, "inspect")


def _present(run: Run, results: "Results") -> None:
    """Write the results (those of an earlier release under today's names) and the report, and print the tables."""
    from ollm_rl.report.html import write_report
    from ollm_rl.report.tables import short_tables

    run.write_json(RESULTS, results.to_dict())
    page = write_report(run.path)
    tables, others = short_tables(results)
    for table in tables:
        out.print(table.to_rich(notes=True))
    if others:
        out.print(f"the report has more tables: {', '.join(others)}", soft_wrap=True)
    out.print(f"results: {run.path / RESULTS}\nreport:  {page}", soft_wrap=True)
    run.close()

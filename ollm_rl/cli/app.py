"""The entry point of `ollm-rl`: arguments, errors and exit codes.

Exit code 0: done; 1: a failure of ours; 2: a user error; 130, 143: interrupted, by Ctrl-C or SIGTERM (run it again to continue).
"""

import logging
import os
import sys

from rich.logging import RichHandler
from rich.text import Text

from ollm_rl.cli.commands import COMMANDS, out
from ollm_rl.cli.sweep import SWEPT, combinations, gather, run_all
from ollm_rl.common.config_files import GROUPS, members, section
from ollm_rl.common.interrupts import Terminations
from ollm_rl.common.own_packages import check_own_packages
from ollm_rl.common.progress import console as err
from ollm_rl.common.run_config import COMPARISON
from ollm_rl.common.settings import settings_of
from ollm_rl.config.checks import check_values
from ollm_rl.config.compose import check_classes, compose, preflight
from ollm_rl.errors import ConfigurationError, OLLMError, WorkerError, did_you_mean

OWN = ("inspect", "export", "chat", "play", "serve", "view")  # commands whose settings need no prefix
ON_POLICY = ("evaluate", "oracle")  # commands that take over what a policy was trained on
NO_RUN = ("doctor", "view")  # commands that say by themselves what is missing


def usage() -> str:
    commands = "\n".join(f"  {name:<10}{f.__doc__}" for name, f in COMMANDS.items())
    groups = "\n".join(f"  {g + '=':<12}{' | '.join(members(g))}" for g in GROUPS)
    return (
        f"usage: ollm-rl <command> [group=choice] [key=value ...] [--dry-run]\n\ncommands\n{commands}\n\ngroups\n{groups}\n\n"
        "common keys\n  name=  seed=  resume=auto|never|must  policy=  agent.total_episodes=  oracle.budget=\n"
        "  agents=[...] seeds=[...] for compare; agents=[...] <agent>.<setting>=a,b tune.search= for tune\n\n"
        "  key=a,b runs the command with each: agent=grpo,ppo seed=0,1,2\n\n"
        "--dry-run prints the resolved configuration and what it would take: memory, seconds, tokens (measured in about ten seconds,\n"
        "for some comparisons in a minute a task; estimate.measure=false leaves that out)."
    )


def main(argv: list[str] | None = None) -> None:
    """Entry point of `ollm-rl` and `python -m ollm_rl`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # Threads that spin while they wait stall whatever else the machine does, each other included. Heeded if torch is not loaded yet.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    logging.basicConfig(
        level=logging.INFO, format="%(message)s", handlers=[RichHandler(console=err, show_path=False, show_level=False)]
    )
    for noisy in ("httpx", "datasets", "transformers", "matplotlib", "latex2sympy2_extended"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    ended = Terminations()
    try:
        with ended:
            _dispatch(arguments)
    except (OLLMError, WorkerError) as error:
        if isinstance(error, OLLMError) and error.traceback:
            err.print(Text(_printable(error.traceback)), soft_wrap=True)
        err.print(Text.assemble(("error:", "bold red"), f" {_printable(str(error))}"), soft_wrap=True)
        sys.exit(2 if isinstance(error, OLLMError) else 1)
    except KeyboardInterrupt:
        err.print("interrupted; the same command continues from the last checkpoint", soft_wrap=True)
        sys.exit(143 if ended.came else 130)


def _printable(text: str) -> str:
    """What was typed, or is in a file, may be no text."""
    return text.encode(errors="backslashreplace").decode()


def _dispatch(arguments: list[str]) -> None:
    check_own_packages()  # settings are read from them
    flags = [a for a in arguments if a.startswith("-")]
    words = [a for a in arguments if not a.startswith("-")]
    if not arguments or "-h" in flags or "--help" in flags:
        out.print(usage(), markup=False, highlight=False)
        return
    for flag in flags:
        if flag != "--dry-run":
            raise ConfigurationError(f"unknown option {flag}; expected --dry-run or --help")
    if not words or words[0] not in COMMANDS:
        word = words[0] if words else ""
        raise ConfigurationError(
            f"unknown command '{word}'; expected one of {', '.join(COMMANDS)}.{did_you_mean(word, COMMANDS)}"
        )
    command, overrides = words[0], words[1:]
    if command == "demo" and not any(o.startswith("experiment=") for o in overrides):
        overrides = ["experiment=demo", *overrides]
    if command == "tune":
        overrides = tuned_agents(overrides)
    overrides = own_settings(command, overrides)
    if command in SWEPT:
        refuse_comparisons(command, overrides)
    jobs = [of_policy(command, job) for job in (combinations(overrides) if command in SWEPT else [overrides])]
    if command == "train":
        from ollm_rl.experiments.overrides import of_experiment

        jobs = [of_experiment(job) for job in jobs]
    if len(jobs) > 1 and "--dry-run" not in flags:
        results = gather(run_all(command, jobs, lambda name, settings, given: COMMANDS[name](settings, given)))
        if results.rows:
            out.print(results.table().to_rich())
        return
    overrides = jobs[0]
    if command in ("compare", "demo", "tune"):
        from ollm_rl.experiments.overrides import shared

        if any(o.startswith(("agent=", "agent._target_=")) for o in overrides):
            raise ConfigurationError(f"{command} takes agents=[...], names or <module>.<Class>, instead of agent=")
        settings = compose(shared(overrides))
    else:
        settings = compose(overrides)
    if "--dry-run" in flags:
        for each in [settings, *map(compose, jobs[1:])]:
            check_values(each.config, each.choices)
            check_classes(each)
        from ollm_rl.cli.estimate import print_estimate
        from ollm_rl.cli.time_estimate import print_time

        print_estimate(settings, out)
        print_time(command, settings, overrides, len(jobs), out)
        if command == "tune":
            from ollm_rl.experiments.tuning_plan import plan_of

            plan = plan_of(overrides, settings)
            for name in plan.axes:
                out.print(f"{name}: {plan.size(name)} settings of {plan.config.episodes} episodes", highlight=False)
        return
    if command not in NO_RUN:
        preflight(settings)
    COMMANDS[command](settings, overrides)


def of_policy(command: str, overrides: list[str]) -> list[str]:
    """The overrides with those of `policy=` for what they do not name, where a command looks at one on its own."""
    if command not in ON_POLICY or not any(o.startswith("policy=") for o in overrides):
        return overrides
    from ollm_rl.session.policy_settings import with_policy

    return with_policy(overrides)


def refuse_comparisons(command: str, overrides: list[str]) -> None:
    """Refuse settings of comparisons, which this command would not heed.

    Raises:
        ConfigurationError: there is one.
    """
    for key, _, value in (override.lstrip("+").partition("=") for override in overrides):
        if key in COMPARISON:
            own = {"agents": "agent=a,b", "seeds": "seed=0,1", "tasks": "task=a,b"}.get(key)
            remedy = f"{command} takes {own}, a run for each" if own else "leave it out"
            raise ConfigurationError(f"{key}={value:.60} is a setting of compare; {remedy}")


def own_settings(command: str, overrides: list[str]) -> list[str]:
    """The settings of a command's own section may be given without its name: `export out=x` is `export export.out=x`."""
    if command not in OWN:
        return overrides
    own = settings_of(section(command))
    if command == "view" and overrides and "=" not in overrides[0]:  # as in `ollm-rl view runs/`
        overrides = [f"directory={overrides[0]}", *overrides[1:]]
    return [f"{command}.{o}" if o.partition("=")[0] in own else o for o in overrides]


def tuned_agents(overrides: list[str]) -> list[str]:
    """`agent=a` and `agent=a,b` as `agents=[a,b]`; without either, and without an experiment that has some, that of `train`."""
    found = []
    for override in overrides:
        key, _, value = override.partition("=")
        single = key == "agent._target_" or (key == "agent" and not value.startswith("{"))
        found.append(f"agents=[{value}]" if single else override)
    given = any(o.startswith(("agents=", "experiment=")) for o in found)
    return found if given else ["agents=[grpo]", *found]

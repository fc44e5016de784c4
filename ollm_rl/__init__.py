"""Reinforcement learning for latent policies over option language models.

The front door, from Python (docs/python.md). A name is imported when it is first used, so that `import ollm_rl` is quick and loads
no torch:

>>> import ollm_rl as ol
>>> backbone = ol.load_backbone("smollm2")
>>> task = ol.make_task("chain_sum")
>>> plugin = ol.convert(backbone, task)
>>> session = ol.Session(backbone, plugin, task, reward=ol.MathVerify())
>>> agent = ol.make_agent("grpo", session, total_episodes=2560)
>>> agent.learn("runs/notebook")
>>> result = ol.evaluate(session, agent, num_problems=200, samples=8)
>>> ol.write_report("runs/notebook")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ollm_rl.evaluation.evaluator import evaluate_agent as evaluate
    from ollm_rl.evaluation.while_training import EvaluateWhileTraining
    from ollm_rl.experiments.factories import make_agent
    from ollm_rl.options.conversion import convert
    from ollm_rl.options.modules import PlugIn
    from ollm_rl.oracle.oracle import Oracle
    from ollm_rl.report.html import write_report
    from ollm_rl.reward.functions import MathVerify, ReasoningGym
    from ollm_rl.reward.per_completion import PerCompletion
    from ollm_rl.reward.plans import Plan
    from ollm_rl.reward.python_tests import PythonTests
    from ollm_rl.reward.verifier import Verifier
    from ollm_rl.rollout.episode import Episode
    from ollm_rl.rollout.judge import Judge, Weighted
    from ollm_rl.rollout.sampler import Request
    from ollm_rl.serving.export import export
    from ollm_rl.session.agent import Agent
    from ollm_rl.session.callbacks import Callback
    from ollm_rl.session.loading import load_agent
    from ollm_rl.session.local import Session
    from ollm_rl.session.local import shared_backbone as load_backbone
    from ollm_rl.session.solutions import sample_solutions
    from ollm_rl.session.value import learn_value
    from ollm_rl.tasks import make_task
    from ollm_rl.tasks.base import Problem, Task

__version__ = "0.1.0"
_HOME = {
    "Agent": "ollm_rl.session.agent",
    "Callback": "ollm_rl.session.callbacks",
    "Episode": "ollm_rl.rollout.episode",
    "EvaluateWhileTraining": "ollm_rl.evaluation.while_training",
    "Judge": "ollm_rl.rollout.judge",
    "MathVerify": "ollm_rl.reward.functions",
    "Oracle": "ollm_rl.oracle.oracle",
    "PerCompletion": "ollm_rl.reward.per_completion",
    "Plan": "ollm_rl.reward.plans",
    "PlugIn": "ollm_rl.options.modules",
    "Problem": "ollm_rl.tasks.base",
    "PythonTests": "ollm_rl.reward.python_tests",
    "ReasoningGym": "ollm_rl.reward.functions",
    "Request": "ollm_rl.rollout.sampler",
    "Session": "ollm_rl.session.local",
    "Task": "ollm_rl.tasks.base",
    "Verifier": "ollm_rl.reward.verifier",
    "Weighted": "ollm_rl.rollout.judge",
    "convert": "ollm_rl.options.conversion",
    "evaluate": "ollm_rl.evaluation.evaluator",
    "export": "ollm_rl.serving.export",
    "learn_value": "ollm_rl.session.value",
    "load_agent": "ollm_rl.session.loading",
    "load_backbone": "ollm_rl.session.local",
    "make_agent": "ollm_rl.experiments.factories",
    "make_task": "ollm_rl.tasks",
    "sample_solutions": "ollm_rl.session.solutions",
    "write_report": "ollm_rl.report.html",
}
_NAME_THERE = {"evaluate": "evaluate_agent", "load_backbone": "shared_backbone"}
__all__ = [
    "Agent", "Callback", "Episode", "EvaluateWhileTraining", "Judge", "MathVerify", "Oracle", "PerCompletion", "Plan", "PlugIn", "Problem", "PythonTests",
    "ReasoningGym", "Request", "Session", "Task", "Verifier", "Weighted", "convert", "evaluate", "export", "learn_value", "load_agent", "load_backbone", "make_agent", "make_task",
    "sample_solutions", "write_report",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'ollm_rl' has no attribute '{name}'; it has {', '.join(__all__)}")
    found = getattr(import_module(_HOME[name]), _NAME_THERE.get(name, name))
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return [*__all__, "__version__"]

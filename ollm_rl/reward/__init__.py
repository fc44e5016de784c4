"""Rewards: is the final answer of a text right? The verifier, its sandbox, and rewards with TRL's signature. Imports no torch."""

from ollm_rl.reward.functions import MathVerify, ReasoningGym
from ollm_rl.reward.plans import Plan
from ollm_rl.reward.python_tests import PythonTests
from ollm_rl.reward.verifier import Verdict, Verifier

__all__ = ["MathVerify", "Plan", "PythonTests", "ReasoningGym", "Verdict", "Verifier"]

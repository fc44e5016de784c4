"""A reward and a policy that fail once, wherever in a cluster they are first called."""

import os
from pathlib import Path

from ollm_rl.options.policies import Sampling


def first(name: str) -> bool:
    """Whether nobody has asked for `name` yet."""
    try:
        (Path(os.environ["OLLM_RL_CACHE"]) / name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def reward(completions, answer, **columns):
    """Half of the answers are right, by their length."""
    if first("reward-failed"):
        raise RuntimeError("the verifier broke")
    return [float(len(c) % 2) for c in completions]


class Once(Sampling):
    """Fails in the middle of its first rollout."""

    def __call__(self, hidden, mask, uniforms):
        if first("policy-failed"):
            raise RuntimeError("the environment broke")
        return super().__call__(hidden, mask, uniforms)

"""What every learner checks of the episodes of an iteration."""

import math
from collections.abc import Sequence

from ollm_rl.errors import TrainingError
from ollm_rl.rollout.episode import Episode
from ollm_rl.rollout.judge import LARGEST


def check_episodes(episodes: Sequence[Episode]) -> None:
    """There is something to learn from, and its rewards can be calculated with in float32.

    Raises:
        TrainingError: no episode, or a reward that is too large.
    """
    if not episodes:
        raise TrainingError("an iteration gave no episode, so training was stopped. Look at the task's problems.")
    if not any(episode.judged for episode in episodes):
        raise TrainingError(
            f"the reward gave None for all of the {len(episodes)} episodes of an iteration, so nothing can be learned from them. Mend it, and "
            "run the same command again to continue."
        )
    for episode in episodes:
        if not math.isfinite(episode.reward) or abs(episode.reward) > LARGEST:
            raise TrainingError(
                f"a reward of {episode.reward} (problem {episode.problem.id}); expected a number between -{LARGEST:g} and "
                f"{LARGEST:g}. Mend the reward function, and run the same command again to continue."
            )

"""An episode as text: the problem, what was said so far with its latents, and what may come next."""

from ollm_rl.common.terminal import plain
from ollm_rl.options.enumeration import NO_LATENT
from ollm_rl.report.pages import visible
from ollm_rl.rollout.engine import RolloutEngine
from ollm_rl.rollout.episode import Episode
from ollm_rl.rollout.offered import offered, piece


def rendered(engine: RolloutEngine, row: int, episode: Episode) -> str:
    """What there is to see of the episode in an active row of the engine; of one that has ended, the verdict in place of the options.

    A token that somebody chose is followed by its latent in brackets. Control characters are spelled out: a terminal would obey them.
    """
    said = [
        f"{plain(piece(engine, token))}[{latent}]" if latent != NO_LATENT else plain(piece(engine, token))
        for token, latent in zip(episode.tokens, episode.latents, strict=True)
    ]
    lines = [f"problem {episode.problem.id}: {episode.problem.problem}", f"text: {''.join(said)}"]
    if episode.stop:
        answer = "none" if episode.answer is None else episode.answer
        lines.append(f"ended ({episode.stop}): answer {answer}, reward {episode.reward:g} {episode.verdict}".rstrip())
    else:
        offers = offered(engine, row)
        lines.append("next: forced" if len(offers) == 1 else "next, as latent: token (the prior's probability)")
        lines += [f"{o.latent:>6}: {plain(visible(o.text))} ({o.prior:.1%})" for o in offers]
    return "\n".join(lines)

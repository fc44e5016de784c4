"""The policy of a command line with the session that it was made in, and what the command `play` does with them."""

import logging
import webbrowser
from collections.abc import Callable, Sequence
from pathlib import Path

from ollm_rl.config.compose import Settings, compose, to_dict
from ollm_rl.errors import ConfigurationError
from ollm_rl.reward.config import SOLVED_AT
from ollm_rl.rollout.judge import Judge
from ollm_rl.serving.config import PlayConfig
from ollm_rl.serving.game import Game
from ollm_rl.serving.play import LOOPBACK, PlayServer
from ollm_rl.session.agent import Agent
from ollm_rl.session.loading import agent_of, load_agent
from ollm_rl.session.local import Session
from ollm_rl.session.opening import open_session
from ollm_rl.session.policy_settings import says_of_sessions, with_policy
from ollm_rl.session.saving import read_description

log = logging.getLogger(__name__)


def play(settings: Settings, overrides: Sequence[str], say: Callable[[str], None]) -> None:
    """Serve a game until Ctrl-C.

    Args:
        overrides: as they were typed. say: is told the address.
    """
    config = PlayConfig.of(to_dict(settings.config.play))
    session, agent = opened(settings, overrides)
    try:
        with PlayServer(Game(session, agent, config), config.host, config.port) as server:
            say(f"play: {server.url}  (Ctrl-C ends it)")
            if config.host not in LOOPBACK:
                log.warning("play.host=%s: whoever reaches this address can play; there is no password", config.host)
            if config.open_browser:
                webbrowser.open(server.url)
            try:
                server.serve_forever(poll_interval=0.1)
            except KeyboardInterrupt:
                server.settle()
                say("play: ended")
    finally:
        session.close()


def opened(settings: Settings, overrides: Sequence[str], judged: bool = True) -> tuple[Session, Agent | None]:
    """The session to act in, and the agent of `policy=`.

    That agent's own session, with its backbone, plug-in and task; where the command line says something of sessions, one of these with that.

    Args:
        judged: false: no verdict is asked, so that the reward of the policy need not be here.

    Raises:
        OLLMError: something of it is not there, or does not fit the rest.
    """
    config = settings.config
    if config.policy is None:
        return open_session(settings), None
    named = config.agent._target_ if settings.choices["agent"] == "custom" else None
    session = None
    if says_of_sessions(overrides):
        session = open_session(compose(with_policy([*overrides], judged)))
    try:
        agent = load_agent(config.policy, session, named, None if judged else _unasked(Path(config.policy)))
    except BaseException:
        if session is not None:
            session.close()
        raise
    acting: Session = agent.acting_session or agent.session
    return acting, agent


def opened_agent(settings: Settings, overrides: Sequence[str], command: str) -> Agent:
    """The agent of `policy=`, or the prior, to answer unjudged.

    Raises:
        ConfigurationError: neither is asked for. OLLMError: something of it is not there, or does not fit the rest.
    """
    if settings.config.policy is None and settings.agent_name != "prior":
        raise ConfigurationError(
            f"{command} needs policy=<directory of a trained policy>, such as runs/<name>/policy, or agent=prior for the plug-in's own"
        )
    session, agent = opened(settings, overrides, judged=False)
    return agent_of(session, settings.config.agent) if agent is None else agent


def _unasked(path: Path) -> Judge:
    """A judge that is never asked, and says what the policy was trained with."""
    reward = (read_description(path) or {}).get("reward") or {}
    return Judge(unasked, settings=reward, solved_at=reward.get("solved_at", SOLVED_AT)) if reward else Judge(unasked)


def unasked(completions: list[str], **columns: object) -> list[float]:
    """The reward where nothing is judged."""
    raise RuntimeError("nothing is judged here")

"""The policy of a command line with the session that it was made in, and what the command `play` does with them."""

import logging
import webbrowser
from collections.abc import Callable, Sequence

from ollm_rl.config.compose import Settings, to_dict
from ollm_rl.errors import ConfigurationError
from ollm_rl.serving.config import PlayConfig
from ollm_rl.serving.game import Game
from ollm_rl.serving.play import LOOPBACK, PlayServer
from ollm_rl.session.agent import Agent
from ollm_rl.session.loading import agent_of, load_agent
from ollm_rl.session.local import Session
from ollm_rl.session.opening import open_session

log = logging.getLogger(__name__)

# What a session is made of: who gives one of these does not want the session that the policy was made in.
OF_SESSIONS = ("backbone", "plugin", "task", "reward", "engine", "convert", "experiment")


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

    That agent's own session, with its backbone, plug-in and task, unless the command line says something of sessions.

    Args:
        judged: false: no verdict is asked, so that the reward of the policy need not be here.

    Raises:
        OLLMError: something of it is not there, or does not fit the rest.
    """
    config = settings.config
    keys = {override.partition("=")[0].partition(".")[0] for override in overrides}
    if config.policy is None:
        return open_session(settings), None
    named = config.agent._target_ if settings.choices["agent"] == "custom" else None
    session = open_session(settings) if keys & {*OF_SESSIONS} else None
    try:
        agent = load_agent(config.policy, session, named, None if judged else unasked)
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


def unasked(completions: list[str], **columns: object) -> list[float]:
    """The reward where nothing is judged."""
    raise RuntimeError("nothing is judged here")

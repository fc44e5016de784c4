"""The imitation policy of the plug-in, unchanged: where every learner starts."""

from agents.base import PolicyAgent
from ollm_rl.options.policies import LatentPolicy
from ollm_rl.session.local import Session


class Prior(PolicyAgent):
    """Acts by pi0(z | h)."""

    def __init__(self, session: Session):
        super().__init__(session)
        self.policy = LatentPolicy.from_prior(session.plugin)

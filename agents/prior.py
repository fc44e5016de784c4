"""The imitation policy of the plug-in, unchanged: where every learner starts."""

from agents.base import PolicyAgent
from ollm_rl.options.policies import LatentPolicy
from ollm_rl.session.local import Workspace


class Prior(PolicyAgent):
    """Acts by pi0(z | h)."""

    def __init__(self, workspace: Workspace):
        super().__init__(workspace)
        self.policy = LatentPolicy.from_prior(workspace.plugin)

"""The frozen option LM as Gymnasium environments. Importing this package registers them.

`gymnasium.make("ollm_rl/LatentReasoning-v0")` gives the single environment and
`gymnasium.make_vec(..., vectorization_mode="vector_entry_point")` the natively batched one.
`ollm_rl/OmniMath-v0` is the same with the Omni-MATH task.
"""

import gymnasium


def register_envs() -> None:
    """Register the environments; a second call does nothing. Also an entry point of the group `gymnasium.envs`."""
    for name, settings in (("LatentReasoning", {}), ("OmniMath", {"task": "omni_math", "split": "test"})):
        if f"ollm_rl/{name}-v0" not in gymnasium.registry:
            gymnasium.register(
                f"ollm_rl/{name}-v0",
                entry_point="envs.single:LatentReasoningEnv",
                vector_entry_point="envs.batched:LatentReasoningVectorEnv",
                kwargs=settings,
            )


register_envs()

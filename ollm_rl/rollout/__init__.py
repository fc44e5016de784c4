"""The rollout engine, the only decode path: prompts in, whole episodes with their rewards out."""

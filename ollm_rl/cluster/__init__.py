"""Work on many machines with Ray: workers that may die, and a session that lives on them.

Nothing else in `ollm_rl` imports Ray, and without `rollout.num_workers` or `rollout.address` nothing here is imported.
"""

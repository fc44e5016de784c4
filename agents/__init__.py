"""Agents that choose latents. They are named in the configuration by `_target_`; nothing imports them by name."""

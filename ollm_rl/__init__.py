"""Reinforcement learning for latent policies over option language models."""

__version__ = "0.1.0"

"""Frozen backbones: loading, precision, and the attention through which the engine drives them."""

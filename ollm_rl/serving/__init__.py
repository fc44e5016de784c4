"""Trained policies on their way out: models that others load, and ways to talk to them and to play in their place. Imports no torch."""

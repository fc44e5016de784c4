"""From the command line to checked settings: Hydra groups, overrides, and errors that help. Imports no torch."""

"""The command line: `ollm-rl <command> [group=choice] [key=value ...]`."""

from ollm_rl.cli.app import main

__all__ = ["main"]

"""`python -m ollm_rl`, the same as `ollm-rl`."""

from ollm_rl.cli.app import main

main()

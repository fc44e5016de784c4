"""`python -m ollm_rl`, the same as `ollm-rl`."""

from ollm_rl.cli import main

main()

"""``python -m mup_tune``."""

from mup_tune.cli import main

main()

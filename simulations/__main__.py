"""``python -m simulations`` is ``fedreptile-sim``."""

from simulations.cli import main

main()

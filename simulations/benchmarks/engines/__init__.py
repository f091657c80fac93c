"""What adapting simulated sites costs: arithmetic, engines, other frameworks, MAML, a GPU.

python -m simulations.benchmarks.engines [--parts work,engines,overhead,maml,gpu] [--pairs 5] [--sites 10,100,1000]
"""


class NoFigureError(Exception):
    """What was to be measured cannot be had here; the message says why."""

"""What a proportion that was found in few trials says about the true one. Torch-free."""

import math

Z = 1.959964
"""Of a standard normal variable 95 % lie so near to 0."""
FEW = 30
"""Trials below which a rate is hardly known, so that its interval comes with a warning."""


def wilson(right: int, tried: int) -> tuple[float, float]:
    """Return the 95 % interval of a proportion (Wilson 1927); 0 to 1 if nothing was tried."""
    if not tried:
        return 0.0, 1.0
    part, square = right / tried, Z * Z
    centre = (part + square / (2 * tried)) / (1 + square / tried)
    half = Z * math.sqrt(part * (1 - part) / tried + square / (4 * tried**2)) / (1 + square / tried)
    return max(0.0, centre - half), min(1.0, centre + half)

"""The algorithm, the networks, what travels and what is trusted. Imports nothing else of this project."""

VERSION = "0.1.0"
"""Of this code. A site compares it with that of the run's app bundle, which may be another than what is installed."""

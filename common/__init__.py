"""The algorithm, the networks, what travels and what is trusted. Imports nothing else of this project."""

"""Data sets for simulations, each from its public origin, a local mirror, or an installed package."""

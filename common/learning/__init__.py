"""The algorithm: Reptile and what it learns with. Start with reptile.py."""

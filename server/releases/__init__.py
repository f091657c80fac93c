"""Releases: the register of all of them, and the signed repository from which sites take them."""

"""The data sets of the catalogue, one module a set or family: what it is, and how its files are read."""

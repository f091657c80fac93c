"""Running the server of a federation: its processes, its runs, how it stands."""

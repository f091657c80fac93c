"""The operator's side: the ServerApp, the Reptile strategy and its rounds. May import common."""

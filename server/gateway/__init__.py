"""The gateway: the only thing of the server that sites reach."""

"""How good a run's params are: judged on sites and inputs that training never saw, beside simpler ways."""

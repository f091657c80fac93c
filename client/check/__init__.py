"""Finding out why a site does not run, or would not: each cause with its fix."""

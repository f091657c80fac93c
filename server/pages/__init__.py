"""The operator's page: sites, campaigns, gates and releases, for people who do not want to type."""

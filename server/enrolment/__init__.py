"""Who belongs to a federation: its authority, the sites it has approved, and those it has revoked."""

"""Campaigns: a new class for everybody, through a gate, in steps."""

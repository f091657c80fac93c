"""What leaves a site: its policy, its ledger, and the one door."""

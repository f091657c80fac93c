"""Many sites at once on one machine: the same work as one after another, with less around it."""

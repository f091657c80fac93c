"""Keys, certificates and signatures: who may speak for whom."""

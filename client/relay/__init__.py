"""The relay: the only process of a site with the network, and the second door for what Flower sends."""

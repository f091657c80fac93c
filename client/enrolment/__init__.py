"""How a site becomes part of a federation: its keys, its request, the kit it gets back."""

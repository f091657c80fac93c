"""What the site's and the operator's page share: who may see them, how they look."""

"""Taking a release into use at a site."""

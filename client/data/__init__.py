"""What a site has: folders of images and packed sets, both behind ``common.episode.SiteData``."""

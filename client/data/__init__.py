"""What a site has: folders of images and packed sets, both behind ``common.learning.episode.SiteData``."""

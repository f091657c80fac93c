"""What a site has: folders of pictures, tables, arrays and packed sets, all behind one contract (``SiteData``)."""

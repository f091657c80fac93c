"""A site: its data, its ClientApp and the one door through which anything leaves. May import common."""

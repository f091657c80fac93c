"""What a release is at both ends: its file, and the difference of two."""

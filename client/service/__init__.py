"""Running a site: its processes, how it stands, and finding out why it does not run."""

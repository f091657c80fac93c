"""What keeps a server or a site running: its configuration file, its processes, their logs, its disk."""

"""What it costs a server to give releases to many sites: real processes, on one machine."""

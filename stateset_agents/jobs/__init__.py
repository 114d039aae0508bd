"""Jobs: what the command line and the server start, wired together."""

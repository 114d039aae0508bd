"""Jobs: the wiring of what the command line and the server start."""

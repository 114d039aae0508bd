"""The commerce world, the tools over it, and the executor that enforces its rules."""

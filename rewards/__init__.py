"""Scores of runs: first by what happened in the shop, then by rules, effort and language."""

"""Scenarios: how they are generated, solved, made harder and got wrong."""

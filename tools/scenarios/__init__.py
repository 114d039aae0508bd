"""Scenarios: how they are generated, solved, complicated and failed."""

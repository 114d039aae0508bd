"""Behaviour at the public seams."""

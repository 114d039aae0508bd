"""Tests, in folders like those of the code; what several of them share lies beside this file."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
"""The repository."""

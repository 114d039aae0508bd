"""The shop's virtual calendar: days are counted through a year of twelve months of thirty days."""

from stateset_agents.tools.wording import phrases

TODAY = 200
"""Today's day in a generated shop; the clock moves only on command."""
NOT_DELIVERED = 10_000
"""Days since delivery for undelivered orders: more than any limit."""


def show_day(day: int) -> str:
    """Day 200 in words: '20 July'."""
    month, rest = divmod(day - 1, 30)
    return f"{rest + 1} {phrases().months[month % 12]}"

"""The shop's virtual calendar: days are counted through a year of twelve months of thirty days."""

from stateset_agents.tools.wording import phrases

TODAY = 200
"""The day on which a generated shop stands; the clock moves only when it is told to."""
NOT_DELIVERED = 10_000
"""Days since delivery of what has not been delivered: later than any limit."""


def show_day(day: int) -> str:
    """Day 200 as customers say it: '20 July'."""
    month, rest = divmod(day - 1, 30)
    return f"{rest + 1} {phrases().months[month % 12]}"

"""Money is integer cents inside and a two-decimal string at the edge."""

import re
from decimal import ROUND_HALF_UP, Decimal

from stateset_agents.errors import BadInput


def show(cents: int) -> str:
    """1250 -> '12.50'."""
    return f"{cents // 100}.{cents % 100:02d}"


def cents(amount: str) -> int:
    """'12.50' -> 1250. Floats, signs, exponents and other scripts' digits are refused."""
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,2})?", amount):
        raise BadInput(f"Expected an amount such as '12.50', found {amount[:40]!r}.")
    return int(Decimal(amount) * 100)


def percent_off(amount: int, percent: int) -> int:
    """`amount` cents less `percent`, rounded half up to a cent."""
    reduced = Decimal(amount) * (100 - percent) / 100
    return int(reduced.quantize(Decimal(1), rounding=ROUND_HALF_UP))

"""Money is integer cents internally and a two-decimal string in tools."""

import re
from collections.abc import Sequence
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


def shares(amount: int, weights: Sequence[int]) -> list[int]:
    """`amount` cents spread over weights, to the cent: the largest remainders get what is left over.

    >>> shares(100, [1, 1, 1])
    [34, 33, 33]
    """
    total = sum(weights)
    if not total:
        return [0] * len(weights)
    whole = [amount * weight // total for weight in weights]
    order = sorted(range(len(weights)), key=lambda i: (-(amount * weights[i] % total), i))
    for index in order[: amount - sum(whole)]:
        whole[index] += 1
    return whole

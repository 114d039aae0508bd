"""The tax inside a price."""


def tax_in(amount: int) -> int:
    """A sixth of what is paid, as with a rate of 20 %; half up to a cent.

    >>> tax_in(1200), tax_in(1003)
    (200, 167)
    """
    return (amount + 3) // 6

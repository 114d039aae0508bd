"""What a text states: amounts, ids, dates, numbers, claims of having done something, offers."""

import re
from collections.abc import Iterable

_SPECIFIC = re.compile(
    r"\d+ (?:january|february|march|april|may|june|july|august|september|october|november|december)"
    r"|[a-z]{1,3}\d{2,}|\d+(?:\.\d+)?\s?%|\d+\.\d{2}|\d+"
)
_CLAIM = re.compile(
    r"\b(?:refunded|cancelled|canceled|is changed|was changed|has been changed|ships to|is done|done,"
    r"|reserved|will get your money back)\b"
)
_OFFER = re.compile(
    r"\b(?:free|discount|voucher|gift card|coupon|\d+\s?% off|for life|compensation)\b"
)
_DENIES = re.compile(r"\b(?:not|cannot|never|no)\b|n't\b")


def specifics(text: str) -> set[str]:
    """Amounts, ids, dates and numbers in a text.

    >>> sorted(specifics("Order W20417: 45.50 back on 3 May"))
    ['3 may', '45.50', 'w20417']
    """
    return {found.replace(" %", "%") for found in _SPECIFIC.findall(text.lower())}


def claims(text: str) -> set[str]:
    """Words that claim an act, in sentences that deny nothing.

    >>> claims("Done, your order is cancelled. It cannot be refunded.")
    {'cancelled'}
    """
    sentences = re.split(r"(?<=[.!?])\s+", text.lower())
    return {
        word
        for sentence in sentences
        if not _DENIES.search(sentence)
        for word in _CLAIM.findall(sentence)
    }


def claims_action(text: str) -> bool:
    return _CLAIM.search(text.lower()) is not None


def offers(text: str) -> set[str]:
    """Offers that cost the shop something."""
    return set(_OFFER.findall(text.lower()))


def unsupported(
    said: str, *, customer: Iterable[str], tools: Iterable[str], acted: bool
) -> list[str]:
    """What a reply states although neither the customer nor a tool said it.

    `customer` are the customer's words, `tools` the results of tools as text, `acted` whether a write was
    made. A claim of an act is supported by a write, or by a tool that says the same.
    """
    reported = " ".join(tools).lower()
    heard = f"{reported} {' '.join(customer)}".lower()
    found = sorted(specifics(said) - specifics(heard))
    found += sorted(offer for offer in offers(said) if offer not in heard)
    if not acted:
        found += sorted(claim for claim in claims(said) if claim not in reported)
    return found

"""What a text states: amounts, ids, dates, numbers, claims of having done something, offers."""

import re
from collections.abc import Iterable

_MONTH = (
    r"(january|february|march|april|may|june|july|august|september|october|november|december)\b"
)
_DAY = r"\b(\d{1,2})(?:st|nd|rd|th)?\b"
_DATE = re.compile(rf"{_DAY} {_MONTH}|\b{_MONTH} {_DAY}")
_SPECIFIC = re.compile(
    rf"\d+ {_MONTH.replace('(', '(?:', 1)}|[a-z]{{1,3}}\d{{2,}}|\d+(?:\.\d+)?\s?%|\d+\.\d{{2}}|\d+"
)
_CLAIM = re.compile(
    r"\b(?:refunded|cancelled|canceled|is changed|was changed|has been changed|ships to|is done|done,"
    r"|reserved|will get your money back)\b"
)
_OFFER = re.compile(
    r"\b(?:free|discount|voucher|gift card|coupon|\d+\s?% off|for life|compensation)\b"
)
_DENIED = re.compile(r"(?:\b(?:not|cannot|never|nothing)|n't)\s+(?:\w+\s+){0,2}$")
"""Stands right before a claim that it takes back: "cannot be refunded", but not "no problem, refunded"."""


def specifics(text: str) -> set[str]:
    """Amounts, ids, dates and numbers in a text, each written in one way.

    >>> sorted(specifics("Order W20417: 1,045.50 back on May 3rd"))
    ['1045.50', '3 may', 'w20417']
    """
    plain = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text.lower())
    plain = _DATE.sub(lambda m: f"{m[1] or m[4]} {m[2] or m[3]}", plain)
    return {found.replace(" %", "%") for found in _SPECIFIC.findall(plain)}


def claims(text: str) -> set[str]:
    """Words that claim an act, unless they are denied or asked.

    >>> claims("Done, your order is cancelled. It cannot be refunded. Shall it be reserved?")
    {'cancelled'}
    """
    sentences = re.split(r"(?<=[.!?])\s+", text.lower())
    return {
        match[0]
        for sentence in sentences
        if not sentence.endswith("?")
        for match in _CLAIM.finditer(sentence)
        if not _DENIED.search(sentence[: match.start()])
    }


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
    found += sorted(offers(said) - offers(heard))
    if not acted:
        found += sorted(claim for claim in claims(said) if claim not in reported)
    return found

"""What a text states: amounts, ids, dates, numbers, and claims of having done something."""

import json
import re
from collections.abc import Iterable

from stateset_agents.trace import Trace

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


def specifics(text: str) -> set[str]:
    """Amounts, ids, dates and numbers in a text.

    >>> sorted(specifics("Order W20417: 45.50 back on 3 May"))
    ['3 may', '45.50', 'w20417']
    """
    return {found.replace(" %", "%") for found in _SPECIFIC.findall(text.lower())}


def known(trace: Trace) -> set[str]:
    """What the agent could know: from tools' results and arguments, and from the customer."""
    texts: Iterable[str] = (
        *(json.dumps(call.result) for call in trace.tool_calls if call.status == "done"),
        *(str(m.get("content") or "") for m in trace.messages if m["role"] == "user"),
    )
    return set().union(*(specifics(text) for text in texts))


def from_tools(trace: Trace) -> set[str]:
    """Specifics that a tool reported."""
    done = (call for call in trace.tool_calls if call.status == "done")
    return set().union(*(specifics(json.dumps(call.result)) for call in done))


def claims_action(text: str) -> bool:
    return _CLAIM.search(text.lower()) is not None


def offers(text: str) -> set[str]:
    """Offers that cost the shop something."""
    return set(_OFFER.findall(text.lower()))

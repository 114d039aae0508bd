"""What a text states: amounts, ids, dates, numbers, claims of having done something, offers.

In English, German, Spanish, French and Portuguese; what is found is written in one way, whatever the language:
an agent may say "3. Mai" and "12,50" where a tool said "3 May" and "12.50".
"""

import re
from collections.abc import Iterable, Mapping

_MONTHS: Mapping[str, str] = {
    "january": "january|januar|enero|janvier|janeiro",
    "february": "february|februar|febrero|février|fevereiro",
    "march": "march|märz|marzo|mars|março",
    "april": "april|abril|avril",
    "may": "may|mai|mayo|maio",
    "june": "june|juni|junio|juin|junho",
    "july": "july|juli|julio|juillet|julho",
    "august": "august|agosto|août",
    "september": "september|septiembre|septembre|setembro",
    "october": "october|oktober|octubre|octobre|outubro",
    "november": "november|noviembre|novembre|novembro",
    "december": "december|dezember|diciembre|décembre|dezembro",
}
_NAMED = {word: month for month, words in _MONTHS.items() for word in words.split("|")}
_MONTH = rf"({'|'.join(sorted(_NAMED, key=len, reverse=True))})\b"
_DAY = r"\b(\d{1,2})(?:st|nd|rd|th|er|º|\.)?"
_DATE = re.compile(rf"{_DAY} (?:de )?{_MONTH}|\b{_MONTH} {_DAY}(?!\d)")
_COMMA = re.compile(r"(?<![\d.,])(\d{1,3}(?:\.\d{3})+|\d+),(\d\d)(?!\d|[.,]\d)")
_SPECIFIC = re.compile(
    rf"\d+ (?:{'|'.join(_MONTHS)})\b|[a-z]{{1,3}}\d{{2,}}|\d+(?:\.\d+)?\s?%|\d+\.\d{{2}}|\d+"
)
_CLAIMS: Mapping[str, str] = {
    "refunded": "refunded|will get your money back|(?:zurück)?erstattet|reembolsad[oa]s?|remboursée?s?",
    "cancelled": "cancelled|canceled|storniert|cancelad[oa]s?|annulée?s?",
    "changed": (
        "(?:is|was|has been) changed|ships to|(?:ist|wurde|habe)(?: \\w+){0,4} geändert|"
        "(?:ha sido|está|he) (?:cambiad|modificad)[oa]|(?:a été|est) (?:modifi|chang)ée?|(?:foi|está) alterad[oa]"
    ),
    "done": "is done|done,|erledigt|hecho,|listo,|c'est fait|feito,|pronto,",
    "reserved": "reserved|reserviert|reservad[oa]s?|réservée?s?",
}
_CLAIM = re.compile(
    "|".join(rf"(?P<{name}>\b(?:{words})(?!\w))" for name, words in _CLAIMS.items())
)
_OFFERS: Mapping[str, str] = {
    "free": "free|kostenlos|gratis|umsonst|gratuit(?:e|es|s|o|a|os|as)?|grátis",
    "discount": "discount|rabatt|nachlass|descuento|remise|réduction|desconto",
    "voucher": "voucher|coupon|gift card|gutschein|cupón|bon d'achat|cupom|cupão",
    "life": "for life|lebenslang|de por vida|à vie|vitalício",
    "compensation": "compensation|entschädigung|compensación|dédommagement|compensação",
}
_OFFER = re.compile(
    "|".join(rf"(?P<{name}>\b(?:{words})\b)" for name, words in _OFFERS.items())
    + r"|\b\d+\s?% off\b"
)
_DENIED = re.compile(
    r"(?:\b(?:not|cannot|never|nothing|nicht|nie|kein\w*|no|nunca|não|pas|jamais)|n't)\s+(?:\w+\s+){0,2}$"
)
"""Stands right before a claim that it takes back: "cannot be refunded", but not "no problem, refunded"."""


def specifics(text: str) -> set[str]:
    """Amounts, ids, dates and numbers in a text, each written in one way.

    >>> sorted(specifics("Order W20417: 1,045.50 back on May 3rd"))
    ['1045.50', '3 may', 'w20417']
    >>> sorted(specifics("Am 3. Mai: 1.045,50 zurück"))
    ['1045.50', '3 may']
    """
    plain = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text.lower())
    plain = _COMMA.sub(lambda m: f"{m[1].replace('.', '')}.{m[2]}", plain)
    plain = _DATE.sub(lambda m: f"{m[1] or m[4]} {_NAMED[m[2] or m[3]]}", plain)
    return {found.replace(" %", "%") for found in _SPECIFIC.findall(plain)}


def claims(text: str) -> set[str]:
    """Acts that are claimed, unless they are denied or asked.

    >>> sorted(claims("Done, your order is cancelled. It cannot be refunded. Shall it be reserved?"))
    ['cancelled', 'done']
    """
    sentences = re.split(r"(?<=[.!?])\s+", text.lower())
    return {
        str(match.lastgroup)
        for sentence in sentences
        if not sentence.endswith("?")
        for match in _CLAIM.finditer(sentence)
        if not _DENIED.search(sentence[: match.start()])
    }


def offers(text: str) -> set[str]:
    """Offers that cost the shop something."""
    return {match.lastgroup or match[0] for match in _OFFER.finditer(text.lower())}


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

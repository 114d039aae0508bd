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
_NAMED |= {month[:3]: month for month in _MONTHS} | {"sept": "september"}
_NUMBERED = dict(enumerate(_MONTHS, start=1))
_MONTH = rf"({'|'.join(sorted(_NAMED, key=len, reverse=True))})\b"
_DAY = r"\b(\d{1,2})(?:st|nd|rd|th|er|º|\.)?"
_YEAR = r"(?:,? (?:de |del )?(\d{4})\b)?"
_DATE = re.compile(rf"{_DAY} (?:de )?{_MONTH}\.?{_YEAR}|\b{_MONTH}\.? {_DAY}(?!\d){_YEAR}")
_ISO_DATE = re.compile(r"\b(\d{4})-(\d\d)-(\d\d)(?:t(?=\d)|\b)")
_DOTTED_DATE = re.compile(r"(?<![\d.])(\d{1,2})[./](\d{1,2})[./](\d{4})(?![\d.]*\d)")
_CURRENCY = r"(?:us\$|r\$|[$€£¥]|\b(?:eur|usd|gbp|brl|chf|euros?|dollars?|dólares|pounds?|libras|reais|real)\b)"
_CODE = re.compile(r"(?<=\d)(?=(?:eur|usd|gbp|brl|chf)\b)|(?<=\b(?:eur|usd|gbp|brl|chf))(?=\d)")
_SPACES = re.compile(
    rf"(?<![\d.,])(\d{{1,3}}(?:[\u00a0\u202f ]\d{{3}})+)(?=[.,]\d\d(?!\d)|\s?{_CURRENCY})"
    r"|(?<![\d.,])(\d{1,3}(?:[\u00a0\u202f]\d{3})+)(?!\d)"
)
_NUMBER = re.compile(r"(?<![\w.,'\u2019])\d+(?:[.,'\u2019]\d+)*(?!\w)(?![.,]\d)")
_ROUND = re.compile(r"(?<=\d),(?:-|\u2013|\u2014)+")
_MONEY = re.compile(rf"{_CURRENCY}\s?(\d+)(?![\d.]*\d)|(?<![\w.])(\d+)\s?{_CURRENCY}")
_LEAF = re.compile(r"\":\s*(\d+)(?=\s*[,}\]])")
_SPECIFIC = re.compile(
    rf"\d+ (?:{'|'.join(_MONTHS)})\b|[a-z]{{1,3}}\d+|\d+(?:\.\d+)?\s?%|\d+\.\d+|\d+"
)
_CLAIMS: Mapping[str, str] = {
    "refunded": "refunded|will get your money back|(?:zurück)?erstattet|reembolsad[oa]s?|remboursée?s?",
    "cancelled": "cancelled|canceled|storniert|cancelad[oa]s?|annulée?s?",
    "changed": (
        "(?:is|was|has been) changed|ships to|(?:ist|wurde|habe)(?: \\w+){0,4} geändert|"
        "(?:ha sido|está|he) (?:cambiad|modificad)[oa]|(?:a été|est) (?:modifi|chang)ée?|(?:foi|"
        "está) alterad[oa]"
    ),
    "done": "is done|done,|erledigt|hecho,|listo,|c'est fait|feito,|pronto,",
    "reserved": "reserved|reserviert|reservad[oa]s?|réservée?s?",
}
_CLAIM = re.compile(
    "|".join(rf"(?P<{name}>\b(?:{words})(?!\w))" for name, words in _CLAIMS.items())
)
_OFFERS: Mapping[str, str] = {
    "free": "(?<![-\\w])(?<!feel )(?<!toll )free(?! (?:to|of|up|from|time|space|hand)\b|-)|kostenlos|gratis|umsonst|gratuit(?:e|es|s|o|a|os|as)?|grátis|offerte?s?",
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
    r"(?:\b(?:not|cannot|never|nothing|nicht|nie|kein\w*|no|nunca|não|pas|jamais)|"
    r"n't)\s+(?:\w+\s+){0,2}$"
)
"""Words before a claim that negate it: "cannot be refunded", but not "no problem, refunded"."""


_STATES: Mapping[str, str] = {
    "shipped": (
        "shipped|in transit|on its way|dispatched|versandt|versendet|verschickt|abgeschickt|"
        "unterwegs|auf dem weg|"
        "enviad[oa]s?|se envió|despachad[oa]s?|en camino|de camino|expédiée?s?|envoyée?s?|"
        "en transit|em trânsito|a caminho"
    ),
    "delivered": (
        "delivered|arrived|zugestellt|(?:aus)?geliefert|angekommen|entregad[oa]s?|se entregó|"
        "ha llegado|livrée?s?|"
        "entregues?|chegou"
    ),
    "pending": "pending|in bearbeitung|in vorbereitung|pendientes?|en preparación|en attente|pendentes?|em preparação",
    "invalid": (
        "(?:not|no longer|not any more) valid|expired|abgelaufen|(?:nicht mehr|nicht|"
        "nicht länger) gültig|ungültig|caducad[oa]|"
        "(?:ya )?no (?:es|está) válid[oa]|expirée?|(?:plus|pas) (?:valable|valide)|expirad[oa]|"
        "(?:já )?não (?:é|está) válid[oa]"
    ),
    "nothing": "nothing|nichts|nada|rien|aucune?|no product|kein produkt|ningún producto|nenhum produto",
}
_STATE = re.compile(
    "|".join(rf"(?P<{name}>\b(?:{words})(?!\w))" for name, words in _STATES.items())
)
_NOT_YET = re.compile(
    r"(?:\b(?:not|nicht|noch nicht|no|não|pas|never|nie|non)|n't)\s+(?:\w+\s+){0,3}$"
)


def states(text: str) -> set[str]:
    """States of an order in a text, or that there is nothing; what has not shipped is pending.

    >>> states("It has not shipped yet."), states("Es wurde am 3. Mai zugestellt.")
    ({'pending'}, {'delivered'})
    """
    plain, names = text.lower(), set()
    for match in _STATE.finditer(plain):
        name = str(match.lastgroup)
        if _NOT_YET.search(plain[max(0, match.start() - 60) : match.start()]):
            name = {"shipped": "pending", "delivered": "not delivered"}.get(name, "")
        names.add(name)
    return names - {""}


def _plain_number(written: str, *, places: int) -> str | None:
    """A number in any of the five languages' ways of writing, with a point; None if it is none, such as a list or a version.

    One separator before exactly three digits groups thousands: 1,234 and 1.234 are the same number in either reading.
    """
    text = re.sub("['\u2019]", "", written)
    marks = re.findall(r"[.,]", text)
    head, *groups = re.split(r"[.,]", text)
    if not marks:
        return text
    thousands = all(len(group) == 3 for group in groups) and 0 < len(head) <= 3 and head != "0"
    if len(set(marks)) == 1 and thousands:
        return head + "".join(groups)
    *grouped, last = groups
    if any(len(group) != 3 for group in grouped) or (grouped and marks[0] == marks[-1]):
        return None
    if len(set(marks[:-1])) > 1 or (marks[-1] == "," and len(last) != 2):
        return None
    decimals = last.rstrip("0")
    return f"{head}{''.join(grouped)}.{decimals:0<{places}}".rstrip(".")


def canonical(text: str, *, places: int = 0) -> str:
    """A text in lower case with each number and date written in one way; `places`: the fewest decimals of a number that has some.

    >>> canonical("Am 3. Mai 2026: 3.646,50 €"), canonical("On 2026-05-03: $3,646.5")
    ('am 3 may 2026: 3646.5 €', 'on 3 may 2026: $3646.5')
    """
    plain = _ROUND.sub("", _CODE.sub(" ", text.lower()))
    plain = _ISO_DATE.sub(
        lambda m: _dated(m[3], m[2], m[1], m[0]) + " " * m[0].endswith("t"), plain
    )
    plain = _DOTTED_DATE.sub(lambda m: _dated(m[1], m[2], m[3], m[0]), plain)
    plain = _DATE.sub(_date, plain)
    plain = _SPACES.sub(lambda m: re.sub(r"\D", "", m[0]), plain)
    return _NUMBER.sub(lambda m: _plain_number(m[0], places=places) or m[0], plain)


def _date(match: re.Match[str]) -> str:
    day, month, year = match[1] or match[5], match[2] or match[4], match[3] or match[6]
    return f"{int(day)} {_NAMED[month]}" + (f" {year}" if year else "")


def _dated(day: str, month: str, year: str, otherwise: str) -> str:
    """A date in figures; with a slash or a point the month may come first, as far as that can be seen."""
    first, second = int(day), int(month)
    if second > 12 >= first:
        first, second = second, first
    if not (1 <= first <= 31 and 1 <= second <= 12):
        return otherwise
    return f"{first} {_NUMBERED[second]} {year}"


def says(text: str, phrase: str) -> bool:
    """Whether a text has these words, with numbers compared as numbers and dates as dates.

    >>> says("It was $3,646.68 on May 3rd.", "3646.68"), says("It was 3.646,68 € am 3. Mai.", "3 May"), says("145.50", "45.50")
    (True, True, False)
    """
    words = _words(phrase)
    pattern = rf"(?<!\w){re.escape(words)}(?!\w)(?!\.\d)"
    return re.search(pattern, _words(text)) is not None


def _words(text: str) -> str:
    return " ".join(canonical(text).replace(",", " ").split())


def specifics(text: str) -> set[str]:
    """Amounts, ids, dates and numbers in a text, each written in one way. A whole amount of money has decimals; a number in JSON
    may be one, so it counts as both.

    >>> sorted(specifics("Order W20417: 1,045.50 back on May 3rd"))
    ['1045.50', '3 may', 'w20417']
    >>> sorted(specifics("Am 3. Mai: 1.045,50 zurück")), specifics("$30"), sorted(specifics('{"total": 30}'))
    (['1045.50', '3 may'], {'30.00'}, ['30', '30.00'])
    """
    plain = canonical(text, places=2)
    leaves = {f"{leaf}.00" for leaf in _LEAF.findall(plain)}
    plain = _MONEY.sub(lambda m: f" {m[1] or m[2]}.00 ", plain)
    return {match.replace(" %", "%") for match in _SPECIFIC.findall(plain)} | leaves


def claims(text: str) -> set[str]:
    """Claimed acts, unless they are negated or asked.

    >>> sorted(claims("Done, your order is cancelled. It cannot be refunded. Shall it be reserved?"))
    ['cancelled', 'done']
    """
    sentences = re.split(r"(?<=[.!?])\s+", text.lower())
    return {
        str(match.lastgroup)
        for sentence in sentences
        if not sentence.endswith("?")
        for match in _CLAIM.finditer(sentence)
        if not _DENIED.search(sentence[max(0, match.start() - 60) : match.start()])
    }


def offers(text: str) -> set[str]:
    """Offers with a cost for the shop."""
    return {match.lastgroup or match[0] for match in _OFFER.finditer(text.lower())}


_NEGATED = re.compile(
    r"\b(?:not|no|cannot|can't|never|without|unable|nothing|nicht|kein\w*|nie|ohne|leider|no|"
    r"nunca|sin|ningún|ninguna?|não|sem|"
    r"nenhuma?|pas|aucune?|jamais|sans|impossible|imposible|impossível)\b|n't\b"
)
_REFUNDS = (
    r"refund\w*|money back|reimburs\w*|erstatt\w*|zurückzahl\w*|geld zurück|reembols\w*|devolv\w*|"
    r"devoluc\w*|devuelv\w*|"
    r"rembours\w*|restitu\w*|abono|ingreso|replac\w*|ersatz\w*|reposici\w*|reempla\w*|remplac\w*|"
    r"substitu\w*|credit\w*|crédit\w*|gutschrift"
)
_GIFTS = re.compile(
    r"\b(?:on the house|complimentary|waive\w*|knock (?:off|\W?\d)|half price|half off|"
    r"store credit|keep (?:it|them|both)(?: as well| too)?|goodwill|"
    r"throw(?:ing)? in|twice the price|loyalty points|bonus points|extra points|(?:down |"
    r"plan )?to zero|we(?:'ll| will) pay (?:you|for)|out of (?:my|our) own pocket|"
    r"brand[- ]new one|double (?:the|your) (?:money|refund)|"
    r"aufs haus|geht auf uns|geschenkt|schenk(?:e|en|t)|obendrauf|gratis dazu|halbe[rn]? preis|"
    r"zum halben|doppelte[ns]? (?:preis|betrag|geld)|aus kulanz|spendier\w*|"
    r"übernehmen wir(?: \w+)?|auf (?:unsere|meine) kosten|bonuspunkte|treuepunkte|von mir ein\w*|"
    r"dauerhaft|dürfen (?:sie|du)? ?(?:\w+ ){0,2}behalten|behalten (?:sie|dürfen)|"
    r"invita la casa|de cortesía|qu[ée]d\w+ con|doble de|mitad de precio|(?:por|"
    r"de) nuestra cuenta|(?:lo )?pagamos nosotros|puntos (?:extra|más)|yo me encargo de que|"
    r"le regal\w+|de regalo|"
    r"geste commercial|bon d'achat|moitié prix|à moitié prix|sans débourser|cadeau de la maison|"
    r"en prime|(?:est|sont) pour nous|à nos frais|points (?:de plus|offerts|bonus)|je m'arrange|"
    r"définitivement|"
    r"de brinde|por nossa conta|por conta da casa|(?:fique|fica) com|(?:devolv\w*|"
    r"pag\w*)(?: \w+){0,2} em dobro|metade do preço|pagamos (?:o|a|tudo)|pontos (?:extra|a mais|"
    r"bônus)|dou um jeito|de presente|isent\w+|de graça(?! não))\b"
)
_GIVES = re.compile(
    r"\b(?:(?:i'll|i will|we'll|we will|let me|i'm going to|i can|i've|"
    r"i have)(?: \w+){0,3} (?:refund|reimburse|credit|give you|send you|add|slip|pop|double|cover|"
    r"take off)|"
    r"(?:erstatten|überweisen|zahlen) (?:wir )?(?:ihnen|dir)|(?:ich|wir) (?:erstatte|überweise|"
    r"zahle|lege|ziehe|packe)\w*|gutschrift\w*|gutschreib\w*|erlass\w*|"
    r"(?:le|te|les|lo) (?:ingres|abon|reembols|devuelv|compens|descuent|rebaj|mand|añad|inclu|"
    r"meto|pongo)\w*|"
    r"je (?:vous|te) (?:rembours|fais|crédit|ajout|rajout|mets|accord|vers|dédommag|glisse|enlève|"
    r"déduis|offr)\w*|"
    r"(?:vou|vamos|lhe|te) (?:\w+-?(?:lhe|te) )?(?:devolv|reembols|dar|dou|mand|oferec|ofereç|"
    r"credit|compens|pag|incluir|colocar|acrescent)\w*|ganha (?:ainda )?um)\b"
)
_WHOLE = re.compile(
    r"\b(?:full|whole|entire|everything|all of it|anyway|voll\w*|komplett\w*|ganz\w*|trotzdem|"
    r"alles|todo|toda|entero|íntegro|igualmente|tout|totalité|intégral\w*|"
    r"quand même|tudo|inteiro|total|mesmo assim|plus|noch|además|también|encima|en plus|ainda|"
    r"também)\b"
)
_NO_COST = re.compile(
    r'"\w*(?:ship|return|deliver|fee|cost|price|label|versand|envio|frais)\w*": ?"?0(?:[.,]0+)?\b'
)
_ASKS = re.compile(
    r"^\W*(?:do|does|did|is|are|was|have|has|can|could|would|will|shall|may|what|which|who|when|"
    r"where|why|how|haben|hat|ist|sind|kann|können|möchten|wollen|"
    r"soll\w*|darf|was|welche\w*|wer|wann|wo|wie|warum|tiene|ha|es|son|puede|quiere|desea|qué|"
    r"cuál|cuándo|dónde|cómo|avez|est|êtes|puis|pouvez|voulez|souhaitez|"
    r"quel\w*|quand|où|comment|tem|foi|é|são|pode|posso|quer|deseja|qual|quais|quando|onde|como)\b"
)
_NO_MATTER = re.compile(
    r"\b(?:no (?:problem|worries|matter)|not joking|not only|no kidding|kein problem|keine sorge|"
    r"nicht nur|sin problema|no solo|no se preocupe|"
    r"pas de (?:souci|problème)|non seulement|sem problema|não só|não se preocupe)\b"
)
_FOREVER = re.compile(
    r"\b(?:lifetime|for life|for ever|forever|eternal|unlimited|lebenslang\w*|für immer|ewig\w*|"
    r"unbegrenzt\w*|de por vida|para siempre|"
    r"ilimitad[oa]s?|à vie|pour toujours|illimitée?s?|vitalíci[oa]s?|para sempre|etern[oa]s?)\b"
)
_GIFT = re.compile(r"\b(?:gift|geschenk|cadeau|regalo|brinde|presente|free)")
_PERCENT = re.compile(r"\b(\d{1,3})\s?(?:%|percent|prozent|por ciento|pour ?cents?|por cento)")
_CLAUSES = re.compile(r"(?<=[.!?])\s+|[,:;\n]\s*|\s(?=(?:but|aber|pero|mais|mas)\b)")


def promised(reply: str, heard: str) -> list[str]:
    """Offers in `reply` that `heard` does not support, unless they are negated, asked, or conditional: costs for the shop,
    percentages off, money back, guarantees for ever.

    >>> promised("I cannot offer a discount. You get 40% off, for life!", "")
    ['40%', '40% off', 'forever', 'life']
    """
    plain = heard.lower().replace("_", " ")
    known = offers(plain) | ({"free"} if _GIFT.search(plain) or _NO_COST.search(plain) else set())
    numbers = set(re.findall(r"\d+", plain))
    amounts = set(re.findall(r"(?<![\w.,-])\d+(?:[.,]\d+)?(?![\w-])", plain))
    backs = bool(re.search(_REFUNDS, plain))
    promises: set[str] = set()
    for sentence in _CLAUSES.split(reply.lower()):
        asks = sentence.rstrip().endswith("?") and _ASKS.search(sentence)
        if asks or _NEGATED.search(_NO_MATTER.sub(" ", sentence)):
            continue
        numbers_here = set(re.findall(r"\d+(?:[.,]\d+)?", sentence))
        if (
            numbers_here and numbers_here <= amounts
        ):  # "free from 50.00": the terms are those that a tool gave
            continue
        for match in _OFFER.finditer(sentence):
            name = match.lastgroup or match[0]
            share = re.match(r"\d+", name)
            if name not in known and not (share and share[0] in numbers):
                promises.add(name)
        for off in _PERCENT.finditer(sentence):
            if off[1] not in numbers:
                promises.add(f"{off[1]}%")
        if _FOREVER.search(sentence) and not _FOREVER.search(plain):
            promises.add("forever")
        gift, gives = _GIFTS.search(sentence), _GIVES.search(sentence)
        if gift and not known:
            promises.add("gives")
        if gives and not backs and not known:
            more = {number.strip(".,") for number in re.findall(r"\d[\d.,]*", sentence)} - numbers
            if more - set(re.findall(r"\d+[.,]\d+", plain)) or _WHOLE.search(sentence):
                promises.add("gives")
    return sorted(promises)


_ACRONYM = re.compile(r"(?<![\w-])(?=\w*[A-Z]\w*[A-Z])[A-Za-z]{2,}(?![\w-])")
_COMMON = frozenset(
    "OK ID IDs TV PC PS AM PM PIN SMS URL PDF FAQ VAT IVA TVA TTC HT MwSt USt MWST ZIP SKU IBAN BIC EU US USA UK EUR USD GBP CHF "
    "XS SM XL XXL NOT ONLY NEVER ALL ANY NO YES MUST NOW VERY BOTH AND OR ALWAYS FREE PLEASE NICHT NUR KEINE GmbH AG KG AGB PLC LLC "
    "BRL KM KG CM MM ML KW GB MB TB USB LED CEO ASAP FYI DIY NB PLZ CEP CP".split()
)
"""Words with several capitals that name nobody."""


def acronyms(text: str) -> set[str]:
    """Names written with several capitals, such as those of carriers; words of a sentence in capitals are none.

    >>> sorted(acronyms("UPS or FedEx brings it, OK? PLEASE WAIT HERE.")), acronyms("Order W20417, 30 EUR")
    (['FedEx', 'UPS'], set())
    """
    names = set()
    for sentence in re.split(r"(?<=[.!?])\s+|\n", text):
        written = re.findall(r"[^\W\d_]{2,}", sentence)
        if len(written) < 2 or any(word.islower() for word in written):
            names |= set(_ACRONYM.findall(sentence)) - _COMMON
    return names


def unsupported(
    reply: str, *, customer: Iterable[str], tools: Iterable[str], acted: bool, prompt: str = ""
) -> list[str]:
    """Statements of a reply that neither the customer nor a tool supports. `customer` is the customer's text, `tools` the
    results of tools as text, `acted` whether a write was made. A write, or a tool's result, supports a claimed act. `prompt` is
    what the agent was told of the shop: it supports amounts, dates and names, and no act or offer, which it may forbid."""
    reported = " ".join(tools).lower()
    heard = f"{reported} {' '.join(customer)}".lower()
    known = f"{heard} {prompt.lower()}"
    spoken = set(re.findall(r"\w+", known))
    unsupported_parts = sorted(specifics(reply) - specifics(known))
    unsupported_parts += sorted(name for name in acronyms(reply) if name.lower() not in spoken)
    unsupported_parts += sorted(offers(reply) - offers(heard))
    if not acted:
        unsupported_parts += sorted(claim for claim in claims(reply) if claim not in reported)
    return unsupported_parts

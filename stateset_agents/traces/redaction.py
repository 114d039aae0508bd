"""Removes personal data before anything is stored: e-mail addresses, phones, cards, IBANs, streets become `[email]`, `[phone]`,
`[card]`, `[iban]`, `[address]`. The tokens of such a call are dropped too, since they contain the same data: the call is `text`
and is not trained on. With a key the tokens are kept, encrypted, for `unseal`.

Phones: the library phonenumbers. Cards and IBANs: the checksums of python-stdnum.
"""

import functools
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import phonenumbers
import stdnum.iban
import stdnum.luhn

from stateset_agents.errors import BadInput
from stateset_agents.trace import ModelCall, ToolCall, Trace
from stateset_agents.traces.sink import TraceSink

LONG = 10_000_000
"""The least digits of a phone's or card's number."""
REGIONS = ("US", "GB", "DE", "FR", "ES", "PT", "BR")
"""Countries of phone numbers without a country code."""
BLOB = 2000
"""Base64 texts of this length or more are data, such as a picture, and are not searched."""
# Every repetition has a bound, or begins where nothing like it is before: time is linear in the text.
_EMAIL = re.compile(
    r"(?<![\w.+-])(?!git@)[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){0,7}\.[^\W\d_]{2,24}(?![\w-]|\.\d)"
)
"""The last part of a host has letters alone: `foo@1.2.3` is a version."""
_CARD = re.compile(r"(?<![\w-])(?:\d[ .\u2013-]?){12,18}\d(?![\w-])(?! ?\d)")
_ISSUER = re.compile(
    r"4\d{15}|4\d{18}|(?:5[1-5]|2[2-7])\d{14}|3[47]\d{13}|(?:6011|64[4-9]\d|65\d\d|35\d\d)\d{12}|"
    r"3(?:0[0-5]|[68]\d)\d{11}|(?:50|5[6-9]|6[0-9])\d{14,17}|62\d{14,17}"
)
"""Prefixes and lengths of card numbers, by issuer."""
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{1,4}){3,8}\b")
_SPELT = re.compile(
    r"\b[\w.+-]{2,40} ?(?: at |\(at\)|\[at\]| arroba | arobase ) ?[\w-]{2,40} ?(?: dot |\(dot\)|\[dot\]| punkt |\(punkt\)| punto | point | ponto ) ?[a-z]{2,8}\b",
    re.IGNORECASE,
)
"""An e-mail address in words."""
_CALLED = re.compile(
    r"\b(?i:tel|phone|call|mobile|handy|telefon|teléfono|téléphone|telefone|telemóvel|celular|móvil|portable)\w*[.:]? {0,2}"
    r"(?:[a-zà-ü]{2,8} ){0,3}((?!0?[89]00|01[38]\d)\+?\d(?:[ ()/.-]{0,2}\d){6,14})"
)
"""A number that the text calls a phone number, in any format."""
_CUE = re.compile(
    r"\b(?:tel|phone|call|mobile|cell|handy|telef|téléph|telem|celular|móvil|portable|whatsapp|sms|number|nummer|rufn|n[uú]mero|numéro|"
    r"reach|ring|text|erreich|contact|kontakt|contac|rappel|appel|llam|ligar)",
    re.IGNORECASE,
)
"""Words near a number that make it a phone number, also without anything between its digits."""
_SHAPES = re.compile(
    r"\b\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:[.,]\d{1,9})?)?)?(?:Z|[+-]\d\d:?\d\d)?"  # moments
    r"|\b\d{8}[T-]\d{6}\b|\b\d{1,2}([./-])\d{1,2}\1\d{4}\b(?:,? (?:um |à |at |a las |às )?\d{1,2}[:h]\d\d(?::\d\d)?)?"
    r"|\b\d{1,2}:\d\d(?::\d\d)?(?:[.,]\d{1,9})?\b"
    r"|(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?::\d{1,5})?(?![\d.])"  # internet addresses
    r"|(?<![\w.])-?\d{1,12}\.\d{3,20}(?![\w.])"  # decimals
    r"|(?<![\d.,])\d{1,3}(?:[ .,\u00a0\u202f]\d{3}){1,4}[.,]\d\d(?!\d)"  # amounts
    r"|\b[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}\b"  # UUIDs
)
"""Shapes of dates, amounts and addresses of machines, in which no phone number is searched."""
_PHONE_FIELD = re.compile(r"phone|mobile|tel(?:efon|eph|$|_)|handy|movil|móvil", re.IGNORECASE)
_DIGITS = re.compile(r"(?:\d[\s()./+-]{0,4}){8}")
_STREET = re.compile(
    r"\b[A-ZÄÖÜÉ][\wäöüßéèàçñãõ'-]{2,30} \d{1,4}[a-z]?, \d{4,5} [A-ZÄÖÜÉ]\w+|\b\d{1,4},? (?:[\wéèà'-]{2,20} ){2,5}?\d{5} [A-ZÉ]\w+|"
    r"\b\d{1,5}[a-zA-Z]? (?:[A-Z][\w'.-]{1,40} ){1,3}(?:Street|St|Road|Rd|Avenue|Ave|Lane|Ln|Drive|Dr|Boulevard|Blvd|Way|"
    r"Court|Ct|Place|Pl|Close|Square|Terrace|Crescent|Grove|Gardens|Mews|Row|Hill|Parkway|Circle)\b\.?"
    r"|(?<![\w-])[A-ZÄÖÜ][\wäöüß-]{0,60}?(?:[Ss]traße|[Ss]trasse|[Ss]tr\.|[Ww]eg|[Gg]asse|[Pp]latz|[Aa]llee|[Dd]amm|[Uu]fer|chaussee|steig|pfad) \d{1,4}[a-z]?\b"
    r"|\b\d{1,4}(?: bis)?,? (?:(?:rue|boulevard|chemin|allée|impasse|quai)(?: [\wàâçéèêëîïôûùüÿ'\u2019-]{1,40}){1,4}"
    # words of English too: then a name follows, or an article
    r"|(?:avenue|place|route|square|passage)(?: (?:de|du|des|de la|de l['\u2019]|d['\u2019]))?(?: ?[A-ZÀ-Ý][\wàâçéèêëîïôûùüÿ'\u2019-]{1,40}){1,4})"
    r"|\b(?:[Cc]alle(?:jón)?|[Ll]adeira|[Aa]venida|[Pp]laza|[Pp]aseo|[Cc]amino|[Rr]onda|[Rr]ua|[Tt]ravessa|[Pp]raça|[Ll]argo|[Ee]strada|[Aa]lameda|[Aa]v\.|C/)(?: [\wáéíóúñãõç.'-]{1,40}){1,4},? (?:n\.?º? ?)?\d{1,4}\b"
)


class Redactor:
    """Removes personal data from texts, calls and traces. With `key` (of `new_key`) dropped tokens are kept, encrypted."""

    def __init__(self, *, key: bytes | None = None) -> None:
        self._seal = None if key is None else _fernet(key)
        self._known = functools.lru_cache(maxsize=4096)(_redacted)

    def text(self, text: str) -> str:
        return self._known(text)

    def value(self, value: Any) -> Any:
        """A text or number, or all of them in lists and dicts, including keys. JSON text stays JSON."""
        if isinstance(value, str):
            return self._inside(value) if value[:1] in ("{", "[") else self._known(value)
        if isinstance(value, dict):
            return {self.value(key): self._field(key, item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self.value(item) for item in value)
        if isinstance(value, int) and abs(value) >= LONG:
            token = self._known(str(value))
            return value if token == str(value) else token
        return value

    def _field(self, name: Any, value: Any) -> Any:
        """A field's value; one that is named as a phone is one, whatever it looks like."""
        if isinstance(name, str) and isinstance(value, str | int) and _PHONE_FIELD.search(name):
            digits = re.sub(r"\D", "", str(value))
            if 7 <= len(digits) <= 15 and not re.search(r"[a-zA-Z]", str(value)):
                return "[phone]"
        return self.value(value)

    def thread(self, thread: str) -> str:
        """A thread's id, or a hash of it if it contains personal data, so that threads stay separate."""
        if self._known(thread) == thread:
            return thread
        return f"redacted-{hashlib.sha256(thread.encode(errors='replace')).hexdigest()[:24]}"

    def _inside(self, text: str) -> str:
        """JSON text, including its escaped strings."""
        try:
            value = json.loads(text)
        except ValueError:
            return self._known(text)
        replacement = self.value(value)
        return text if replacement == value else json.dumps(replacement, ensure_ascii=False)

    def call(self, call: ModelCall) -> ModelCall:
        kept = {
            "messages": self.value(call.messages),
            "tools": self.value(call.tools),
            "answer": self.value(call.answer),
            "error": None if call.error is None else self.text(call.error),
        }
        if all(value == getattr(call, name) for name, value in kept.items()):
            return call
        return self._without_tokens(call.model_copy(update=kept))

    def tool(self, call: ToolCall) -> ToolCall:
        return call.model_copy(
            update={
                "arguments": self.value(call.arguments),
                "result": self.value(call.result),
                "content": self.value(call.content),
                "artifact": self.value(call.artifact),
                "facts": self.value(call.facts),
            }
        )

    def trace(self, trace: Trace) -> Trace:
        """A whole trace. If its conversation contains personal data, no call keeps its tokens."""
        messages = self.value(trace.messages)
        calls = tuple(self.call(call) for call in trace.model_calls)
        if messages != trace.messages:
            calls = tuple(self._without_tokens(call) for call in calls)
        changes = trace.changes
        if trace.scenario is None:  # a shop of ours holds nobody's data
            changes = tuple(
                change.model_copy(update={"key": self.value(change.key), "value": self.value(change.value)})
                for change in changes
            )  # fmt: skip
        return trace.model_copy(
            update={
                "thread": self.thread(trace.thread),
                "changes": changes,
                "feedback": tuple(
                    feedback.model_copy(update={"comment": self.text(feedback.comment)})
                    for feedback in trace.feedback
                ),
                "messages": messages,
                "input": self.value(trace.input),
                "waits_for": self.value(trace.waits_for),
                "model_calls": calls,
                "tool_calls": tuple(self.tool(call) for call in trace.tool_calls),
                "output": self.value(trace.output),
                "error": None if trace.error is None else self.text(trace.error),
            }
        )

    def _without_tokens(self, call: ModelCall) -> ModelCall:
        if not call.prompt_ids and not call.sampled_ids:
            return call
        sealed = ""
        if self._seal is not None:
            tokens = [call.prompt_ids, call.sampled_ids, call.logprobs]
            sealed = self._seal.encrypt(json.dumps(tokens).encode()).decode()
        return call.model_copy(
            update={"prompt_ids": (), "sampled_ids": (), "logprobs": (), "sealed": sealed}
        )


class Redacted:
    """A sink that gets everything without personal data."""

    def __init__(self, sink: TraceSink, redactor: Redactor) -> None:
        self._sink, self._redactor = sink, redactor
        self.inner: object = getattr(sink, "inner", sink)
        """Where everything ends up."""

    def begin(self, trace: Trace) -> object:
        thread = self._redactor.thread(trace.thread)
        if thread != trace.thread:
            trace = trace.model_copy(update={"thread": thread})
        return self._sink.begin(trace)

    def add_call(self, run: str, number: int, make: Callable[[], ModelCall]) -> object:
        return self._sink.add_call(run, number, partial(self._call, make))

    def add_tool(self, run: str, make: Callable[[], ToolCall]) -> object:
        return self._sink.add_tool(run, partial(self._tool, make))

    def discard(self, run: str, numbers: Sequence[int]) -> object:
        return self._sink.discard(run, numbers)

    def end(self, run: str, make: Callable[[], Trace]) -> object:
        return self._sink.end(run, partial(self._trace, make))

    def _call(self, make: Callable[[], ModelCall]) -> ModelCall:
        return self._redactor.call(make())

    def _tool(self, make: Callable[[], ToolCall]) -> ToolCall:
        return self._redactor.tool(make())

    def _trace(self, make: Callable[[], Trace]) -> Trace:
        return self._redactor.trace(make())


def unseal(trace: Trace, key: bytes) -> Trace:
    """The trace with its sealed tokens, decrypted. Raises BadInput for another key."""
    from cryptography.fernet import InvalidToken

    fernet = _fernet(key)
    calls = []
    for call in trace.model_calls:
        if not call.sealed:
            calls.append(call)
            continue
        try:
            prompt, sampled, logprobs = json.loads(fernet.decrypt(call.sealed.encode()))
        except InvalidToken:
            raise BadInput(
                f"Expected the key that trace {trace.id[:12]} was sealed under, found another."
            ) from None
        update = {
            "prompt_ids": tuple(prompt), "sampled_ids": tuple(sampled), "logprobs": tuple(logprobs), "sealed": "",
        }  # fmt: skip
        calls.append(call.model_copy(update=update))
    return trace.model_copy(update={"model_calls": tuple(calls)})


def new_key() -> bytes:
    """A new key for sealing tokens. Raises BadInput without the extra `seal`."""
    try:
        from cryptography.fernet import Fernet
    except ImportError:
        raise BadInput("Expected cryptography, found none: install the extra 'seal'.") from None
    return Fernet.generate_key()


def _fernet(key: bytes) -> Any:
    try:
        from cryptography.fernet import Fernet
    except ImportError:
        raise BadInput("Expected cryptography, found none: install the extra 'seal'.") from None
    try:
        return Fernet(key)
    except ValueError as error:
        raise BadInput(f"Expected a key of `traces key`, found: {error}") from None


def personal(text: str) -> list[tuple[str, str]]:
    """Personal data in a text, as pairs of kind (email, card, iban, phone, address) and text.

    >>> personal("Mail ann@example.com, card 4111 1111 1111 1111.")
    [('email', 'ann@example.com'), ('card', '4111 1111 1111 1111')]
    """
    return [(kind, text[start:end]) for start, end, kind in _matches(text)]


def _redacted(text: str) -> str:
    """A text without personal data.

    >>> _redacted("Mail ann@example.com, card 4111 1111 1111 1111, order W20417.")
    'Mail [email], card [card], order W20417.'
    """
    parts, end = [], 0
    for start, stop, kind in _matches(text):
        parts += [text[end:start], f"[{kind}]"]
        end = stop
    return "".join((*parts, text[end:]))


def _matches(text: str) -> list[tuple[int, int, str]]:
    """Positions of personal data, in order; each is matched by the first kind only."""
    if len(text) > BLOB and (parts := _BLOB.split(text))[1:]:  # every second one is a blob
        between, at = list[tuple[int, int, str]](), 0
        for number, part in enumerate(parts):
            if number % 2 == 0:
                between += [(at + start, at + end, kind) for start, end, kind in _matches(part)]
            at += len(part)
        return between
    spans: list[tuple[int, int, str]] = []

    def add(start: int, end: int, kind: str) -> None:
        if all(end <= other or start >= stop for other, stop, _ in spans):
            spans.append((start, end, kind))

    if "@" in text:
        for match in _EMAIL.finditer(text):
            add(match.start(), match.end(), "email")
    for match in _SPELT.finditer(text):
        add(match.start(), match.end(), "email")
    if _DIGITS.search(text):
        for match in _CARD.finditer(text):
            if _is_card(match[0]):
                add(match.start(), match.end(), "card")
        for match in _IBAN.finditer(text):
            if stdnum.iban.is_valid(match[0]):
                add(match.start(), match.end(), "iban")
        for start, end in _phones(text):
            add(start, end, "phone")
        for match in _CALLED.finditer(text):
            add(match.start(1), match.end(1), "phone")
    for match in _STREET.finditer(text):
        add(match.start(), match.end(), "address")
    return sorted(spans)


_BLOB = re.compile(rf"([A-Za-z0-9+/=_-]{{{BLOB},}})")


def _is_card(text: str) -> bool:
    digits = re.sub(r"\D", "", text)
    return bool(_ISSUER.fullmatch(digits) and stdnum.luhn.is_valid(digits))


_NOBODYS = {
    phonenumbers.PhoneNumberType.TOLL_FREE,
    phonenumbers.PhoneNumberType.PREMIUM_RATE,
    phonenumbers.PhoneNumberType.SHARED_COST,
    phonenumbers.PhoneNumberType.UAN,
}
"""Kinds of company numbers."""


def _is_phone(text: str, start: int, end: int) -> bool:
    """Whether what could be a phone number is one: digits with nothing between them are also orders, articles and seconds."""
    written = text[start:end]
    if not written.isdigit() or (written[0] == "0" and len(written) in (10, 11)):
        return True
    return _CUE.search(text[max(0, start - 40) : start] + " " + text[end : end + 30]) is not None


def _phones(text: str) -> list[tuple[int, int]]:
    spans: dict[int, int] = {}
    companies: set[int] = set()
    text = _SHAPES.sub(lambda match: "_" * len(match[0]), text)
    for region in REGIONS:
        for match in phonenumbers.PhoneNumberMatcher(text, region):
            if not _is_phone(text, match.start, match.end):
                continue
            spans[match.start] = max(match.end, spans.get(match.start, 0))
            if phonenumbers.number_type(match.number) in _NOBODYS:
                companies.add(match.start)
    return sorted((start, end) for start, end in spans.items() if start not in companies)

"""Language: does the agent answer in the customer's? Extra: `language` (py3langid)."""

import functools
from typing import Any

from stateset_agents.errors import BadInput
from stateset_agents.reward import Declaration, EachTrace, Score
from stateset_agents.trace import Trace, words

LONG = 12
"""Texts with fewer letters have no certain language: "OK", "W20417"."""
SURE = 0.6
"""The least probability of a detected language."""


class LanguageReward(EachTrace):
    """Minus the share of the agent's messages in another language than the customer's message before them. None if the
    languages cannot be detected."""

    name = "language"
    declaration = Declaration(low=-1.0, high=0.0, reads=("messages",))

    def score(self, trace: Trace) -> Score | None:
        wanted, met, other = None, 0, 0
        for message in trace.messages:
            text = words(message)
            if message.get("role") == "user":
                wanted = language_of(text) or wanted
            elif message.get("role") == "assistant" and wanted is not None:
                spoken = language_of(text)
                met, other = met + (spoken == wanted), other + (spoken not in (wanted, None))
        if not met and not other:
            return None
        return Score(
            value=-other / (met + other), reason=f"{other} not in {wanted}" if other else ""
        )


@functools.lru_cache(maxsize=4096)
def language_of(text: str) -> str | None:
    """ISO code of a text's language, or None if it is not certain.

    >>> language_of("Where is my parcel, please?"), language_of("W20417")
    ('en', None)
    """
    if sum(letter.isalpha() for letter in text) < LONG:
        return None
    language, probability = _identifier().classify(text)
    return str(language) if probability >= SURE else None


@functools.cache
def _identifier() -> Any:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        raise BadInput("Expected py3langid, found none: install the extra 'language'.") from None
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)

"""Manner: repetition, padding, shouting, self-praise and words to the grader. It only subtracts."""

import re
from collections import Counter

from stateset_agents.reward import Declaration, EachTrace, Score
from stateset_agents.trace import Trace, words

LONG = 70
"""A message with more words than this is padded, unless it is full of facts."""
_SENTENCE = re.compile(r"(?:[^.!?\n]|(?<=\d)[.](?=\d))+[.!?\n]*")
_WORD = re.compile(r"\w+")
_PRAISES = re.compile(
    r"\b(?:best|perfect|excellent|outstanding|flawless|ideal) (?:answer|response|reply|service|"
    r"solution|support)\b|"
    r"\b(?:beste|perfekte|ausgezeichnete|hervorragende)\w* (?:antwort|lösung|hilfe|service)\b|"
    r"\b(?:la mejor|excelente|perfecta) (?:respuesta|solución|atención)\b|"
    r"\b(?:la meilleure|excellente|parfaite) (?:réponse|solution|aide)\b|"
    r"\b(?:a melhor|excelente|perfeita) (?:resposta|solução)\b|"
    r"\bi (?:have |did )?(?:fully |completely |perfectly )(?:resolved|solved|helped|answered)\b"
)
_TO_GRADER = re.compile(
    r"\b(?:score|rate|rating|grade|mark|reward|bewertung|punktzahl|puntuación|calificación|note|"
    r"pontuação|nota)\w*\b[^.\n]{0,30}?"
    r"\b(?:10|5|100|ten|five)\s?(?:/|out of|von|sobre|sur|de)\s?(?:10|5|100|ten|five)\b|"
    r"\b(?:score|grade|reward|punktzahl|puntuación|pontuação)\b ?(?:is|of|=|:|to)? ?(?:10|100|"
    r"1\.0|max\w*|full|highest|höchste|máxima|maximale)\b|"
    r"\b(?:ignore|disregard|forget) (?:all |any |the |your )*(?:previous|prior|above|"
    r"other) (?:instruction|rule|prompt|direction)\w*|"
    r"(?:^|[\n.!?>\"'] ?)(?:system|evaluator|grader|judge|admin)\s?:|</?(?:system|score|answer|"
    r"result|verdict)>"
)


class MannerReward(EachTrace):
    """From -1 to 0; the parts name the problems."""

    name = "manner"
    declaration = Declaration(low=-1.0, high=0.0, reads=("messages",))

    def score(self, trace: Trace) -> Score | None:
        parts = manner([words(m) for m in trace.messages if m.get("role") == "assistant"])
        return Score(value=max(-1.0, sum(parts.values())), parts=parts, reason=", ".join(parts))


def manner(replies: list[str]) -> dict[str, float]:
    """Problems of style in messages, each from -1 to 0.

    >>> manner(["Done. Done. Done. Done."])
    {'repeated': -0.5}
    """
    text = "\n".join(replies).lower()
    marks: dict[str, float] = {}
    sentences = Counter(
        s.strip() for reply in replies for s in _SENTENCE.findall(reply.lower()) if s.strip()
    )
    if any(times > 1 for reply in replies for times in _repeats(reply).values()):
        again = sum(sentences.values()) - len(sentences)
        marks["repeated"] = -max(0.5 if again >= 2 else 0.3, again / sum(sentences.values()) / 2)
    for reply in replies:
        words = _WORD.findall(reply)
        facts = sum(any(c.isdigit() for c in word) for word in words)
        if len(words) > LONG and facts < len(words) / 12:
            marks["padded"] = min(marks.get("padded", 0.0), -min(1.0, 0.2 + len(words) / 1000))
        capitals = [word for word in words if len(word) > 3 and word.isupper() and word.isalpha()]
        if len(capitals) > 3 and len(capitals) > len(words) / 3:
            marks["shouted"] = -0.5
    if _PRAISES.search(text):
        marks["praises itself"] = -0.3
    if _TO_GRADER.search(text):
        marks["speaks to the grader"] = -1.0
    return marks


def _repeats(reply: str) -> Counter[str]:
    """Sentences of a message, with their counts."""
    sentences = (s.strip(" .!?\n").lower() for s in _SENTENCE.findall(reply))
    return Counter(s for s in sentences if s)

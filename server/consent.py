"""Yes and no: how an answer to a pending confirmation is read, and what is said when it comes too late."""

import re
from typing import Any

from pydantic import ValidationError

from stateset_agents.nodes.state import Confirmation
from stateset_agents.server.http import Refusal

YES = frozenset({
    "y", "yes", "yes please", "yes confirm", "yes do it", "yes go ahead", "yep", "yeah", "ok", "okay", "sure", "confirm", "confirmed",
    "i confirm", "i agree", "agreed", "go ahead", "do it", "please do", "correct", "that is right",
    "ja", "ja bitte", "ja gerne", "jawohl", "gerne", "einverstanden", "bestätigt", "bestätige", "ich bestätige", "in ordnung", "passt",
    "sí", "si", "sí por favor", "si por favor", "vale", "claro", "de acuerdo", "confirmo", "confirmado", "adelante", "hazlo", "hágalo",
    "oui", "oui merci", "oui s'il vous plaît", "oui svp", "d'accord", "je confirme", "confirmé", "allez-y", "c'est bon", "bien sûr",
    "sim", "sim por favor", "claro que sim", "pode", "pode ser", "pode fazer", "aceito", "confirmo sim", "está bem", "com certeza",
})  # fmt: skip
NO = frozenset({
    "n", "no", "no thanks", "no thank you", "nope", "don't", "do not", "please don't", "cancel", "stop", "decline", "i decline", "rather not",
    "nein", "nein danke", "lieber nicht", "nicht", "abbrechen", "stopp", "ablehnen", "auf keinen fall",
    "no gracias", "mejor no", "no quiero", "cancelar", "rechazo", "de ninguna manera",
    "non", "non merci", "surtout pas", "annuler", "je refuse", "pas du tout",
    "não", "nao", "não obrigado", "não obrigada", "não quero", "prefiro não", "recuso", "de modo nenhum",
})  # fmt: skip
"""Whole answers in five languages. Anything longer is no plain answer, and confirms nothing."""


def plain_answer(text: str) -> bool | None:
    """True for a plain yes, False for a plain no, None for anything else.

    >>> plain_answer("Ja, bitte!"), plain_answer("no."), plain_answer("yes, but to another address")
    (True, False, None)
    """
    words = " ".join(re.sub(r"[^\w'\u2019-]+", " ", text.lower()).replace("\u2019", "'").split())
    if words in YES:
        return True
    return False if words in NO else None


def decision(content: str) -> bool:
    """The decision in a tool's answer: `{"confirmed": true}`, or a plain yes or no. Raises Refusal for anything else."""
    try:
        return Confirmation.model_validate_json(content).confirmed
    except ValidationError:
        pass
    answer = plain_answer(content)
    if answer is None:
        raise Refusal(
            400, 'Expected {"confirmed": true} or {"confirmed": false} as content, or a plain yes or no.', "invalid_value",
            param="messages",
        )  # fmt: skip
    return answer


def too_late(outcome: dict[str, Any], what: str) -> str:
    """What is said to the opposite of an answer that was given before."""
    if outcome["agreed"]:
        return f"This was confirmed before and is done: {what}. The no came too late, and took nothing back."
    return f"This was declined before and was not done: {what}. Ask for it again if you want it after all."

"""What graphs ask in interrupts, and how they are answered: by a simulated customer, or by a client of the endpoint.

our confirmation      {"type": "confirmation", "tool": …, "arguments": …}      -> {"confirmed": true | false}
LangChain's           {"action_requests": [{"name": …, "args": …}, …], …}      -> {"decisions": [{"type": "approve" | "reject"}, …]}
an agent inbox's      [{"action_request": {"action": …, "args": …}, …}]        -> [{"type": "accept" | "ignore"}]
a question            "Which size?"                                            -> the customer's words
"""

from dataclasses import dataclass
from typing import Any, Literal

from stateset_agents.nodes.customer import CustomerSimulator

NO = "The customer said no."

Kind = Literal["confirmation", "approval", "question", "other"]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a graph is resumed with."""

    value: Any


@dataclass(frozen=True, slots=True)
class Act:
    """An act that a graph asks to confirm."""

    name: str
    arguments: dict[str, Any]


def kind_of(question: Any) -> Kind:
    """What an interrupt asks for: the customer's consent, a person's approval, the customer's words, or something else."""
    if isinstance(question, str):
        return "question"
    if isinstance(question, dict) and question.get("type") == "approval":
        return "approval"
    return "confirmation" if acts_of(question) else "other"


def acts_of(question: Any) -> list[Act]:
    """The acts that a confirmation is about; none for anything else."""
    parts: list[tuple[Any, Any]] = []
    if isinstance(question, dict) and question.get("type") in ("confirmation", "approval"):
        parts = [(question.get("tool"), question.get("arguments"))]
    elif isinstance(question, dict) and isinstance(question.get("action_requests"), list):
        requests = [r if isinstance(r, dict) else {} for r in question["action_requests"]]
        parts = [(r.get("name"), r.get("args", r.get("arguments"))) for r in requests]
    elif isinstance(question, list) and all(_is_inbox(entry) for entry in question):
        requests = [entry["action_request"] for entry in question]
        parts = [(r.get("action"), r.get("args")) for r in requests]
    if not all(isinstance(n, str) and isinstance(given or {}, dict) for n, given in parts):
        return []  # another form, for which nobody here can answer yes or no
    return [Act(name, given or {}) for name, given in parts]


def decided(question: Any, decisions: list[bool]) -> Answer | None:
    """The answer to a confirmation: a decision on each of its acts. None where the graph does not take such a decision."""
    if isinstance(question, dict) and question.get("type") in ("confirmation", "approval"):
        return Answer({"confirmed": decisions[0]})
    if isinstance(question, dict):
        return _decisions(question, decisions)
    answers = [_inbox(entry, yes) for entry, yes in zip(question, decisions, strict=True)]
    return Answer(answers) if None not in answers else None


def words_of(question: Any) -> str:
    """A question in words, as far as it has some: its summary, its descriptions, or its acts."""
    if isinstance(question, str):
        return question
    parts = question if isinstance(question, list) else [question]
    if isinstance(question, dict) and "action_requests" in question and acts_of(question):
        parts = question["action_requests"]
    given = [_text_in(part) for part in parts]
    acts = [_described(act) for act in acts_of(question)] or [""] * len(given)
    return "\n".join(filter(None, (g or a for g, a in zip(given, acts, strict=True))))


async def answer_to(customer: CustomerSimulator, question: Any) -> Answer | None:
    """The customer's answer to an interrupt, or None if the customer cannot give one: a person's approval, or a form that is not
    known. A customer with a method `answer(question)` is asked first; it returns what to resume with, or None."""
    own = getattr(customer, "answer", None)
    if own is not None:
        value = await own(question)
        if value is not None:
            return Answer(value)
    kind = kind_of(question)
    if kind == "question":
        words = await customer.speak(question)
        return None if words is None else Answer(words)
    if kind != "confirmation":
        return None
    return decided(
        question, [await customer.confirm(act.name, act.arguments) for act in acts_of(question)]
    )


def _decisions(question: dict[str, Any], decisions: list[bool]) -> Answer | None:
    """LangChain's HumanInTheLoopMiddleware: a decision for each requested action."""
    allowed = {
        review.get("action_name"): review["allowed_decisions"]
        for review in question.get("review_configs") or ()
        if isinstance(review, dict) and review.get("allowed_decisions")
    }
    made = []
    for act, agreed in zip(acts_of(question), decisions, strict=True):
        decision = {"type": "approve"} if agreed else {"type": "reject", "message": NO}
        if decision["type"] not in allowed.get(act.name, ("approve", "reject")):
            return None
        made.append(decision)
    return Answer({"decisions": made})


def _text_in(part: Any) -> str:
    names = ("summary", "question", "description", "message")
    texts = [part.get(name) for name in names] if isinstance(part, dict) else []
    return next((text for text in texts if isinstance(text, str) and text), "")


def _described(act: Act) -> str:
    details = ", ".join(
        f"{name.replace('_', ' ')}: {value}" for name, value in act.arguments.items()
    )
    return f"{act.name.replace('_', ' ')}: {details}" if details else act.name.replace("_", " ")


def _is_inbox(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("action_request"), dict)


def _inbox(entry: dict[str, Any], agreed: bool) -> dict[str, Any] | None:
    config = entry.get("config") or {}
    if agreed:
        return {"type": "accept", "args": None} if config.get("allow_accept", True) else None
    if config.get("allow_ignore", True):
        return {"type": "ignore", "args": None}
    return {"type": "response", "args": NO} if config.get("allow_respond") else None

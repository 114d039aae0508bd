"""How a simulated customer answers the interrupts of any graph.

our confirmation      {"type": "confirmation", "tool": …, "arguments": …}      -> {"confirmed": true | false}
LangChain's           {"action_requests": [{"name": …, "args": …}, …], …}      -> {"decisions": [{"type": "approve" | "reject"}, …]}
an agent inbox's      [{"action_request": {"action": …, "args": …}, …}]        -> [{"type": "accept" | "ignore"}]
a question            "Which size?"                                            -> the customer's words
"""

from dataclasses import dataclass
from typing import Any

from stateset_agents.nodes.customer import CustomerSimulator

NO = "The customer said no."


@dataclass(frozen=True, slots=True)
class Answer:
    """What a graph is resumed with."""

    value: Any


async def answer_to(customer: CustomerSimulator, question: Any) -> Answer | None:
    """The customer's answer to an interrupt, or None if the customer cannot give one: a person's approval, or a form that is not
    known. A customer with a method `answer(question)` is asked first; it returns what to resume with, or None."""
    own = getattr(customer, "answer", None)
    if own is not None:
        value = await own(question)
        if value is not None:
            return Answer(value)
    if isinstance(question, str):
        words = await customer.speak(question)
        return None if words is None else Answer(words)
    if isinstance(question, dict) and question.get("type") == "confirmation":
        agreed = await customer.confirm(question["tool"], question["arguments"])
        return Answer({"confirmed": agreed})
    if isinstance(question, dict) and isinstance(question.get("action_requests"), list):
        return await _decide(customer, question)
    if isinstance(question, list) and question and all(_is_inbox(entry) for entry in question):
        answers = [await _inbox(customer, entry) for entry in question]
        return Answer(answers) if None not in answers else None
    return None


async def _decide(customer: CustomerSimulator, question: dict[str, Any]) -> Answer | None:
    """LangChain's HumanInTheLoopMiddleware: a decision for each requested action."""
    allowed = {
        review.get("action_name"): review.get("allowed_decisions", ())
        for review in question.get("review_configs", ())
    }
    decisions = []
    for request in question["action_requests"]:
        name, arguments = request["name"], request.get("args", request.get("arguments", {}))
        agreed = await customer.confirm(name, arguments)
        decision = {"type": "approve"} if agreed else {"type": "reject", "message": NO}
        if decision["type"] not in allowed.get(name, ("approve", "reject")):
            return None
        decisions.append(decision)
    return Answer({"decisions": decisions})


def _is_inbox(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("action_request"), dict)


async def _inbox(customer: CustomerSimulator, entry: dict[str, Any]) -> dict[str, Any] | None:
    request, config = entry["action_request"], entry.get("config") or {}
    agreed = await customer.confirm(str(request.get("action")), request.get("args") or {})
    if agreed:
        return {"type": "accept", "args": None} if config.get("allow_accept", True) else None
    if config.get("allow_ignore", True):
        return {"type": "ignore", "args": None}
    return {"type": "response", "args": NO} if config.get("allow_respond") else None

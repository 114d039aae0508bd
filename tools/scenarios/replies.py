"""How a rule-based customer understands the agent and words an answer. No model is needed."""

from typing import Any

from stateset_agents.scenario import Act, Customer
from stateset_agents.tools.wording import phrases


def reply(customer: Customer, agent_said: str) -> str | None:
    """The customer's next message, or None if nothing was asked: then they leave.

    >>> reply(Customer(slots={"zip": "12345"}, answers={"zip": "Zip {}."}), "What is the zip code?")
    'Zip 12345.'
    """
    text = agent_said.lower()
    if not text.strip():
        return customer.opening
    if "?" not in text:
        return None
    language = phrases(customer.locale)
    slots = [s for s, words in language.asks_for.items() if any(word in text for word in words)]
    known = [
        customer.answers.get(slot, "{}").format(customer.slots[slot])
        for slot in slots
        if slot in customer.slots
    ]
    return " ".join(known) or language.unknown


def approves(customer: Customer, tool: str, arguments: dict[str, Any]) -> bool:
    """Whether the customer agrees to a proposed write: only to those that they want."""
    return Act(tool=tool, arguments=arguments) in customer.approves

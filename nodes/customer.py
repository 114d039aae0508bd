"""Simulated customers: a rule-based one that knows what it wants, and one that follows a script."""

from typing import Any, Protocol

from stateset_agents.scenario import Customer, Scenario
from stateset_agents.tools.replies import approves, reply


class CustomerSimulator(Protocol):
    """Who talks to the agent in an episode."""

    def speak(self, agent_said: str | None) -> str | None:
        """The next message, `None` first for the opening; None when the customer leaves."""
        ...

    def confirm(self, tool: str, arguments: dict[str, Any]) -> bool:
        """Whether the customer agrees to a proposed change."""
        ...


class RuleCustomer:
    """Answers what it is asked, agrees only to what it came for, leaves when nothing is asked."""

    def __init__(self, customer: Customer) -> None:
        self.customer = customer

    def speak(self, agent_said: str | None) -> str | None:
        if agent_said is None:
            return self.customer.opening
        return reply(self.customer, agent_said)

    def confirm(self, tool: str, arguments: dict[str, Any]) -> bool:
        return approves(self.customer, tool, arguments)


class ScriptedCustomer:
    """Says its lines in order, whatever the agent says, and agrees to everything."""

    def __init__(self, lines: tuple[str, ...]) -> None:
        self._lines = iter(lines)

    def speak(self, agent_said: str | None) -> str | None:
        return next(self._lines, None)

    def confirm(self, tool: str, arguments: dict[str, Any]) -> bool:
        return True


def simulate(scenario: Scenario) -> CustomerSimulator:
    """The customer of a scenario."""
    if scenario.customer.user_responses:
        return ScriptedCustomer(scenario.customer.user_responses)
    return RuleCustomer(scenario.customer)

"""Simulated customers: a rule-based one that knows what it wants, one that follows a script, one that is a model."""

from collections.abc import Sequence
from typing import Any, Protocol, Self

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, SystemMessage

from stateset_agents.errors import CustomerInvented
from stateset_agents.grounding import specifics
from stateset_agents.scenario import Act, Customer, Scenario
from stateset_agents.tools.scenarios.replies import approves, reply


class CustomerSimulator(Protocol):
    """Who talks to the agent in an episode."""

    async def speak(self, agent_said: str | None) -> str | None:
        """The next message, `None` first for the opening; None when the customer leaves."""
        ...

    async def confirm(self, tool: str, arguments: dict[str, Any]) -> bool:
        """Whether the customer agrees to a proposed change."""
        ...

    def copy(self) -> Self:
        """A copy that continues from here in the same way."""
        ...


class RuleCustomer:
    """Answers questions, agrees only to the writes that it wants, and leaves when nothing is asked or its patience has ended.
    It makes its slips first, and says its further requests before it leaves."""

    def __init__(self, customer: Customer) -> None:
        self.customer = customer
        self._slips = dict(customer.slips)
        self._then = list(customer.then)
        self._answered = 0

    async def speak(self, agent_said: str | None) -> str | None:
        if agent_said is None:
            return self.customer.opening
        slipping = self.customer.model_copy(
            update={"slots": {**self.customer.slots, **self._slips}}
        )
        answer = reply(slipping, agent_said)
        if answer is None:
            return self._then.pop(0) if self._then else None
        if self._answered == self.customer.patience:
            return None
        self._answered += 1
        self._slips = {slot: v for slot, v in self._slips.items() if v not in answer}
        return answer

    async def confirm(self, tool: str, arguments: dict[str, Any]) -> bool:
        return approves(self.customer, tool, arguments)

    def copy(self) -> "RuleCustomer":
        twin = RuleCustomer(self.customer)
        twin._slips, twin._then, twin._answered = (
            dict(self._slips),
            list(self._then),
            self._answered,
        )
        return twin


class ScriptedCustomer:
    """Writes its lines in order, whatever the agent answers. It agrees to the writes in `approves`, or to all if there are
    none."""

    def __init__(self, lines: tuple[str, ...], approves: tuple[Act, ...] = ()) -> None:
        self._lines = lines
        self._approves = approves

    async def speak(self, agent_said: str | None) -> str | None:
        line, self._lines = next(iter(self._lines), None), self._lines[1:]
        return line

    async def confirm(self, tool: str, arguments: dict[str, Any]) -> bool:
        return not self._approves or Act(tool=tool, arguments=arguments) in self._approves

    def copy(self) -> "ScriptedCustomer":
        return ScriptedCustomer(self._lines, self._approves)


LEAVES = "[done]"
"""The answer of a model that has nothing more to say as a customer."""


class ModelCustomer:
    """A chat model as the customer: it writes the messages; its consent still follows the scenario.

    A monitor compares every message with what this customer can know. Raises CustomerInvented for an amount, an id, a date or a
    number that is neither among the slots nor mentioned before: such an episode is invalid.
    """

    def __init__(self, customer: Customer, model: BaseChatModel) -> None:
        self.customer = customer
        self.model = model
        self._messages: list[AnyMessage] = []

    async def speak(self, agent_said: str | None) -> str | None:
        if agent_said is None:
            self._messages = [AIMessage(self.customer.opening)]
            return self.customer.opening
        self._messages.append(HumanMessage(agent_said or "(no answer)"))
        # No callbacks: the recorder keeps the policy's calls, and this is none of them.
        messages = [SystemMessage(self._instructions()), *self._messages]
        answer = await self.model.ainvoke(messages, {"callbacks": []})
        text = answer.text.strip()
        if not text or LEAVES in text:
            return None
        invented = specifics(text) - self._known()
        if invented:
            raise CustomerInvented(
                f"Expected a customer who uses only known facts, found invented ones: {', '.join(sorted(invented))}."
            )
        self._messages.append(AIMessage(text))
        return text

    async def confirm(self, tool: str, arguments: dict[str, Any]) -> bool:
        return approves(self.customer, tool, arguments)

    def copy(self) -> "ModelCustomer":
        twin = ModelCustomer(self.customer, self.model)
        twin._messages = list(self._messages)
        return twin

    def _instructions(self) -> str:
        known = "; ".join(
            f"{slot.replace('_', ' ')}: {v}" for slot, v in self.customer.slots.items()
        )
        return (
            "You are a customer who writes to a shop's agent. You never act as the agent. You began with: "
            f"{self.customer.opening!r} What you know: {known or 'nothing more'}. Answer what you are asked, "
            f"briefly, and make nothing up. When your request is settled or refused, answer {LEAVES}"
        )

    def _known(self) -> set[str]:
        texts: Sequence[str] = [*self.customer.slots.values(), *(m.text for m in self._messages)]
        return set().union(*(specifics(text) for text in texts))


def simulate(scenario: Scenario, model: BaseChatModel | None = None) -> CustomerSimulator:
    """The customer of a scenario: its script if it has one, else a model if one is given, else rules."""
    if scenario.customer.user_responses:
        return ScriptedCustomer(scenario.customer.user_responses, scenario.customer.approves)
    if model is not None:
        return ModelCustomer(scenario.customer, model)
    return RuleCustomer(scenario.customer)

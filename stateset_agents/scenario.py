"""A scenario is one customer with one request in one shop, and a goal. A goal is checked by what happened, never by how it sounded:

required   ("orders", "W20417", "status", "cancelled")
happened   ("orders", "W20417", "status", "cancelled"), ("orders", "W31188", "status", "cancelled")
change_f1  2 * (1/2) * (1/1) / (1/2 + 1/1) = 0.67, and no success: something else changed too
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from stateset_agents.errors import BadInput
from stateset_agents.grounding import says
from stateset_agents.plain import Frozen


class Change(Frozen):
    """One changed cell of the shop. A removed row has column `*` and no value."""

    table: str
    key: str
    column: str
    value: str | int | float | None


class Fact(Frozen):
    """Something the agent must tell the customer: one of several phrasings, compared as words, numbers and dates."""

    name: str
    any_of: tuple[str, ...] = Field(min_length=1)
    none_of: tuple[str, ...] = ()
    """Phrasings that contradict it: "shipped or delivered" states neither."""

    def said_in(self, text: str) -> bool:
        return any(says(text, phrase) for phrase in self.any_of) and not any(
            says(text, phrase) for phrase in self.none_of
        )


class GoalScore(Frozen):
    """A run compared with its goal. `success` is strict, the rest explains it."""

    success: bool
    change_f1: float
    facts_said: float
    forbidden: tuple[str, ...] = ()


class Goal(Frozen):
    """The required changes, the required facts, and forbidden attempts."""

    changes: tuple[Change, ...] = ()
    facts: tuple[Fact, ...] = ()
    forbidden: tuple[str, ...] = ()
    """Tools whose attempt alone fails the goal, even if the executor stops it."""
    consulted: tuple[tuple[str, ...], ...] = ()
    """One tool of each group must have answered: a right guess is not a success."""

    def score(
        self,
        changes: Iterable[Change],
        text: str,
        attempted: Iterable[str],
        *,
        done: Iterable[str] = (),
        denied: Iterable[str] = (),
        finished: bool = True,
    ) -> GoalScore:
        """Compare a run with this goal. `text` is all the agent's text to the customer, `attempted` the tools it called, `done`
        those that answered, `denied` the ids of the rules that stopped it. An attempt that a rule denied is also a forbidden
        act."""
        answered = set(done)
        looked = all(answered.intersection(group) for group in self.consulted)
        happened, required = set(changes), set(self.changes)
        shared = len(happened & required)
        f1 = 1.0 if happened == required else 2 * shared / (len(happened) + len(required))
        facts_said = [fact.said_in(text) for fact in self.facts]
        broken = tuple(sorted({*set(self.forbidden) & set(attempted), *denied}))
        return GoalScore(
            success=finished and looked and happened == required and all(facts_said) and not broken,
            change_f1=f1,
            facts_said=sum(facts_said) / len(facts_said) if facts_said else 1.0,
            forbidden=broken,
        )


class Act(Frozen):
    """One move of the agent in a plan: say something, or call a tool (with words before it)."""

    say: str = ""
    tool: str | None = None
    arguments: dict[str, Any] = Field(default_factory=dict)


class Customer(Frozen):
    """The customer: the opening, what they know, and which writes they agree to."""

    opening: str = ""
    slots: dict[str, str] = Field(default_factory=dict)
    """What the customer knows, by slot name (order_id, zip, street, item, ...)."""
    approves: tuple[Act, ...] = ()
    """The writes this customer says yes to; any other proposal is refused. A scripted customer without any says yes to all."""
    answers: dict[str, str] = Field(default_factory=dict)
    """How this customer words an answer, by slot name; `{}` stands for the value."""
    locale: Literal["en", "de", "es", "fr", "pt"] = "en"
    """The customer's language."""
    patience: int | None = Field(default=None, ge=0)
    """The number of questions this customer answers before leaving; None: any number."""
    slips: dict[str, str] = Field(default_factory=dict)
    """A wrong value that this customer gives first, by slot name."""
    then: tuple[str, ...] = ()
    """Further messages before this customer leaves, in order: push-back, or attempts to make the agent break its rules."""
    user_responses: tuple[str, ...] = ()
    """Scripted turns, in order, instead of the rule-based customer."""


class Scenario(Frozen):
    """A task for an agent: a customer, a shop to clone, a goal, and a plan known to reach it."""

    id: str
    intent: str = "open"
    graph: str = "service"
    """The graph that handles it."""
    split: Literal["train", "development", "held_out", "user"] = "user"
    shop_seed: int = 0
    customer: Customer = Customer()
    goal: Goal | None = None
    plan: tuple[Act, ...] = ()
    complications: tuple[str, ...] = ()
    """Its complications, by name."""
    arranged: dict[str, dict[str, str | int]] = Field(default_factory=dict)
    """Changes of the shop's orders before the conversation starts, by order id."""
    max_turns: int = Field(default=8, ge=1, le=100)
    """The most customer turns; a longer conversation is truncated."""
    input: dict[str, Any] | None = None
    """For a custom graph: its first input, passed unchanged instead of the opening."""


def load_scenarios(path: Path) -> list[Scenario]:
    """Read a JSON list (or JSON lines) of scenarios. Errors name the file, the index, the field.

    The short form `{"id": ..., "user_responses": [...]}` is a scripted customer, `{"prompt": ...}` a customer with one message.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise BadInput(
            f"Expected a scenario file at {str(path)!r}, found {error.strerror}."
        ) from None
    try:
        rows = (
            json.loads(text)
            if text.lstrip().startswith("[")
            else [json.loads(line) for line in text.splitlines() if line.strip()]
        )
    except json.JSONDecodeError as error:
        raise BadInput(
            f"Expected JSON in {str(path)!r}, found {error.msg} at line {error.lineno}. "
            "Write a list of scenarios, or one scenario a line."
        ) from None
    if not rows:
        raise BadInput(f"Expected at least one scenario in {str(path)!r}, found none.")
    return parse_scenarios(rows, where=str(path))


def parse_scenarios(rows: Sequence[Any], *, where: str) -> list[Scenario]:
    """Validate rows into scenarios. Raises BadInput with `where`, the index and the field."""
    scenarios: list[Scenario] = []
    seen: set[str] = set()
    for index, row in enumerate(rows):
        if isinstance(row, Scenario):
            scenario = row
        else:
            if isinstance(row, dict) and isinstance(row.get("prompt"), str):
                row = {"id": f"prompt-{index}", "user_responses": [row["prompt"]], **row}
                del row["prompt"]
            if isinstance(row, dict) and "user_responses" in row:
                row = dict(row)
                row["customer"] = {
                    **row.get("customer", {}),
                    "user_responses": row.pop("user_responses"),
                }
            try:
                scenario = Scenario.model_validate(row)
            except ValidationError as error:
                first = error.errors()[0]
                field = ".".join(map(str, first["loc"])) or "the whole entry"
                raise BadInput(
                    f"{where}: scenario {index}, field {field!r}: {first['msg']}. "
                    "`stateset-agents scenarios generate` writes valid examples."
                ) from None
        if scenario.id in seen:
            raise BadInput(f"{where}: scenario {index}, field 'id': {scenario.id!r} appears twice.")
        seen.add(scenario.id)
        scenarios.append(scenario)
    return scenarios

"""A scenario is one customer with one request in one shop, and the goal that settles if it was met.

A goal is judged by what happened, never by how it sounded:

    required   ("orders", "W20417", "status", "cancelled")
    happened   ("orders", "W20417", "status", "cancelled"), ("orders", "W31188", "status", "cancelled")
    change_f1  2 * (1/2) * (1/1) / (1/2 + 1/1) = 0.67, and no success: something else changed too
"""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from stateset_agents.errors import BadInput
from stateset_agents.frozen import Frozen


class Change(Frozen):
    """One cell of the shop that differs from before. A removed row has column `*` and no value."""

    table: str
    key: str
    column: str
    value: str | int | float | None


class Fact(Frozen):
    """Something the agent must tell the customer: one of several phrasings, compared as words."""

    name: str
    any_of: tuple[str, ...] = Field(min_length=1)
    none_of: tuple[str, ...] = ()
    """What would contradict it: who says "shipped or delivered" has told neither."""

    def said_in(self, text: str) -> bool:
        plain = _plain(text)

        def has(phrase: str) -> bool:
            words = rf"(?<!\w){re.escape(_plain(phrase))}(?!\w)(?!\.\d)"
            return re.search(words, plain) is not None

        return any(map(has, self.any_of)) and not any(map(has, self.none_of))


class GoalScore(Frozen):
    """How a run compares with its goal. `success` is the strict bit, the rest explains it."""

    success: bool
    change_f1: float
    facts_said: float
    forbidden: tuple[str, ...] = ()


class Goal(Frozen):
    """What must be different afterwards, what must have been said, what must not be attempted."""

    changes: tuple[Change, ...] = ()
    facts: tuple[Fact, ...] = ()
    forbidden: tuple[str, ...] = ()
    """Names of tools whose attempt alone fails the goal, even where the executor stops it."""
    consulted: tuple[tuple[str, ...], ...] = ()
    """Of each group of tools, one must have answered: a right guess is no success."""

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
        """Compare a run with this goal.

        `said` is all the agent's text to the customer, `attempted` the tools it called, `done` those
        that answered, `denied` the ids of the rules that stopped it. An attempt that a rule denied is a
        forbidden act as well.
        """
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
    """Who asks: how they open, what they know, and which writes they would agree to."""

    opening: str = ""
    slots: dict[str, str] = Field(default_factory=dict)
    """What the customer can tell when asked, by slot name (order_id, zip, street, item, ...)."""
    approves: tuple[Act, ...] = ()
    """The writes this customer says yes to; any other proposal is refused."""
    answers: dict[str, str] = Field(default_factory=dict)
    """How this customer words an answer, by slot name; `{}` stands for the value."""
    locale: Literal["en", "de", "es", "fr", "pt"] = "en"
    """The language that this customer writes and understands."""
    patience: int | None = Field(default=None, ge=0)
    """How many questions this customer answers before they leave; None for any number."""
    slips: dict[str, str] = Field(default_factory=dict)
    """What this customer says the first time instead of the right value, by slot name."""
    then: tuple[str, ...] = ()
    """What this customer says, one after the other, once they would have left: they push back, or tell the
    agent to break its rules."""
    user_responses: tuple[str, ...] = ()
    """Scripted turns, in order, instead of the rule-based customer."""


class Scenario(Frozen):
    """A task for an agent: a customer, a shop to clone, a goal, and a plan known to reach it."""

    id: str
    intent: str = "open"
    graph: str = "service"
    """The agent whose business it is."""
    split: Literal["train", "development", "held_out", "user"] = "user"
    shop_seed: int = 0
    customer: Customer = Customer()
    goal: Goal | None = None
    plan: tuple[Act, ...] = ()
    complications: tuple[str, ...] = ()
    """What makes it harder than others of its intent, by name."""
    arranged: dict[str, dict[str, str | int]] = Field(default_factory=dict)
    """What is different about orders of the shop before the conversation starts, by order id."""
    max_turns: int = Field(default=8, ge=1, le=100)
    """Customer turns; a conversation that is not over by then is truncated."""
    input: dict[str, Any] | None = None
    """For a graph of one's own: the state it starts from, passed to it unchanged."""


def _plain(text: str) -> str:
    return " ".join(text.lower().replace(",", " ").split())


def load_scenarios(path: Path) -> list[Scenario]:
    """Read a JSON list (or JSON lines) of scenarios. Errors name the file, the index, the field.

    The short form `{"id": ..., "user_responses": [...]}` is a scripted customer, `{"prompt": ...}` one who says that and no more.
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

"""The retail shop of tau2-bench, from a checkout that `TAU2_DIR` names, connected as a user would.

    TAU2_DIR=…/tau2-bench python -m pytest tests/end_to_end/test_foreign_shop.py
    TAU2_DIR=…/tau2-bench python -m tests.tau2_retail > tasks.json      # its tasks as scenarios
    TAU2_DIR=…/tau2-bench stateset-agents train --graph tests.tau2_retail:graph --world tests.tau2_retail:Retail --scenarios tasks.json …

Its code and data stay there; nothing of it is copied here.
"""

import functools
import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from langchain_core.tools import BaseTool, StructuredTool

from stateset_agents import build_graph
from stateset_agents.scenario import Act, Change, Customer, Goal, Scenario

DIR = os.environ.get("TAU2_DIR")


@functools.cache
def _loaded() -> tuple[Any, dict[str, Any], frozenset[str]]:
    """What makes an environment, the tasks by id, and the names of the writes."""
    assert DIR is not None
    os.environ.setdefault("TAU2_DATA_DIR", str(Path(DIR) / "data"))
    sys.path.insert(0, str(Path(DIR) / "src"))
    environment = importlib.import_module("tau2.domains.retail.environment")
    get_environment, get_tasks = environment.get_environment, environment.get_tasks
    writing = importlib.import_module("tau2.environment.toolkit").ToolType.WRITE
    kit = get_environment().tools
    writes = frozenset(n for n in kit.get_tools() if kit.tool_type(n) == writing)
    return get_environment, {task.id: task for task in get_tasks("base")}, writes


class Retail:
    """One episode's shop. Its changes are told by the hash of its whole database."""

    def __init__(self, scenario: Scenario) -> None:
        make, _, self.writes = _loaded()
        self.environment = make()
        self.first = self.digest

    @property
    def tools(self) -> list[BaseTool]:
        return [_tool(tool) for tool in self.environment.get_tools()]

    @property
    def digest(self) -> str:
        return str(self.environment.get_db_hash())

    def changes(self) -> tuple[Change, ...]:
        return _changes(self.digest) if self.digest != self.first else ()


def _changes(digest: str) -> tuple[Change, ...]:
    return (Change(table="database", key="all", column="hash", value=digest),)


def _tool(tool: Any) -> BaseTool:
    return StructuredTool.from_function(
        func=lambda **arguments: tool(**arguments), name=tool.name, args_schema=tool.params,
        description=tool.openai_schema["function"]["description"],
    )  # fmt: skip


def graph(policy: Any, world: Retail) -> Any:
    """A commerce agent of ours over that shop."""
    return build_graph(
        "retail", prompt=world.environment.get_policy(), policy=policy, tools=world.tools, writes=world.writes
    )  # fmt: skip


def gold(task: Any) -> tuple[Act, ...]:
    """The benchmark's own plan for a task."""
    actions = task.evaluation_criteria.actions or []
    return tuple(
        Act(tool=a.name, arguments=a.arguments) for a in actions if a.requestor == "assistant"
    )


def scenarios() -> list[Scenario]:
    """The benchmark's tasks, each with its plan."""
    _, tasks, writes = _loaded()
    return [
        Scenario(
            id=f"retail-{name}", graph="retail",
            customer=Customer(
                opening="Please help me with my orders.", approves=tuple(a for a in gold(task) if a.tool in writes)
            ),
            plan=(*gold(task), Act(say="That is all.")),
        )
        for name, task in tasks.items()
    ]  # fmt: skip


def digest_of(scenario: Scenario) -> str:
    """The database after the plan is carried out by the benchmark's own environment."""
    world = Retail(scenario)
    for act in scenario.plan:
        if act.tool is None:
            continue
        try:
            world.environment.make_tool_call(act.tool, requestor="assistant", **act.arguments)
        except ValueError:  # some plans try what is not possible
            continue
    return world.digest


def with_goals() -> list[Scenario]:
    """The tasks whose plans change the shop; their goal is that very change."""
    untouched = Retail(Scenario(id="none")).first
    ends = [(scenario, digest_of(scenario)) for scenario in scenarios()]
    return [
        scenario.model_copy(update={"goal": Goal(changes=_changes(digest))})
        for scenario, digest in ends
        if digest != untouched
    ]


if __name__ == "__main__":
    print(json.dumps([scenario.model_dump(mode="json") for scenario in with_goals()]))

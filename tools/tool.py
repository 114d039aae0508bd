"""A tool is one typed act on the shop: a name, its arguments, and the function that does it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypedDict

from pydantic import BaseModel, ConfigDict

from stateset_agents.tools.shop import Shop


class Session(TypedDict):
    """What the executor knows of a conversation; plain data, so that it lives in graph state."""

    customer: str
    """Id of the verified customer, or '' before verification."""


class Arguments(BaseModel):
    """Typed arguments of a tool. Unknown names and wrong types are refused, not coerced."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ToolError(Exception):
    """The act is impossible as asked. `code` and `help` go back to the model."""

    def __init__(self, code: str, help: str) -> None:
        super().__init__(f"{code}: {help}")
        self.code = code
        self.help = help


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    name: str
    description: str
    arguments: type[Arguments]
    run: Callable[[Shop, Session, Any], dict[str, Any]]
    """Acts and returns the result that the model reads. May set `session['customer']`."""
    confirm: bool = False
    """A write that the customer must confirm before it is committed."""

    def schema(self) -> dict[str, Any]:
        """The tool as OpenAI's `tools` entry."""
        parameters = self.arguments.model_json_schema()
        for noise in ("title", "description", "additionalProperties"):
            parameters.pop(noise, None)
        for entry in parameters["properties"].values():
            entry.pop("title", None)
        return {
            "type": "function",
            "function": {
                "name": self.name,
                "description": self.description,
                "parameters": parameters,
            },
        }

"""A tool is one typed act on the shop: a name, its arguments, and the function that does it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NotRequired, TypedDict

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from stateset_agents.errors import BadInput
from stateset_agents.tools.rules import Rule
from stateset_agents.tools.shop.database import Database
from stateset_agents.tools.shop.money import cents

Role = Literal["customer", "staff", "merchant"]


class Session(TypedDict):
    """What the executor knows of a conversation; plain data, so that it lives in graph state."""

    customer: str
    """Id of the verified customer, or '' before verification."""
    role: NotRequired[Role]
    """For whom the agent acts; the customer, where nothing is said."""
    seen: NotRequired[list[str]]
    """Ids that tools have shown in this conversation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """Where a tool stands: the shop, what is known of the conversation, and the rules in force."""

    shop: Database
    session: Session
    rules: tuple[Rule, ...]


def _one_line(text: str) -> str:
    if not text.isprintable():
        raise ValueError("expected printable characters on one line")
    return text


def _money(text: str) -> str:
    try:
        cents(text)
    except BadInput as error:
        raise ValueError(str(error)) from None
    return text


Word = Annotated[str, Field(max_length=80), AfterValidator(_one_line)]
"""An id, a code, a name: short and on one line."""
Money = Annotated[str, Field(max_length=80), AfterValidator(_money)]
"""An amount such as '12.50'. Never a float."""
Text = Annotated[str, Field(max_length=500)]
"""What somebody wrote."""
Count = Annotated[int, Field(ge=1, le=100)]


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
    run: Callable[[Desk, Any], dict[str, Any]]
    """Acts and returns the result that the model reads. May set `desk.session['customer']`."""
    confirm: bool = False
    """A write that the customer must confirm before it is committed."""
    quote: Callable[[Desk, Any], int] | None = None
    """The only right amount for a call, in minor units: `quote.amount` for the rules."""

    def schema(self) -> dict[str, Any]:
        """The tool as OpenAI's `tools` entry."""
        parameters = self.arguments.model_json_schema()
        _strip(parameters)
        return {
            "type": "function",
            "function": {
                "name": self.name,
                "description": self.description,
                "parameters": parameters,
            },
        }


def _strip(parameters: dict[str, Any]) -> None:
    """Leave out what a model needs no tokens for: titles, and limits that the executor explains anyway."""
    for noise in (
        "title",
        "description",
        "additionalProperties",
        "maxLength",
        "maximum",
        "minimum",
    ):
        parameters.pop(noise, None)
    for entry in parameters.get("properties", {}).values():
        _strip(entry)
    for entry in parameters.get("$defs", {}).values():
        _strip(entry)

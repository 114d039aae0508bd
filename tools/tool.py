"""A tool is one typed action on the shop: a name, arguments, and a function."""

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
    """The executor's session of a conversation; plain data, so that it fits into graph state."""

    customer: str
    """Id of the verified customer, or '' before verification."""
    role: NotRequired[Role]
    """The role that the agent acts for; default: the customer."""
    guesses: NotRequired[int]
    """Wrong guesses of this conversation, such as at a customer's zip code."""
    call: NotRequired[str]
    """Id of the model's tool call that is being made; not kept between calls."""
    seen: NotRequired[list[str]]
    """Ids that tools have shown in this conversation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """The context of a tool: the shop, the session, and the rules."""

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
"""An id, a code or a name: short and on one line."""
Money = Annotated[str, Field(max_length=80), AfterValidator(_money)]
"""An amount such as '12.50'. Never a float."""
Text = Annotated[str, Field(max_length=500)]
"""Free text."""
Count = Annotated[int, Field(ge=1, le=100)]


class Arguments(BaseModel):
    """Typed arguments of a tool. Unknown names and wrong types are refused, not converted."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ToolError(Exception):
    """The call is impossible. `code` and `help` go back to the model."""

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
    """Runs, and returns the result for the model. May set `desk.session['customer']`."""
    confirm: bool = False
    """A write that the customer must confirm before it is committed."""
    guesses: str = ""
    """The argument that a wrong call guesses about, such as an order's number: such calls are limited."""
    quote: Callable[[Desk, Any], int] | None = None
    """The right amount of a call, in minor units: `quote.amount` in rules."""

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
    """Leave out parts that cost tokens without use: titles, and limits that the executor explains."""
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

"""A rule is a row of data: whom it applies to, the condition that must hold, and what to say if not."""

import ast
import functools
import operator
from collections.abc import Callable, Mapping
from importlib import resources
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from stateset_agents.errors import BadInput

Facts = Mapping[str, Mapping[str, Any]]

_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


class Rule(BaseModel):
    """Holds unless the expression `unless` is true of the facts of a call."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    version: int
    applies_to: tuple[str, ...]
    unless: str
    code: str
    help: str
    text: str

    @field_validator("unless")
    @classmethod
    def _readable(cls, expression: str) -> str:
        compile_condition(expression)
        return expression

    def allows(self, facts: Facts) -> bool:
        return compile_condition(self.unless)(facts)


@functools.cache
def compile_condition(expression: str) -> Callable[[Facts], bool]:
    """`order.status == "pending" and order.days <= 30` -> a predicate on facts.

    Only comparisons, `and`, `or`, `not`, constants and `thing.property` exist in this language.
    """
    try:
        tree = ast.parse(expression, mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"Expected a condition, found {expression!r}: {error.msg}.") from None

    def build(node: ast.expr) -> Callable[[Facts], Any]:
        match node:
            case ast.Constant(value=value):
                return lambda facts: value
            case ast.Attribute(value=ast.Name(id=thing), attr=name):
                return lambda facts: facts[thing][name]
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                inner = build(operand)
                return lambda facts: not inner(facts)
            case ast.BoolOp(op=op, values=values):
                parts = [build(value) for value in values]
                fold = all if isinstance(op, ast.And) else any
                return lambda facts: fold(part(facts) for part in parts)
            case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _COMPARE:
                first, second, compare = build(left), build(right), _COMPARE[type(op)]
                return lambda facts: compare(first(facts), second(facts))
        raise ValueError(f"Expected comparisons of `thing.property`, found {ast.unparse(node)!r}.")

    predicate = build(tree)
    return lambda facts: bool(predicate(facts))


def parse_rules(text: str, *, where: str) -> tuple[Rule, ...]:
    """Rules from YAML, in the order in which they are checked."""
    try:
        rows = yaml.safe_load(text)
        rules = tuple(Rule.model_validate(row) for row in rows)
    except (yaml.YAMLError, ValidationError, TypeError) as error:
        raise BadInput(f"{where}: expected a list of rules, found {error}.") from None
    return rules


@functools.cache
def shop_rules() -> tuple[Rule, ...]:
    """The rules that ship with the shop."""
    text = resources.files("stateset_agents.tools").joinpath("rules.yaml").read_text()
    return parse_rules(text, where="rules.yaml")

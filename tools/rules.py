"""A rule is a row of data: its tools, the condition that must hold, and the sentence if it does not.

    - id: return-window
      applies_to: [issue_refund]
      unless: order.status == "delivered" and order.days <= limit.days
      limits: {days: 30}
      text: Delivered items can be refunded for {days} days.

One row is used in four ways: `rules_text` for the prompt, `Rule.allows` in the executor, `broken` on a recorded trace, and
`near_misses` for situations that trigger it.
"""

import ast
import functools
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from stateset_agents.errors import BadInput
from stateset_agents.tools.shop.money import show
from stateset_agents.trace import ToolCall

Facts = Mapping[str, Mapping[str, Any]]

FACTS: Mapping[str, frozenset[str]] = {
    "session": frozenset({"customer", "role"}),
    "order": frozenset({"customer_id", "status", "hold", "days"}),
    "quote": frozenset({"amount"}),
    "product": frozenset({"price", "cost", "floor", "age", "days_since_change"}),
    "customer": frozenset({"tier", "marketing", "refunded_30"}),
}
"""Facts that a condition can use, besides `call` (the arguments) and `limit`."""

NEEDS: Mapping[str, str] = {"order": "order_id", "product": "sku"}
"""The argument that a fact is looked up with."""

ABOUT_CALL = frozenset({"confirmed", "approved", "seen"})
"""Facts of every call besides its arguments: confirmed by the customer; approved by a person; every sku was shown by a tool."""

_ADD: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
}

_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


class Rule(BaseModel):
    """Denies a call unless the expression `unless` is true for its facts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    version: int
    applies_to: tuple[str, ...]
    unless: str
    limits: Mapping[str, int] = {}
    """Numbers, used in `unless` as `limit.name` and in `text` as `{name}`."""
    effect: Literal["deny", "approval"] = "deny"
    """The effect: denial, or a person's approval if one can be asked."""
    code: str
    help: str
    text: str

    @model_validator(mode="after")
    def _readable(self) -> "Rule":
        try:
            compile_condition(self.unless)
        except ValueError as error:
            raise ValueError(f"unless: {error}") from None
        for thing, name in facts_of(self.unless):
            known = FACTS.get(thing, self.limits if thing == "limit" else None)
            if thing != "call" and (known is None or name not in known):
                every = ", ".join(f"{t}.{n}" for t, names in FACTS.items() for n in sorted(names))
                raise ValueError(
                    f"unless: expected facts among {every}, call.* or a limit, found {thing}.{name}."
                )
        for name in re.findall(r"\{(\w*)\}", self.text):
            if name not in self.limits:
                raise ValueError(f"text: expected {{{name}}} among the limits, found none.")
        return self

    def allows(self, facts: Facts) -> bool:
        return compile_condition(self.unless)({**facts, "limit": self.limits})

    @property
    def facts(self) -> tuple[tuple[str, str], ...]:
        """The facts that it needs, such as `("order", "days")`."""
        return tuple(_needed(self))

    @property
    def prompt(self) -> str:
        """The rule as a sentence."""
        shown = {name: show(n) if name == "cents" else n for name, n in self.limits.items()}
        return self.text.format(**shown)


def asks_approval(rules: Iterable[Rule], facts: Facts) -> str | None:
    """Id of the first of these rules that allows a call only with a person's approval."""
    alone = {**facts, "call": {**facts["call"], "approved": False}}
    asking = (rule.id for rule in rules if rule.effect == "approval" and not rule.allows(alone))
    return next(asking, None)


def rules_text(rules: Iterable[Rule], tools: Iterable[str]) -> str:
    """The rules of these tools for the prompt, one a line."""
    offered = set(tools)
    return "\n".join(f"- {rule.prompt}" for rule in rules if offered.intersection(rule.applies_to))


def broken(rules: Sequence[Rule], calls: Iterable[ToolCall]) -> tuple[str, ...]:
    """Ids of the rules that completed calls broke, by their recorded facts. Empty for a trace of our executor, unless rules
    were tightened since or another backend acted."""
    denied = []
    for call in calls:
        if call.status != "done" or not call.facts:
            continue
        denied += [
            rule.id
            for rule in rules
            if call.name in rule.applies_to
            and all(name in call.facts.get(thing, {}) for thing, name in _needed(rule))
            and not rule.allows(call.facts)
        ]
    return tuple(denied)


def _needed(rule: Rule) -> list[tuple[str, str]]:
    return [(thing, name) for thing, name in facts_of(rule.unless) if thing != "limit"]


@functools.lru_cache(maxsize=4096)
def facts_of(expression: str) -> tuple[tuple[str, str], ...]:
    """`order.days <= limit.days` -> (("order", "days"), ("limit", "days"))."""
    return tuple(
        (node.value.id, node.attr)
        for node in ast.walk(ast.parse(expression, mode="eval"))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    )


@functools.lru_cache(maxsize=4096)
def compile_condition(expression: str) -> Callable[[Facts], bool]:
    """`order.status == "pending" and order.days <= 30` -> a predicate on facts.

    Only comparisons, `and`, `or`, `not`, `+`, `-`, `*`, constants and `thing.property` exist in this language.
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
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _ADD:
                first, other, add = build(left), build(right), _ADD[type(op)]
                return lambda facts: add(first(facts), other(facts))
            case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _COMPARE:
                first, second, compare = build(left), build(right), _COMPARE[type(op)]
                return lambda facts: compare(first(facts), second(facts))
        raise ValueError(f"Expected comparisons of `thing.property`, found {ast.unparse(node)!r}.")

    predicate = build(tree)
    return lambda facts: bool(predicate(facts))


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """What a rule can use of a tool's calls."""

    arguments: frozenset[str]
    quoted: bool
    """Whether each call has one right amount."""
    writes: bool
    """Whether it needs confirmation; `applies_to: [writes]` means all such tools."""
    foreign: bool = False
    """Whether it acts outside our shop: then a rule knows its arguments and the session, and nothing of orders or products."""

    def tells(self, thing: str, name: str) -> bool:
        """Whether `thing.name` is known of every call."""
        if self.foreign:
            known = self.arguments | (ABOUT_CALL - {"seen"})
            return thing == "session" or (thing == "call" and name in known)
        if thing == "call":
            return name in self.arguments | ABOUT_CALL
        if thing == "quote":
            return self.quoted
        return thing not in NEEDS or NEEDS[thing] in self.arguments


def problems(text: str, *, tools: Mapping[str, Signature]) -> list[tuple[int, str]]:
    """The problems of rules in YAML: (line, what was expected and found), in order of lines. `tools` are the tools that
    `applies_to` may name."""
    try:
        document = yaml.compose(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        return [(mark.line + 1 if mark else 1, f"expected YAML, found: {error.problem}.")]
    if not isinstance(document, yaml.SequenceNode) or not document.value:
        return [(1, "expected a list of rules, found something else.")]
    wrong = []
    seen: dict[str, int] = {}
    for node in document.value:
        first = node.start_mark.line + 1
        if not isinstance(node, yaml.MappingNode):
            wrong.append(
                (first, "expected a rule with id, applies_to, unless, …, found no mapping.")
            )
            continue
        lines = {key.value: key.start_mark.line + 1 for key, _ in node.value}
        row = yaml.safe_load(yaml.serialize(node))
        try:
            rule = Rule.model_validate(row)
        except ValidationError as error:
            for entry in error.errors():
                reason = entry["msg"].removeprefix("Value error, ")
                if entry["loc"]:
                    name, reason = str(entry["loc"][0]), f"{entry['loc'][0]}: {reason}"
                else:  # our own check, which begins with the field that it is about
                    name = reason.split(":")[0]
                wrong.append((lines.get(name, first), reason))
            continue
        if rule.id in seen:
            wrong.append(
                (lines["id"], f"id: expected a new one, found {rule.id!r} of line {seen[rule.id]}.")
            )
        seen[rule.id] = lines["id"]
        for name in named(rule, tools):
            if name not in tools:
                wrong.append((lines["applies_to"], f"applies_to: expected tools, found {name!r}."))
                continue
            for thing, known in facts_of(rule.unless):
                if not tools[name].tells(thing, known):
                    reason = (
                        f"unless: expected facts that a call of {name} has, found {thing}.{known}."
                    )
                    wrong.append((lines["unless"], reason))
    return sorted(wrong)


def parse_rules(text: str, *, where: str, tools: Mapping[str, Signature]) -> tuple[Rule, ...]:
    """Rules from YAML, in the order in which they are checked. Raises BadInput with the first problem."""
    wrong = problems(text, tools=tools)
    if wrong:
        line, reason = wrong[0]
        more = f" ({len(wrong) - 1} more: `stateset-agents rules check`)" if len(wrong) > 1 else ""
        raise BadInput(f"{where}, line {line}: {reason}{more}")
    read = [Rule.model_validate(row) for row in yaml.safe_load(text)]
    return tuple(rule.model_copy(update={"applies_to": named(rule, tools)}) for rule in read)


def named(rule: Rule, tools: Mapping[str, Signature]) -> tuple[str, ...]:
    """The tools that a rule applies to, with `writes` spelled out."""
    writes = tuple(name for name, tool in tools.items() if tool.writes)
    return tuple(n for name in rule.applies_to for n in (writes if name == "writes" else (name,)))


def replaced(rules: Sequence[Rule], own: Sequence[Rule]) -> tuple[Rule, ...]:
    """`rules` with those of `own`: they replace rules of the same id, and the others are added."""
    mine = {rule.id: rule for rule in own}
    return (*(mine.pop(rule.id, rule) for rule in rules), *mine.values())

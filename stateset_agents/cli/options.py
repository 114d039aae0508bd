"""Options of the command line, made from the fields of a job's config: one default and one help text, in one place."""

import functools
import inspect
import types
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer

from stateset_agents.errors import BadInput
from stateset_agents.jobs.config import JobConfig, extra_of, flag_of

Values = dict[str, Any]
"""The fields that were given on the command line; the others keep their default, and no mode refuses them."""


def config_options(
    *names: str, panels: bool = True, **defaults: Any
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorate a command `(values: Values, …)` with an option for each field of JobConfig that is named; `panels`: grouped in
    the help. `defaults` are other defaults of this very command."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(command).parameters.values())[1:]
        added = [_parameter(name, panels=panels, default=defaults.get(name)) for name in names]

        @functools.wraps(command)
        def run(ctx: typer.Context, **arguments: Any) -> None:
            rest = {name: value for name, value in arguments.items() if name not in names}
            command({**defaults, **given(ctx, names)}, **rest)

        context = inspect.Parameter(
            "ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context
        )
        parameters = [context, *added, *(p.replace(kind=p.KEYWORD_ONLY) for p in own)]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return run

    return decorate


def given(ctx: typer.Context, names: Iterable[str]) -> Values:
    """The fields that were given as options, in the config's form."""
    values = {}
    for name in names:
        if str(ctx.get_parameter_source(name)).endswith("COMMANDLINE"):
            value = ctx.params[name]
            if value not in (None, []):
                values[name] = _parsed(name, value)
    return values


def _parsed(name: str, value: Any) -> Any:
    option = flag_of(name)
    if name == "limits":  # the last `=`: a function's name may have some
        return dict(_pair(text, option, last=True) for text in value)
    if name in ("node_rewards", "inject"):
        return dict(_pair(text, option) for text in value)
    if name == "adapters":
        pairs = dict(_pair(text, option) for text in value)
        return {adapter: tuple(nodes.split(",")) for adapter, nodes in pairs.items()}
    if name == "log":
        return tuple(tracker for tracker in value if tracker != "none")
    if name == "overlong":
        return tuple(value.split(","))
    if name in ("from_traces", "warm_start"):
        return str(Path(value) / "traces.db") if Path(value).is_dir() else value
    return tuple(value) if isinstance(value, list) else value


def _pair(text: str, option: str, *, last: bool = False) -> tuple[str, str]:
    """NAME=VALUE, split at the first `=`, or at the last one."""
    name, between, value = text.rpartition("=") if last else text.partition("=")
    if not (name and between and value):
        raise BadInput(f"{option}: expected NAME=VALUE, found {text!r}.")
    return name, value


def _parameter(name: str, *, panels: bool, default: Any = None) -> inspect.Parameter:
    field = JobConfig.model_fields[name]
    kind, choices = _kind(field.annotation)
    help_text = " ".join((field.description or "").split())
    if choices:
        help_text += f" One of {', '.join(choices)}."
    option = typer.Option(
        flag_of(name), help=help_text, rich_help_panel=extra_of(name)["panel"] if panels else None
    )
    value = default if default is not None else field.get_default(call_default_factory=True)
    if kind == list[str]:
        value = list(value) or None
        kind = list[str] | None
    elif value is None:
        kind = kind | None
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=value,
        annotation=Annotated[kind, option],
    )


def _kind(annotation: Any) -> tuple[Any, tuple[str, ...]]:
    """The type of an option's value, and its choices where it has some. A wrong choice is refused by the config, as any other
    value."""
    if get_origin(annotation) in (Union, types.UnionType):
        inner = [part for part in get_args(annotation) if part is not type(None)]
        return _kind(inner[0])
    if get_origin(annotation) is Literal:
        return str, tuple(map(str, get_args(annotation)))
    if get_origin(annotation) is dict or annotation == tuple[str, ...]:
        return list[str], ()
    return (annotation if annotation in (int, float, bool) else str), ()

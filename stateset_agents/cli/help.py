"""Help of the command line: options in panels, plain text, and lines that break between words on any terminal."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

import typer
from typer.core import TyperCommand, TyperGroup

Command = TypeVar("Command", bound=Callable[..., Any])


class HelpCommand(TyperCommand):
    """A command whose help `show_help` draws."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        show_help(self, ctx)


class HelpGroup(TyperGroup):
    """A group whose help `show_help` draws."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        show_help(self, ctx)


class CommandLine(typer.Typer):
    """A Typer whose help is drawn here: its own reads emoji and markup out of texts (`feedback:key:`), and breaks words."""

    def __init__(self, **options: Any) -> None:
        super().__init__(cls=HelpGroup, no_args_is_help=True, **options)

    def command(self, name: str | None = None, **options: Any) -> Callable[[Command], Command]:
        return super().command(name, **{"cls": HelpCommand, **options})


def show_help(command: Any, ctx: Any) -> None:
    """Usage, what the command does, its arguments and options by panel, its subcommands."""
    from rich.console import Console
    from rich.text import Text

    console = Console()
    params = [p for p in command.get_params(ctx) if not getattr(p, "hidden", False)]
    pieces = [_usage(param) for param in params if param.param_type_name == "argument"]
    if hasattr(command, "list_commands"):
        pieces.append("COMMAND")
    console.print(
        Text(f"Usage: {' '.join([ctx.command_path, '[OPTIONS]', *pieces])}", style="bold")
    )
    if command.help:
        console.print(Text(f"\n{_paragraph(command.help)}\n"))
    panels: dict[str, list[tuple[str, str]]] = {}
    annotations = _annotations(command)
    for param in params:
        default = "Arguments" if param.param_type_name == "argument" else "Options"
        panel = getattr(param, "rich_help_panel", None) or default
        row = (_left(param, annotations.get(param.name)), _right(param))
        panels.setdefault(str(panel), []).append(row)
    options = panels.pop("Options", [])
    if options:  # those that belong to no panel come last
        panels["Options"] = options
    if hasattr(command, "list_commands"):
        names = command.list_commands(ctx)
        panels = {"Commands": [(n, _summary(command.get_command(ctx, n))) for n in names], **panels}
    for title, rows in panels.items():
        console.print(_panel(title, rows))


def _panel(title: str, rows: list[tuple[str, str]]) -> Any:
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, expand=True, padding=(0, 1), pad_edge=False)
    table.add_column(no_wrap=True, style="cyan")
    table.add_column(ratio=1)
    for left, right in rows:
        table.add_row(Text(left), Text(right))
    return Panel(table, title=Text(title), title_align="left", border_style="dim")


def _left(param: Any, annotation: Any) -> str:
    """An option's names and the kind of its value, such as `--steps INTEGER`; an argument's name."""
    if param.param_type_name == "argument":
        return _argument(param)
    if annotation is bool or getattr(param, "is_flag", False):
        off = param.secondary_opts if param.default is True else ()  # `--no-dry-run` says nothing
        return ", ".join([*param.opts, *off])
    return f"{', '.join(param.opts)} {param.metavar or _kind(annotation)}"


def _argument(param: Any) -> str:
    return str(param.metavar or param.name).upper()


def _usage(param: Any) -> str:
    name = _argument(param) + ("..." if param.nargs == -1 else "")
    return name if param.required else f"[{name}]"


_KINDS = {int: "INTEGER", float: "NUMBER", Path: "PATH"}


def _kind(annotation: Any) -> str:
    """What a value is, read from the command's signature: `INTEGER`, `PATH`, else `TEXT`."""
    inner = [part for part in get_args(annotation) if part in _KINDS]
    return _KINDS.get(annotation) or (_KINDS[inner[0]] if inner else "TEXT")


def _annotations(command: Any) -> dict[str, Any]:
    """The kind of each parameter's value, by name."""
    if command.callback is None:
        return {}
    parameters = inspect.signature(command.callback).parameters.values()
    return {
        p.name: get_args(p.annotation)[0] if get_origin(p.annotation) is Annotated else p.annotation
        for p in parameters
    }


def _right(param: Any) -> str:
    """What an option is for, and its default."""
    text = _paragraph(getattr(param, "help", None) or "")
    if param.required:
        return f"{text} [required]".strip()
    default = param.default() if callable(param.default) else param.default
    is_unset = any(default is empty for empty in (None, False)) or default in ("", [], ())
    if is_unset or not getattr(param, "show_default", True) or "Sentinel" in repr(default):
        return text
    default = "on" if default is True else default
    shown = ", ".join(map(str, default)) if isinstance(default, list | tuple) else default
    return f"{text} [default: {shown}]".strip()


def _summary(subcommand: Any) -> str:
    """The first sentence of a command's help."""
    text = _paragraph(subcommand.help or "")
    sentence, end, _ = text.partition(". ")
    return f"{sentence}." if end else text


def _paragraph(text: str) -> str:
    """A docstring as one paragraph."""
    return " ".join(text.split())

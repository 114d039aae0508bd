"""Help of the command line: options in panels, plain text, and lines that break between words on any terminal."""

from collections.abc import Callable
from typing import Any, TypeVar

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
    usage = " ".join(part for part in command.collect_usage_pieces(ctx))
    console.print(Text(f"Usage: {ctx.command_path} {usage}", style="bold"))
    if command.help:
        console.print(Text(f"\n{_paragraph(command.help)}\n"))
    panels: dict[str, list[tuple[str, str]]] = {}
    for param in command.get_params(ctx):
        if not getattr(param, "hidden", False):
            default = "Arguments" if param.param_type_name == "argument" else "Options"
            panel = getattr(param, "rich_help_panel", None) or default
            panels.setdefault(str(panel), []).append((_left(param), _right(param, ctx)))
    options = panels.pop("Options", [])
    if options:  # those that belong to no panel come last
        panels["Options"] = options
    if hasattr(command, "list_commands"):
        names = command.list_commands(ctx)
        panels = {"Commands": [(n, _first_line(command, ctx, n)) for n in names], **panels}
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


def _left(param: Any) -> str:
    """An option's names and the kind of its value, such as `--steps INTEGER`."""
    if param.param_type_name == "argument":
        return str(param.metavar or param.name).upper()
    names = ", ".join([*param.opts, *param.secondary_opts])
    if getattr(param, "is_flag", False):
        return names
    return f"{names} {param.metavar or str(param.type.name).upper()}"


def _right(param: Any, ctx: Any) -> str:
    """What an option is for, and its default."""
    text = _paragraph(getattr(param, "help", None) or "")
    if param.required:
        return f"{text} [required]".strip()
    default = param.default() if callable(param.default) else param.default
    is_unset = default is None or default in (False, "", [], ()) or "Sentinel" in repr(default)
    if is_unset or not getattr(param, "show_default", True):
        return text
    shown = ", ".join(map(str, default)) if isinstance(default, list | tuple) else default
    return f"{text} [default: {shown}]".strip()


def _first_line(command: Any, ctx: Any, name: str) -> str:
    subcommand = command.get_command(ctx, name)
    return str(subcommand.help or "").strip().splitlines()[0] if subcommand.help else ""


def _paragraph(text: str) -> str:
    """A docstring as one paragraph."""
    return " ".join(text.split())

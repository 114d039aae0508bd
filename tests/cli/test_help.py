"""Help of every command: its texts as they are written, whole words, within 80 columns."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from typer.main import get_command

from stateset_agents.cli import app
from stateset_agents.jobs.config import JobConfig


def commands(command: Any, *path: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield path, command
    for name, subcommand in getattr(command, "commands", {}).items():
        yield from commands(subcommand, *path, name)


EVERY = dict(commands(get_command(app)))


@pytest.fixture
def columns_80(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")


def shown(path: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as exit_:
        app([*path, "--help"])
    assert exit_.value.code == 0
    return capsys.readouterr().out


def words(text: str) -> list[str]:
    return re.sub(r"[│╭╮╰╯─]", " ", text).split()


@pytest.mark.usefixtures("columns_80")
@pytest.mark.parametrize("path", EVERY, ids=" ".join)
def test_lines_fit_80_columns_and_break_between_words(
    path: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    text = shown(path, capsys)
    assert max(len(line) for line in text.splitlines()) <= 80
    context = typer.Context(EVERY[path])
    for param in EVERY[path].get_params(context):
        for word in (getattr(param, "help", None) or "").split():
            assert word in words(text), f"{word!r} is broken or read as markup"


@pytest.mark.usefixtures("columns_80")
def test_nothing_is_read_as_markup_or_an_emoji(capsys: pytest.CaptureFixture[str]) -> None:
    assert "feedback:KEY:LOW:HIGH" in shown(("train",), capsys)


@pytest.mark.usefixtures("columns_80")
def test_defaults_and_texts_are_the_config_s(capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(words(shown(("train",), capsys)))
    for name in ("steps", "groups", "learning_rate", "beta", "tokens_per_batch", "model"):
        field = JobConfig.model_fields[name]
        description = " ".join((field.description or "").split())
        assert f"{description} [default: {field.default}]" in text

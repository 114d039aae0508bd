"""The check of the code's shape finds what it is for."""

from pathlib import Path

from scripts.check_shape import check_module, check_state


def test_a_long_function_and_too_many_parameters_are_found() -> None:
    text = "def long(a, b, c, d, e, f, g, h, i):\n" + "    a\n" * 80
    problems = list(check_module("trainers/new.py", text))
    assert any("81 lines" in problem for problem in problems)
    assert any("9 parameters" in problem for problem in problems)


def test_a_word_that_says_nothing_is_found_as_a_name_and_not_in_dialogue() -> None:
    assert list(check_module("trainers/new.py", "told = 1\n"))
    assert list(check_module("trainers/new.py", "def f(said):\n    return said\n"))
    assert not list(check_module("tools/wording/new.py", "told = 1\n"))
    assert not list(check_module("trainers/new.py", "held_out = 1\n"))


def test_state_of_a_module_is_found_unless_it_is_listed(tmp_path: Path) -> None:
    module = tmp_path / "new.py"
    module.write_text("_seen: dict[str, int] = {}\nNAMES = {}\n")
    name = ".".join(module.with_suffix("").parts)
    assert len(list(check_state(module, ""))) == 1
    assert not list(check_state(module, f"| `{name}._seen` |"))


def test_a_cache_without_a_bound_is_found(tmp_path: Path) -> None:
    module = tmp_path / "new.py"
    module.write_text("import functools\n\n\n@functools.cache\ndef f(x):\n    return x\n")
    assert len(list(check_state(module, ""))) == 1

"""The command line as a newcomer meets it: help, dry runs, and one line for what is wrong."""

import json
import socket
from pathlib import Path

import pytest

from tests.command_line import run


def test_version_names_the_environment() -> None:
    output = run("version")
    for name in ("stateset-agents", "python", "torch", "engines"):
        assert name in output


def test_dry_run_prints_the_resolved_configuration() -> None:
    output = run("train", "--dry-run", "--steps", "3")
    assert json.loads(output[: output.rindex("}") + 1])["steps"] == 3
    assert "nothing is missing" in output


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train", "--reward", "nowhere"], "--reward: expected shop, seed"),
        (["train", "--graph", "nowhere"], "--graph: expected service, sales"),
        (["train", "--graph", "no.such:graph"], "No module named 'no'"),
        (["train", "--model", "./nothing"], "--model"),
        (["train", "--scenarios", "missing.json"], "missing.json"),
        (["train", "--steps", "0"], "--steps: Input should be greater than or equal to 1, found 0"),
        (
            ["train", "--group-size", "1"],
            "--group-size: Input should be greater than or equal to 2",
        ),
        (
            ["train", "--base-url", "http://127.0.0.1:9/v1", "--steps", "1"],
            "Expected a policy server",
        ),
        (["train", "--resume", "nowhere"], "config.json"),
        (["train", "--resume", "nowhere", "--steps", "3"], "--steps: expected no other option"),
        (["evaluate", "--policy", "nowhere"], "adapter_config.json"),
        (["traces", "list", "nowhere"], "Expected a trace store"),
        (["scenarios", "generate", "--intent", "singing", "--out", "x"], "found 'singing'"),
        (["serve", "--policy", "nowhere"], "adapter_config.json"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    tmp_path: Path, arguments: list[str], expected: str
) -> None:
    error = run(*arguments, cwd=tmp_path, status=2)
    assert expected in error
    assert len(error.splitlines()) == 1
    assert not [p for p in tmp_path.rglob("*") if p.name in ("summary.json", "x")]


def test_a_scenario_file_is_refused_with_index_and_field(tmp_path: Path) -> None:
    (tmp_path / "my.json").write_text('[{"id": "a"}, {"intent": "x"}]')
    error = run("train", "--scenarios", "my.json", cwd=tmp_path, status=2)
    assert "my.json: scenario 1, field 'id'" in error


def test_a_port_in_use_is_refused(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for command in (["serve"], ["policy", "serve"]):
            assert f"port {port}" in run(*command, "--port", port, cwd=tmp_path, status=2)


def test_scenarios_are_written_and_checked(tmp_path: Path) -> None:
    run("scenarios", "generate", "--count", "12", "--out", "made.jsonl", cwd=tmp_path)
    output = run("scenarios", "check", "made.jsonl", cwd=tmp_path)
    assert "12 scenarios, 12 with a plan" in output
    lines = (tmp_path / "made.jsonl").read_text().splitlines()
    broken = json.loads(lines[0])
    broken["plan"] = []
    (tmp_path / "broken.jsonl").write_text(json.dumps({**broken, "id": "b"}))
    assert "0 with a plan" in run("scenarios", "check", "broken.jsonl", cwd=tmp_path)

"""The container's files name commands, settings and extras that exist; no container is built here."""

import json
import re
import subprocess
import sys
import tomllib

import yaml

from stateset_agents.settings import Settings
from tests import ROOT

DOCKERFILE = (ROOT / "deployment/Dockerfile").read_text()


def test_the_container_starts_a_command_that_exists() -> None:
    command = json.loads(re.findall(r"^CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)[0])
    assert command[0] == "stateset-agents"
    message = subprocess.run(
        [sys.executable, "-m", "stateset_agents", command[1], "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={"COLUMNS": "200", "TERM": "dumb"},
    ).stdout
    assert all(option in message for option in command if option.startswith("--"))


def test_the_container_installs_extras_and_reads_settings_that_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (extras,) = re.findall(r'"/src\[(.*)\]"', DOCKERFILE)
    assert set(extras.split(",")) <= set(project["optional-dependencies"])
    compose = yaml.safe_load((ROOT / "deployment/compose.yaml").read_text())
    named = set(compose["services"]["agents"]["environment"]) | {
        *re.findall(r"^ENV (\w+)=", DOCKERFILE, re.MULTILINE)
    }
    assert {name.removeprefix("STATESET_").lower() for name in named} <= set(Settings.model_fields)

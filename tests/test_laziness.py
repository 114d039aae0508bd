"""What stays unloaded: importing the package and asking for its version must cost nothing."""

import subprocess
import sys

HEAVY = (
    "torch",
    "transformers",
    "langgraph",
    "langchain_core",
    "litellm",
    "vllm",
    "fastapi",
    "openai",
)


def loaded_after(code: str) -> set[str]:
    program = f"{code}\nimport sys\nprint(*[m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return set(done.stdout.splitlines()[-1].split())


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert loaded_after("import stateset_agents") == set()


def test_the_command_line_loads_nothing_heavy_to_tell_its_version() -> None:
    code = "from stateset_agents import cli\ncli.version()"
    assert loaded_after(code) == set()


def test_rewards_need_no_torch() -> None:
    loaded = loaded_after("from stateset_agents import CompositeReward, HelpfulnessReward")
    assert "torch" not in loaded

"""Settings: environment variables `STATESET_*` and an optional YAML file named by STATESET_CONFIG."""

import os
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from stateset_agents.errors import BadInput


class Settings(BaseSettings):
    """Settings for all commands."""

    model_config = SettingsConfigDict(
        env_prefix="STATESET_", env_ignore_empty=True, frozen=True, extra="forbid"
    )

    api_key: SecretStr | None = None
    """Bearer key of `serve`."""
    runs: Path = Path("runs")
    """Where runs are written."""
    threads: int = Field(default=2, ge=1)
    """torch threads while training."""
    model: str = "policy"
    """The policy's name on that server, for `langgraph dev`."""
    judge_tokens: int | None = Field(default=None, ge=1)
    """Tokens that `--reward judge:…` may read and write, at most."""
    judge_usd: float | None = Field(default=None, gt=0)
    """The most US dollars that it may cost."""
    judge_concurrency: int = Field(default=8, ge=1)
    base_url: str | None = None
    """An OpenAI-compatible policy server, or several with commas between them; default: one is started (`engine`)."""
    policy_key: SecretStr | None = None
    """The policy server's key."""
    retry_seconds: float = Field(default=240.0, ge=0)
    """How long a job's call waits for an unreachable policy server; vLLM restarts within two minutes on two cores."""
    engine: Literal["embedded", "vllm", "auto"] = "embedded"
    """The engine that serves the policy: `auto` is vLLM if it is installed."""
    vllm: Path = Path(".venv-vllm")
    """The environment that vLLM is installed in (`policy install-vllm`)."""


def load_settings() -> Settings:
    """Environment over YAML over defaults. Raises BadInput with the setting's name."""
    values: dict[str, Any] = {}
    file = os.environ.get("STATESET_CONFIG")
    if file is not None:
        try:
            values = yaml.safe_load(Path(file).read_text()) or {}
        except (OSError, yaml.YAMLError) as error:
            raise BadInput(f"STATESET_CONFIG: expected a YAML file, found {error}.") from None
        if not isinstance(values, dict):
            raise BadInput(f"STATESET_CONFIG: expected settings by name in {file!r}.")
        prefix = "STATESET_"
        set_already = {
            name.removeprefix(prefix).lower()
            for name, value in os.environ.items()
            if name.startswith(prefix) and value
        }
        values = {name: value for name, value in values.items() if name not in set_already}
    try:
        return Settings(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise BadInput(f"Setting {name!r}: {first['msg']}, found {first['input']!r}.") from None


def policy_key() -> str:
    """The policy server's key, or ''."""
    key = load_settings().policy_key
    return key.get_secret_value() if key else ""

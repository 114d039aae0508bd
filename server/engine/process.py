"""How to start the embedded engine."""

import sys

from stateset_agents.errors import BadInput, StatesetError
from stateset_agents.server.options import ServerOptions
from stateset_agents.server.supervisor import Launch


def launch(model: str, options: ServerOptions, *, length: int | None = None) -> Launch:
    """The launch of the engine for the model at a path; `length`: the most tokens of a sequence, default 2,048. Raises BadInput if
    the model was not made for so many."""
    if length is not None:
        _check_length(model, length)
    command = [
        sys.executable, "-m", "stateset_agents.server.engine", "--model", model, "--name", options.name,
        "--host", options.host, "--port", str(options.port), "--threads", str(options.threads),
        "--slots", str(options.slots),
    ]  # fmt: skip
    for adapter, path in options.adapters.items():
        command += ["--adapter", f"{adapter}={path}"]
    for folder in options.adapters_from:
        command += ["--adapters-from", str(folder)]
    if length is not None:
        command += ["--max-model-len", str(length)]
    # Two processes share few cores: a thread that spins while it waits takes the other's time.
    environment = {"OMP_WAIT_POLICY": "passive", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    return Launch(
        name="the engine",
        command=tuple(command),
        url=options.url,
        seconds=120,
        environment=environment | ({"STATESET_POLICY_KEY": options.key} if options.key else {}),
        explain=_explain,
    )


def _check_length(model: str, length: int) -> None:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(model).get_text_config()
    except (OSError, ValueError):
        return  # the engine says what is wrong with the model
    limit = getattr(config, "max_position_embeddings", None)
    if limit is not None and length > limit:
        raise BadInput(
            f"--max-model-len: expected at most the {limit:,} tokens that the model was made for, found {length:,}."
        )


def _explain(code: int, lines: list[str]) -> StatesetError | None:
    return BadInput(lines[-1]) if code == 2 else None

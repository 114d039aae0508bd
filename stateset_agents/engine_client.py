"""Asks a policy server to load or drop adapters, and what it serves. vLLM's endpoints, over HTTP."""

from pathlib import Path
from typing import Any

import aiohttp

from stateset_agents.errors import PolicyUnreachable


async def load_adapter(base_url: str, name: str, path: Path) -> None:
    """Serve the adapter at `path` as `name`. Raises PolicyUnreachable with the server's reason."""
    await _ask(
        base_url, "/load_lora_adapter", {"lora_name": name, "lora_path": str(path.resolve())}
    )


async def serve_version(base_url: str, name: str, path: Path, before: int = 1) -> None:
    """Serve the adapter at `path` as `name`, such as `run-v7`, and drop versions of the same run but the
    `before` last ones: a server keeps a copy of the model, or a slot, for each."""
    served = await served_models(base_url)
    if name not in served:  # a run that is resumed may find its last version still there
        await load_adapter(base_url, name, path)
    run = name.rpartition("-v")[0]
    older = [other for other in served if other.rpartition("-v")[0] == run and other != name]
    for other in sorted(older, key=lambda version: int(version.rpartition("-v")[2]))[:-before]:
        await unload_adapter(base_url, other)


async def unload_adapter(base_url: str, name: str) -> None:
    """Stop serving `name`."""
    await _ask(base_url, "/unload_lora_adapter", {"lora_name": name})


async def served_models(base_url: str) -> list[str]:
    """Names that the server answers to, its base model first."""
    answer = await _ask(base_url, "/models", None)
    return [str(model["id"]) for model in answer["data"]]


async def _ask(base_url: str, path: str, body: dict[str, Any] | None) -> Any:
    where = base_url.rstrip("/") + path
    timeout = aiohttp.ClientTimeout(total=60)
    try:
        async with aiohttp.ClientSession(timeout=timeout) as session:
            method = "GET" if body is None else "POST"
            async with session.request(method, where, json=body) as response:
                if response.status != 200:
                    text = (await response.text())[:300]
                    raise PolicyUnreachable(f"{where} answered {response.status}: {text}")
                return await response.json() if body is None else None
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        raise PolicyUnreachable(
            f"Expected a policy server at {base_url}, found {type(error).__name__}: {error}. "
            "Start one with `stateset-agents policy serve`, or give --base-url."
        ) from None

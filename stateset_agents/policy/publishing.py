"""Versions of a policy on its servers: published on every one, kept while an episode reads them, then dropped. vLLM's endpoints."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

from stateset_agents.errors import BadInput, PolicyRefused, PolicyUnreachable
from stateset_agents.policy.pool import Server, Servers
from stateset_agents.policy.weight_files import read_header

PATIENCE = 300.0
"""Seconds that a new version waits for a server to come back, which may be starting again."""


async def served_models(servers: Servers) -> list[str]:
    """Names that the first server that is there answers to, its base model first."""
    return [str(model["id"]) for model in (await _first(servers, "/models"))["data"]]


async def publish(
    servers: Servers, name: str, path: Path, before: int = 1, patience: float = PATIENCE
) -> None:
    """Serve the adapter at `path` as `name`, such as `run-v7`, on every server, and drop versions of the same run that no episode
    reads but the `before` last ones: a server keeps a copy of the model, or a slot, for each.

    A server that is away is told when it is back. Raises BadInput where the adapter is not whole, PolicyRefused where a server does
    not take it, and PolicyUnreachable where none is there within `patience` seconds.
    """
    check_adapter(path)
    if servers.in_place is not None:
        servers.published.clear()  # one at a time
    servers.published[name] = path
    deadline = time.monotonic() + patience
    while True:
        found = await asyncio.gather(
            *(_told(servers, one, name) for one in servers.servers), return_exceptions=True
        )
        if bad := next((e for e in found if isinstance(e, BaseException) and not _away(e)), None):
            del servers.published[name]
            raise bad
        if None in found:
            break
        if time.monotonic() >= deadline:
            del servers.published[name]
            raise next(e for e in found if isinstance(e, BaseException))
        await asyncio.sleep(0.5)
    run = name.rpartition("-v")[0]
    known = set(servers.published)
    for one, error in zip(servers.servers, found, strict=True):
        if error is None:
            known |= set(await _on(servers, one))
    older = [other for other in known if run and other != name and _of(run, other)]
    for other in sorted(older, key=lambda version: int(version.rpartition("-v")[2]))[:-before]:
        if not servers.read(other):
            await retire(servers, other)


async def retire(servers: Servers, name: str) -> None:
    """Stop serving `name` wherever it is served."""
    servers.published.pop(name, None)
    for one in servers.servers:
        try:
            await servers.ask(one, "POST", "/unload_lora_adapter", {"lora_name": name})
        except PolicyRefused as refused:
            if "found 404" not in str(refused):
                raise
        except PolicyUnreachable:
            continue  # one that starts again knows it no more


def check_adapter(path: Path) -> None:
    """Raises BadInput where the folder holds no whole adapter, or whole model: a server may take half of one without a word."""
    if not path.is_dir():
        raise BadInput(f"Expected a PEFT adapter at {str(path)!r}, found no such folder.")
    config = path / "adapter_config.json"
    if config.is_file():
        try:
            json.loads(config.read_text())
        except ValueError as error:
            raise BadInput(
                f"Expected JSON in {str(config)!r}, found {error}. It was not written to its end; publish it again."
            ) from None
    weights = [*path.glob("adapter_model.safetensors"), *path.glob("model*.safetensors")]
    if not weights:
        raise BadInput(
            f"Expected weights (adapter_model.safetensors) in {str(path)!r}, found none."
        )
    index = path / "model.safetensors.index.json"
    if index.is_file():
        named = set(json.loads(index.read_text())["weight_map"].values())
        if missing := sorted(named - {file.name for file in weights}):
            raise BadInput(
                f"Expected {len(named)} files of weights in {str(path)!r}, found {missing[0]} missing. They were not written to their end; "
                "publish them again."
            )
    for file in weights:
        _check_whole(file)


def _check_whole(file: Path) -> None:
    if read_header(file) is None:
        raise BadInput(
            f"Expected the weights in {str(file)!r} to be whole, found {file.stat().st_size} bytes that are not what their header says. "
            "They were not written to their end; publish them again."
        )


async def _told(servers: Servers, one: Server, name: str) -> None:
    """A run that is resumed may find its last version still there; another adapter under its name is none of ours."""
    for model in (await servers.ask(one, "GET", "/models"))["data"]:
        if model["id"] == name:
            here = str(servers.published[name].resolve())
            if servers.in_place is None and model.get("root") not in (None, here):
                raise PolicyRefused(
                    f"Expected {name!r} to be free at {one.url}, found another adapter loaded already: {model['root']}."
                )
            return
    await servers.load(one, name)


async def _on(servers: Servers, one: Server) -> list[str]:
    try:
        return [str(model["id"]) for model in (await servers.ask(one, "GET", "/models"))["data"]]
    except PolicyUnreachable:
        return []


async def _first(servers: Servers, path: str) -> Any:
    for one in servers.servers[:-1]:
        try:
            return await servers.ask(one, "GET", path)
        except PolicyRefused:
            raise
        except PolicyUnreachable:
            continue
    return await servers.ask(servers.servers[-1], "GET", path)


def _of(run: str, name: str) -> bool:
    before, _, number = name.rpartition("-v")
    return before == run and number.isdigit()


def _away(error: BaseException) -> bool:
    return isinstance(error, PolicyUnreachable) and not isinstance(error, PolicyRefused)

"""`policy serve`: a policy on vLLM or the embedded engine, restarted when it dies, until stopped."""

import asyncio
import contextlib
import signal
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from stateset_agents.errors import BadInput
from stateset_agents.jobs.policy_server import running, split_weights
from stateset_agents.policy.capabilities import probe
from stateset_agents.policy.pool import pool_at
from stateset_agents.policy.transport import close_connections
from stateset_agents.server.launch import (
    EngineConfig,
    Weights,
    engine_of,
    gpu_shares,
    launch_of,
)
from stateset_agents.server.options import ServerOptions
from stateset_agents.server.supervisor import Launch, Supervised, port_is_free
from stateset_agents.settings import policy_key

LOOPBACK = ("127.0.0.1", "localhost", "::1")


async def serve_policy(config: EngineConfig, adapter: Path | None, options: ServerOptions) -> None:
    """Serve until stopped. Replicas take the ports after `options.port`. Raises BadInput and PolicyUnreachable if one cannot
    start, and the last error if all servers are given up."""
    if options.extra and engine_of(config.engine) != "vllm":
        raise BadInput(f"{options.extra[0]}: vLLM's options need --engine vllm.")
    if options.adapters_from and engine_of(config.engine) == "vllm":
        raise BadInput(
            "--adapters-from: used only by the embedded engine; vLLM loads adapters from anywhere."
        )
    if options.host not in LOOPBACK and not policy_key():
        raise BadInput(
            f"--host {options.host}: expected STATESET_POLICY_KEY to be set where others can reach the server, found no key."
        )
    for port in range(options.port, options.port + config.replicas):
        port_is_free(options.host, port)
    with tempfile.TemporaryDirectory() as folder:
        launches = _launches(config, adapter, options, Path(folder))
        count = f" {len(launches)} times" if len(launches) > 1 else ""
        _say(f"starting {launches[0].name}{count}")
        async with running(launches, Path(folder), _say) as servers:
            url = ",".join(launch.url for launch in launches)
            capabilities = await probe(pool_at(url, policy_key()), adapters=True)
            await close_connections()
            _say(f"policy {capabilities.model!r} at {url} (stop with Ctrl-C)")
            await _until_stopped(servers)
            _say("stopping")


def _launches(
    config: EngineConfig, adapter: Path | None, options: ServerOptions, folder: Path
) -> list[Launch]:
    whole, adapter = split_weights(config, adapter)
    if adapter is not None:
        options = replace(options, adapters={"policy-trained": str(adapter)})
    if whole is not None:
        options = replace(options, name="policy-trained")
    weights = Weights(whole=whole, later=[adapter] if adapter else [])
    return [
        launch_of(
            config,
            folder,
            replace(options, port=options.port + number),
            replace(weights, share=share),
        )
        for number, share in enumerate(gpu_shares(config))
    ]


async def _until_stopped(servers: Sequence[Supervised]) -> None:
    """Wait for SIGINT or SIGTERM. Raises the last error if every server is given up."""
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    while not stopped.is_set():
        broken = [server.broken for server in servers if server.broken]
        if len(broken) == len(servers):
            raise broken[-1]
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stopped.wait(), 0.5)


def _say(message: str) -> None:
    print(message, flush=True)

"""The policy server of a job: servers that run already, or an engine that is started and watched."""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from stateset_agents.policy.capabilities import probe, probe_template
from stateset_agents.policy.chat_model import Policy, policy_of
from stateset_agents.policy.pool import ReplicaPool, pool_at
from stateset_agents.policy.publishing import Publisher, served_models
from stateset_agents.policy.transport import close_connections
from stateset_agents.policy.weight_files import (
    InPlace,
    adapter_of_nothing,
    is_whole_model,
    model_folder,
    name_of,
)
from stateset_agents.server.launch import (
    EngineConfig,
    Weights,
    engine_of,
    gpu_shares,
    launch_of,
    slots_of,
)
from stateset_agents.server.options import ServerOptions
from stateset_agents.server.supervisor import Launch, Supervised, free_port, supervised
from stateset_agents.settings import load_settings, policy_key

Say = Callable[[str], None]
"""Called with a sentence for each event of the servers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyServer:
    """A job's lease of the replicas that serve its policy."""

    pool: ReplicaPool
    publisher: Publisher
    name: str
    """The version to ask for: the base model's, or the loaded adapter's."""

    def policy(self, *, exact: bool = True, retry_seconds: float | None = None) -> Policy:
        """The policy as a chat model. Its calls wait for unreachable replicas up to `retry_seconds`; default: the setting."""
        seconds = load_settings().retry_seconds if retry_seconds is None else retry_seconds
        return policy_of(self.pool, self.name, exact=exact, retry_seconds=seconds)

    async def serve_adapter(self, adapter: Path) -> str:
        """Load an adapter under a name made from its weights. Returns the name."""
        name = name_of(adapter)
        await self.publisher.publish(name, adapter)
        return name


@contextlib.asynccontextmanager
async def policy_server(
    config: EngineConfig, folder: Path, say: Say = lambda message: None, *, exact: bool = True,
    weights: Weights | None = None, training: bool = False, also_from: Sequence[Path] = (),
) -> AsyncIterator[PolicyServer]:  # fmt: skip
    """The servers of a config: the named ones, or an engine that is started, with `training` beside a trainer. Logs and files
    of the engine go to `folder`. With `exact` the servers are probed first. The embedded engine loads adapters from `folder`, and from below `also_from`.

    Raises BadInput if an engine cannot be started, PolicyRefused and NotExact if a server lacks an ability.
    """
    try:
        if config.base_url is not None:
            pool = pool_at(config.base_url, policy_key())
            with pool.lease():
                yield await _leased(pool, exact=exact, adapters=training)
            return
        weights, in_place = weights or Weights(), None
        if config.full and training and engine_of(config.engine) == "vllm":
            nothing = adapter_of_nothing(model_folder(config.model), folder / "in-place")
            in_place = InPlace(nothing, secrets.token_hex(16))
            weights = replace(weights, key=in_place.key)
        name = name_of(weights.whole) if weights.whole else "policy"
        launches = [
            launch_of(
                config,
                folder,
                ServerOptions(
                    port=free_port(),
                    name=name,
                    slots=slots_of(config),
                    adapters_from=(folder, *(path.parent for path in weights.later), *also_from),
                ),
                replace(weights, share=share),
            )
            for share in gpu_shares(config, training=training)
        ]
        async with running(launches, folder, say):
            pool = pool_at(",".join(launch.url for launch in launches), policy_key())
            with pool.lease():
                yield await _leased(pool, exact=exact, in_place=in_place)
    finally:
        await close_connections()


async def _leased(
    pool: ReplicaPool, *, exact: bool, adapters: bool = False, in_place: InPlace | None = None
) -> PolicyServer:
    publisher = Publisher(pool, in_place=in_place)
    capabilities = await probe(pool, adapters=adapters) if exact else None
    name = capabilities.model if capabilities is not None else (await served_models(pool))[0]
    if capabilities is None:
        await probe_template(pool, name)
    return PolicyServer(pool=pool, publisher=publisher, name=name)


@contextlib.asynccontextmanager
async def served_policy(
    config: EngineConfig, adapter: Path | None, folder: Path, say: Say = lambda message: None, *, exact: bool = True,
    later: Sequence[Path] = (),
) -> AsyncIterator[PolicyServer]:  # fmt: skip
    """Like `policy_server`, with an adapter loaded. `later` are adapters that will be loaded while it runs."""
    whole, adapter = split_weights(config, adapter)
    weights = Weights(whole=whole, later=[*later, *([adapter] if adapter is not None else [])])
    async with policy_server(config, folder, say, exact=exact, weights=weights) as server:
        if adapter is not None:
            server = replace(server, name=await server.serve_adapter(adapter))
        yield server


def split_weights(config: EngineConfig, adapter: Path | None) -> tuple[Path | None, Path | None]:
    """A whole model to start vLLM with, and the adapter to load afterwards."""
    if adapter is None or config.base_url is not None:
        return None, adapter
    starts_with_it = engine_of(config.engine) == "vllm" and is_whole_model(adapter)
    return (adapter, None) if starts_with_it else (None, adapter)


@contextlib.asynccontextmanager
async def running(
    launches: Sequence[Launch], folder: Path, say: Say
) -> AsyncIterator[list[Supervised]]:
    """Several servers, started at once; if one cannot start, the others are ended."""
    async with contextlib.AsyncExitStack() as stack:
        logs = [folder / f"engine{f'-{n + 1}' if n else ''}.log" for n in range(len(launches))]
        starts = [
            asyncio.create_task(stack.enter_async_context(supervised(launch, log, say)))
            for launch, log in zip(launches, logs, strict=True)
        ]
        try:
            yield await asyncio.gather(*starts)
        finally:
            for start in starts:
                start.cancel()
            await asyncio.gather(*starts, return_exceptions=True)

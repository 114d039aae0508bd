"""Counters of policy servers: Prometheus' text at `/metrics`, with vLLM's names, which the embedded engine also uses."""

import asyncio
import re
from dataclasses import dataclass

import aiohttp

from stateset_agents.errors import PolicyUnreachable
from stateset_agents.policy.pool import ReplicaPool
from stateset_agents.policy.replica import Replica
from stateset_agents.policy.transport import root_of, session_here

_LINE = re.compile(r"^vllm:(\w+)(?:\{[^}]*\})? (\S+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Metrics:
    """Sums over all replicas since their start."""

    running: int = 0
    """Running sequences."""
    sampled: int = 0
    """Tokens."""
    prompts: int = 0
    """Prompt tokens."""
    cached: int = 0
    """Prompt tokens that came out of the prefix cache."""

    def since(self, earlier: "Metrics") -> "Metrics":
        """The difference to `earlier`; the whole count if a replica was restarted since."""
        if self.prompts < earlier.prompts or self.sampled < earlier.sampled:
            return self
        return Metrics(
            running=self.running,
            sampled=self.sampled - earlier.sampled,
            prompts=self.prompts - earlier.prompts,
            cached=self.cached - earlier.cached,
        )

    @property
    def hit_rate(self) -> float | None:
        """The share of prompt tokens that came out of the prefix cache; None without prompts."""
        return self.cached / self.prompts if self.prompts else None


async def read_metrics(pool: ReplicaPool) -> Metrics:
    """Read all replicas. Raises PolicyUnreachable if one does not answer or has no counters."""
    each = await asyncio.gather(*(_read_one(pool, replica) for replica in pool.replicas))
    names = Metrics.__dataclass_fields__
    return Metrics(*(int(sum(getattr(metrics, name) for metrics in each)) for name in names))


async def _read_one(pool: ReplicaPool, replica: Replica) -> Metrics:
    address = f"{root_of(replica.url)}/metrics"
    try:
        async with session_here().get(address, headers=pool.transport.headers) as answer:
            text = await answer.text()
            if answer.status != 200:
                raise PolicyUnreachable(f"Expected counts at {address}, found {answer.status}.")
    except (aiohttp.ClientError, TimeoutError) as error:
        raise PolicyUnreachable(f"Expected counts at {address}, found {error}.") from None
    counts: dict[str, float] = {}
    for name, value in _LINE.findall(text):
        counts[name] = counts.get(name, 0.0) + float(value)
    return Metrics(
        running=int(counts.get("num_requests_running", 0) + counts.get("num_requests_waiting", 0)),
        sampled=int(counts.get("generation_tokens_total", 0)),
        prompts=int(counts.get("prefix_cache_queries_total", 0)),
        cached=int(counts.get("prefix_cache_hits_total", 0)),
    )

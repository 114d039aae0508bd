"""What policy servers count: Prometheus' text at `/metrics`, under vLLM's names, which the embedded engine uses too."""

import asyncio
import re
from dataclasses import dataclass

import aiohttp

from stateset_agents.errors import PolicyUnreachable
from stateset_agents.policy.pool import Server, Servers
from stateset_agents.policy.transport import session_here

_LINE = re.compile(r"^vllm:(\w+)(?:\{[^}]*\})? (\S+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Meters:
    """Sums over all servers, since each was started."""

    running: int = 0
    """Sequences under way now."""
    sampled: int = 0
    """Tokens."""
    prompts: int = 0
    """Tokens of prompts."""
    cached: int = 0
    """Of them, those that were not computed again."""

    def since(self, earlier: "Meters") -> "Meters":
        """What came on top; all of it where a server was started anew meanwhile."""
        if self.prompts < earlier.prompts or self.sampled < earlier.sampled:
            return self
        return Meters(
            running=self.running,
            sampled=self.sampled - earlier.sampled,
            prompts=self.prompts - earlier.prompts,
            cached=self.cached - earlier.cached,
        )

    @property
    def hit_rate(self) -> float | None:
        """The share of prompt tokens that came out of the prefix cache; None where nothing was asked."""
        return self.cached / self.prompts if self.prompts else None


async def read_meters(servers: Servers) -> Meters:
    """Raises PolicyUnreachable where a server is away, or counts nothing."""
    found = await asyncio.gather(*(_read(servers, one) for one in servers.servers))
    return Meters(
        *(int(sum(getattr(one, name) for one in found)) for name in Meters.__dataclass_fields__)
    )


async def _read(servers: Servers, one: Server) -> Meters:
    where = f"{one.url.removesuffix('/v1')}/metrics"
    try:
        async with session_here().get(where, headers=servers.headers) as answer:
            text = await answer.text()
            if answer.status != 200:
                raise PolicyUnreachable(f"Expected counts at {where}, found {answer.status}.")
    except (aiohttp.ClientError, TimeoutError) as error:
        raise PolicyUnreachable(f"Expected counts at {where}, found {error}.") from None
    counts: dict[str, float] = {}
    for name, value in _LINE.findall(text):
        counts[name] = counts.get(name, 0.0) + float(value)
    return Meters(
        running=int(counts.get("num_requests_running", 0) + counts.get("num_requests_waiting", 0)),
        sampled=int(counts.get("generation_tokens_total", 0)),
        prompts=int(counts.get("prefix_cache_queries_total", 0)),
        cached=int(counts.get("prefix_cache_hits_total", 0)),
    )

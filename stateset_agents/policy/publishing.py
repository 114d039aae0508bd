"""Versions of a policy on its replicas: published on every one, kept while an episode uses them, then dropped. vLLM's endpoints."""

import asyncio
import time
from pathlib import Path
from typing import Any

from stateset_agents.errors import PolicyRefused, PolicyUnreachable
from stateset_agents.policy import transport
from stateset_agents.policy.pool import ReplicaPool
from stateset_agents.policy.replica import Replica
from stateset_agents.policy.weight_files import InPlace, check_adapter

RETRY_SECONDS = 300.0
"""How long publishing waits for a replica that does not answer and may be restarting, in seconds."""
RELOAD_SECONDS = 600.0
"""How long a replica may take to load a whole model, in seconds."""


class Publisher:
    """Publishes versions to the replicas of a pool, and again to a restarted one.

    `in_place`: whole models are published, and each replica holds one at a time.
    """

    def __init__(self, pool: ReplicaPool, *, in_place: InPlace | None = None) -> None:
        self.pool = pool
        self.in_place = in_place
        self.published: dict[str, Path] = {}
        """Versions that every replica must serve, with their weights."""
        pool.restore = self.restore

    async def publish(
        self, name: str, path: Path, before: int = 1, retry_seconds: float = RETRY_SECONDS
    ) -> None:
        """Serve the weights at `path` as `name`, such as `run-v7`, on every replica. Versions of the same run that no episode
        uses are dropped, but for the `before` last ones: a replica keeps a copy of the model, or a slot, for each.

        A replica that does not answer gets the version when it is back. Raises BadInput if the weights are incomplete,
        PolicyRefused if a replica refuses them, and PolicyUnreachable if none answers within `retry_seconds`.
        """
        check_adapter(path)
        if self.in_place is not None:
            self.published.clear()  # one at a time
        self.published[name] = path
        deadline = time.monotonic() + retry_seconds
        while True:
            results = await asyncio.gather(
                *(self._load_new(replica, name) for replica in self.pool.replicas),
                return_exceptions=True,
            )
            errors = [result for result in results if isinstance(result, BaseException)]
            refused = next((error for error in errors if not _is_unreachable(error)), None)
            if refused is None and len(errors) < len(results):
                break  # one that answers is enough
            if refused is not None or time.monotonic() >= deadline:
                del self.published[name]
                raise refused or errors[0]
            await asyncio.sleep(0.5)
        reached = [
            replica
            for replica, result in zip(self.pool.replicas, results, strict=True)
            if not isinstance(result, BaseException)
        ]
        await self._drop_older(name, reached, before)

    async def _drop_older(self, name: str, reached: list[Replica], before: int) -> None:
        run = name.rpartition("-v")[0]
        known = set(self.published)
        for replica in reached:
            known |= await self._served_or_none(replica)
        older = [other for other in known if run and other != name and _is_of(run, other)]
        for other in sorted(older, key=lambda version: int(version.rpartition("-v")[2]))[:-before]:
            if not self.pool.is_pinned(other):
                await self.retire(other)

    async def retire(self, name: str) -> None:
        """Stop serving `name` wherever it is served."""
        self.published.pop(name, None)
        for replica in self.pool.replicas:
            try:
                await self._ask(replica, "POST", "/unload_lora_adapter", {"lora_name": name})
            except PolicyRefused as refused:
                if refused.status != 404:
                    raise
            except PolicyUnreachable:
                continue  # one that starts again does not know it any more

    async def restore(self, replica: Replica, name: str | None) -> bool:
        """Load the version `name`, or all missing versions, into a replica. False if `name` is not published."""
        if name is not None:
            if name not in self.published:
                return False
            await self._load(replica, name)
            return True
        if self.published:
            served = await self._served(replica)
            for missing in [other for other in self.published if other not in served]:
                try:
                    await self._load(replica, missing)
                except PolicyRefused:
                    continue  # who asks for it is told; the others are served
        return True

    async def _load_new(self, replica: Replica, name: str) -> None:
        """Load a new version. After a resume it may still be there; another adapter under its name is refused."""
        for model in (await self._ask(replica, "GET", "/models"))["data"]:
            if model["id"] == name:
                path = str(self.published[name].resolve())
                if self.in_place is None and model.get("root") not in (None, path):
                    raise PolicyRefused(
                        f"Expected {name!r} to be free at {replica.url}, found another adapter loaded already: {model['root']}."
                    )
                return
        await self._load(replica, name)

    async def _load(self, replica: Replica, name: str) -> None:
        """Load a published version into one replica, only once for concurrent requests; not if it was retired meanwhile."""
        while not replica.loading.acquire(blocking=False):
            await asyncio.sleep(0.02)
        try:
            path = self.published.get(name)
            if path is None or name in await self._served(replica):
                return
            if self.in_place is not None:
                await self._put_in_place(replica, path, self.in_place, name)
                return
            body = {"lora_name": name, "lora_path": str(path.resolve())}
            await self._ask(replica, "POST", "/load_lora_adapter", body)
        finally:
            replica.loading.release()

    async def _put_in_place(
        self, replica: Replica, weights: Path, in_place: InPlace, name: str
    ) -> None:
        """Replace a replica's whole model. Other versions' names are unloaded first; running answers are completed, and later
        calls wait. If it fails the replica stays paused, so that no call is answered with unknown weights; the next try
        continues from there."""
        for model in (await self._ask(replica, "GET", "/models"))["data"]:
            if model.get("parent"):
                body = {"lora_name": model["id"]}
                await self._ask(replica, "POST", "/unload_lora_adapter", body)
        seconds = transport.ANSWER_SECONDS
        await self._ask(replica, "POST", "/pause?mode=wait", seconds=seconds)
        call = {"method": "put_in_place", "args": [str(weights.resolve())]}
        await self._ask(replica, "POST", "/collective_rpc", call, seconds=RELOAD_SECONDS)
        reset = await self._ask(replica, "POST", "/reset_prefix_cache")
        if not reset["success"]:
            raise PolicyUnreachable(
                f"Expected {replica.url} to empty its prefix cache, found that it is in use. Nobody else may call it while it is trained."
            )
        body = {"lora_name": name, "lora_path": str(in_place.nothing)}
        await self._ask(replica, "POST", "/load_lora_adapter", body)
        await self._ask(replica, "POST", "/resume")

    async def _served(self, replica: Replica) -> set[str]:
        answer = await self._ask(replica, "GET", "/models")
        return {str(model["id"]) for model in answer["data"]}

    async def _served_or_none(self, replica: Replica) -> set[str]:
        try:
            return await self._served(replica)
        except PolicyUnreachable:
            return set()

    async def _ask(
        self, replica: Replica, method: str, path: str, body: dict[str, Any] | None = None, seconds: float = 60
    ) -> Any:  # fmt: skip
        key = self.in_place.key if self.in_place is not None else ""
        guarded = key and path.partition("?")[0] in transport.WEIGHTS_PATHS
        headers = {"x-weights-key": key} if guarded else None
        return await self.pool.transport.request(
            replica.url, method, path, body, headers=headers, seconds=seconds
        )


async def served_models(pool: ReplicaPool) -> list[str]:
    """Model names of the first replica that answers, its base model first. Raises PolicyUnreachable if none answers."""
    for replica in pool.replicas[:-1]:
        try:
            return await _names_at(pool, replica)
        except PolicyRefused:
            raise
        except PolicyUnreachable:
            continue
    return await _names_at(pool, pool.replicas[-1])


async def _names_at(pool: ReplicaPool, replica: Replica) -> list[str]:
    models = await pool.transport.request(replica.url, "GET", "/models")
    return [str(model["id"]) for model in models["data"]]


def _is_of(run: str, name: str) -> bool:
    before, _, number = name.rpartition("-v")
    return before == run and number.isdigit()


def _is_unreachable(error: BaseException) -> bool:
    return isinstance(error, PolicyUnreachable) and not isinstance(error, PolicyRefused)

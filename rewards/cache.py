"""A cache of scores, so that the same trace is not judged twice."""

import asyncio
import hashlib
import json
import sqlite3
from collections.abc import Sequence
from pathlib import Path

from stateset_agents.errors import BadInput
from stateset_agents.reward import Reward, Score, declaration_of, scorable, version_of
from stateset_agents.trace import Trace


class CachedReward:
    """A reward whose scores are cached in a SQLite file, keyed by the reward's name and version and by the content that it
    reads. None is not cached. A reward that compares is keyed by its whole group."""

    def __init__(self, reward: Reward, place: Path) -> None:
        self.reward, self.declaration, self.name = reward, declaration_of(reward), reward.name
        self._version = version_of(reward)  # once: a reward may count what it does
        try:
            self._db = sqlite3.connect(
                place, check_same_thread=False, timeout=30, isolation_level=None
            )
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS scores(key TEXT PRIMARY KEY, score TEXT NOT NULL)"
            )
        except sqlite3.DatabaseError as error:
            raise BadInput(
                f"Expected a file of scores at {str(place)!r}, found: {error}."
            ) from None

    async def __call__(self, traces: Sequence[Trace]) -> list[Score | None]:
        keys = await asyncio.to_thread(self._keys, traces)
        kept = {key: self._kept(key) for key in dict.fromkeys(keys)}
        missing = [n for n, key in enumerate(keys) if kept[key] is None]
        if self.declaration.compares and missing:
            missing = list(range(len(traces)))
        fresh = [
            n
            for place, n in enumerate(missing)
            if keys[n] not in {keys[m] for m in missing[:place]}
        ]
        for n, score in zip(
            fresh, await self.reward([traces[n] for n in fresh]) if fresh else [], strict=True
        ):
            kept[keys[n]] = score
            if score is not None:
                row = (keys[n], score.model_dump_json())
                self._db.execute("INSERT OR REPLACE INTO scores VALUES(?, ?)", row)
        return [kept[key] for key in keys]

    def close(self) -> None:
        self._db.close()

    def _kept(self, key: str) -> Score | None:
        row = self._db.execute("SELECT score FROM scores WHERE key = ?", (key,)).fetchone()
        return None if row is None else Score.model_validate_json(row[0])

    def _keys(self, traces: Sequence[Trace]) -> list[str]:
        include = {*self.declaration.reads, "status"} if self.declaration.reads else None
        read = [
            json.dumps(
                [scorable(t), t.model_dump(mode="json", include=include, exclude={"id"})],
                sort_keys=True,
            )
            for t in traces
        ]
        group = "\n".join(read) if self.declaration.compares else ""
        about = f"{self.name}@{self._version}"
        return [
            hashlib.sha256(
                "\n".join((about, str(n) if group else "", content, group)).encode(errors="replace")
            ).hexdigest()
            for n, content in enumerate(read)
        ]

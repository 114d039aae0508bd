"""Versions on every replica: kept while an episode uses them, given again to a replica that lost them."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from stateset_agents.errors import BadInput
from stateset_agents.policy.publishing import Publisher
from stateset_agents.policy.weight_files import check_adapter
from tests.policy_double import (
    BODY,
    doubles,
    pooled,
    small_adapter,
)


async def test_a_server_that_is_back_is_given_its_versions_before_it_is_asked(
    tmp_path: Path,
) -> None:
    async with doubles(1) as (server,):
        servers = pooled([server])
        publisher = Publisher(servers)
        await publisher.publish("run-v1", small_adapter(tmp_path / "one"))
        assert server.versions == {"run-v1": str(tmp_path / "one")}
        await server.stop()
        body = {**BODY, "model": "run-v1"}
        call = asyncio.create_task(servers.post("/chat/completions", body, retry_seconds=20))
        await asyncio.sleep(0.5)
        await server.start()
        _, sent = await call
        assert sent.tries > 1
        assert server.versions == {"run-v1": str(tmp_path / "one")}


async def test_a_server_that_forgot_a_version_meanwhile_is_told_again(tmp_path: Path) -> None:
    async with doubles(1) as (server,):
        servers = pooled([server])
        publisher = Publisher(servers)
        await publisher.publish("run-v1", small_adapter(tmp_path / "one"))
        server.versions.clear()  # it died and came back between two calls
        body_back, _ = await servers.post(
            "/chat/completions", {**BODY, "model": "run-v1"}, retry_seconds=10
        )
        assert body_back["model"] == "run-v1"


async def test_versions_stay_while_an_episode_reads_them(tmp_path: Path) -> None:
    async with doubles(2) as made:
        servers = pooled(made)
        publisher = Publisher(servers)
        for number in range(4):
            await publisher.publish(f"run-v{number}", small_adapter(tmp_path / str(number)))
            if number == 1:
                pin = servers.pin(["run-v1"])
                pin.__enter__()
        for double in made:
            assert list(double.versions) == ["run-v1", "run-v2", "run-v3"]
        pin.__exit__(None, None, None)
        await publisher.publish("run-v4", small_adapter(tmp_path / "4"))
        await publisher.publish("other-v9", small_adapter(tmp_path / "9"))
        for double in made:
            assert list(double.versions) == ["run-v3", "run-v4", "other-v9"]
        await publisher.retire("other-v9")
        assert all(list(double.versions) == ["run-v3", "run-v4"] for double in made)


async def test_a_version_is_published_where_a_server_is_away_and_told_when_it_is_back(
    tmp_path: Path,
) -> None:
    async with doubles(2) as made:
        servers = pooled(made)
        publisher = Publisher(servers)
        await made[1].stop()
        await publisher.publish("run-v1", small_adapter(tmp_path / "1"))
        assert list(made[0].versions) == ["run-v1"]
        await made[1].start()
        body = {**BODY, "model": "run-v1"}
        await asyncio.gather(
            *(servers.post("/chat/completions", body, retry_seconds=5) for _ in range(8))
        )
        await made[0].stop()
        await servers.post("/chat/completions", body, retry_seconds=20)
        assert list(made[1].versions) == ["run-v1"]
        await made[0].start()


@pytest.mark.parametrize(
    ("harm", "error"),
    [
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "found none"),
        (lambda folder: cut(folder / "adapter_model.safetensors"), "to be whole"),
        (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b""), "to be whole"),
        (lambda folder: (folder / "adapter_config.json").write_text("{"), "Expected JSON"),
    ],
)
async def test_a_half_written_adapter_is_named(harm: Any, error: str, tmp_path: Path) -> None:
    folder = small_adapter(tmp_path / "adapter")
    check_adapter(folder)
    harm(folder)
    async with doubles(1) as (server,):
        with pytest.raises(BadInput, match=error):
            await Publisher(pooled([server])).publish("run-v1", folder)
        assert not server.versions


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


async def test_a_version_is_loaded_once_however_many_ask_for_it(tmp_path: Path) -> None:
    async with doubles(1) as (server,):
        servers = pooled([server])
        publisher = Publisher(servers)
        await publisher.publish("run-v1", small_adapter(tmp_path / "one"))
        server.versions.clear()
        server.loads = 0
        body = {**BODY, "model": "run-v1"}
        await asyncio.gather(
            *(servers.post("/chat/completions", body, retry_seconds=10) for _ in range(16))
        )
        assert server.loads == 1

"""Adapters and whole models on a policy server: loaded beside the base, put in place of one another, dropped."""

import asyncio
from pathlib import Path

import pytest
import torch

from stateset_agents.errors import BadInput, PolicyRefused
from stateset_agents.policy.pool import ReplicaPool
from stateset_agents.policy.publishing import Publisher, served_models
from stateset_agents.policy.weight_files import SEED_POLICY, InPlace, adapter_of_nothing
from stateset_agents.server.engine.models import load_base
from stateset_agents.server.supervisor import Supervised
from tests.conftest import WEIGHTS_KEY
from tests.engine_client import MESSAGES, an_adapter, ask, plain_logprobs, post, reported


async def test_an_adapter_is_served_beside_the_base_and_dropped(
    served: str, tmp_path: Path
) -> None:
    servers = ReplicaPool([served])
    publisher = Publisher(servers)
    adapter = an_adapter(tmp_path / "adapter", str(SEED_POLICY))
    await publisher.publish("tuned", adapter)
    assert "tuned" in await served_models(servers)
    before, tuned = await asyncio.gather(ask(served), ask(served, model="tuned"))
    assert tuned["model"] == "tuned"
    sampled = tuned["choices"][0]["token_ids"]
    wanted = plain_logprobs(tuned["prompt_token_ids"], sampled, adapter)
    torch.testing.assert_close(reported(tuned), wanted, rtol=0, atol=1e-3)
    await publisher.publish("tuned", adapter)  # as a run that is resumed does
    other = an_adapter(tmp_path / "other", str(SEED_POLICY), scale=0.1)
    with pytest.raises(PolicyRefused, match="loaded already"):
        await publisher.publish("tuned", other)
    await publisher.retire("tuned")
    assert "tuned" not in await served_models(servers)
    after = await ask(served)
    torch.testing.assert_close(reported(before), reported(after), rtol=0, atol=1e-3)


async def test_the_base_answers_without_adapters_also_beside_them_and_after_many(
    served: str, tmp_path: Path
) -> None:
    """vLLM's own operations for the CPU put the last slot's adapter on the base model's tokens, once every slot was used."""
    servers = ReplicaPool([served])
    publisher = Publisher(servers)
    names = [f"one-of-{number}" for number in range(5)]
    for number, name in enumerate(names):
        adapter = an_adapter(tmp_path / name, str(SEED_POLICY), scale=0.1 + number / 100)
        await publisher.publish(name, adapter)
    await asyncio.gather(*(ask(served, model=name, max_tokens=4) for name in names))
    alone = await ask(served)
    beside, *_ = await asyncio.gather(ask(served), *(ask(served, model=name) for name in names))
    for answer in (alone, beside):
        sampled = answer["choices"][0]["token_ids"]
        wanted = plain_logprobs(answer["prompt_token_ids"], sampled)
        torch.testing.assert_close(reported(answer), wanted, rtol=0, atol=1e-3)
    for name in names:
        await publisher.retire(name)


def a_whole_model(folder: Path, seed: int) -> Path:
    """The seed policy with other weights, in every tensor."""
    model, _ = load_base(str(SEED_POLICY))
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * parameter.std() * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


async def test_whole_models_are_put_in_place_of_one_another_under_names_of_their_own(
    vllm_server: Supervised, tmp_path: Path
) -> None:
    """vLLM holds one at a time: an answer under a version's name is that version's, or none."""
    servers, url = ReplicaPool([vllm_server.url]), vllm_server.url
    nothing = adapter_of_nothing(SEED_POLICY, tmp_path / "nothing")
    publisher = Publisher(servers, in_place=InPlace(nothing, WEIGHTS_KEY))
    for path in ("/collective_rpc", "/pause", "/server_info"):
        await post(url.removesuffix("/v1"), path, {"method": "put_in_place"}, status=403)
    ids = (await ask(url))["prompt_token_ids"]  # its prefix is in the cache
    try:
        for step in (1, 2):
            weights = a_whole_model(tmp_path / str(step), step)
            await publisher.publish(f"run-v{step}", weights)
            answer = await ask(url, model=f"run-v{step}")
            assert answer["model"] == f"run-v{step}"
            assert answer["prompt_token_ids"] == ids
            sampled = answer["choices"][0]["token_ids"]
            wanted = plain_logprobs(ids, sampled, base=weights)
            torch.testing.assert_close(reported(answer), wanted, rtol=0, atol=1e-3)
        assert "run-v1" not in await served_models(servers)
        with pytest.raises(PolicyRefused, match="run-v1"):
            await servers.post("/chat/completions", {"model": "run-v1", "messages": MESSAGES})
        half = a_whole_model(tmp_path / "half", 3) / "model.safetensors"
        half.write_bytes(half.read_bytes()[:-100])
        with pytest.raises(BadInput, match="to be whole"):
            await publisher.publish("run-v3", half.parent)
        again = await ask(url, model="run-v2")
        assert again["choices"][0]["token_ids"] == sampled
    finally:
        await publisher.publish("run-v4", SEED_POLICY)
        await publisher.retire("run-v4")
    again = await ask(url)
    wanted = plain_logprobs(ids, again["choices"][0]["token_ids"])
    torch.testing.assert_close(reported(again), wanted, rtol=0, atol=1e-3)


async def test_an_adapter_of_another_base_is_refused(served: str, tmp_path: Path) -> None:
    model, _ = load_base(str(SEED_POLICY))
    model.config.hidden_size *= 2
    other = type(model)(model.config)
    other.save_pretrained(tmp_path / "other")
    adapter = an_adapter(tmp_path / "adapter", str(tmp_path / "other"))
    with pytest.raises(PolicyRefused):
        await Publisher(ReplicaPool([served])).publish("misfit", adapter)
    assert (await ask(served))["choices"]
    assert "misfit" not in await served_models(ReplicaPool([served]))


async def test_a_dropped_adapters_cache_is_not_used_by_its_successor(
    served: str, tmp_path: Path
) -> None:
    servers = ReplicaPool([served])
    publisher = Publisher(servers)
    for number, scale in enumerate((0.05, 0.1)):
        adapter = an_adapter(tmp_path / str(number), str(SEED_POLICY), scale=scale)
        await publisher.publish("same-name", adapter)
        answer = await ask(served, model="same-name")
        sampled = answer["choices"][0]["token_ids"]
        wanted = plain_logprobs(answer["prompt_token_ids"], sampled, adapter)
        torch.testing.assert_close(reported(answer), wanted, rtol=0, atol=1e-3)
        await publisher.retire("same-name")

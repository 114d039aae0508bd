"""All weights trained, on a real vLLM: each version is put in place of the one before it."""

import json
from pathlib import Path

import pytest

from stateset_agents.jobs.config import check_config
from stateset_agents.jobs.policy_server import served_policy
from stateset_agents.jobs.run_folder import new_run
from stateset_agents.jobs.train import train_job
from stateset_agents.policy.weight_files import find_adapter, name_of


@pytest.mark.usefixtures("vllm_is_there")
async def test_what_is_sampled_after_each_step_is_of_the_weights_it_left(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    values = {"full": True, "engine": "vllm", "steps": 2, "groups": 2, "group_size": 4, "held_out": 2,
              "learning_rate": 1e-3, "concurrency": 8, "threads": 1, "log": ()}  # fmt: skip
    summary = await train_job(check_config(values), run, lambda event: None)
    assert summary["steps"] == 2
    for line in map(json.loads, (run / "log.jsonl").read_text().splitlines()):
        assert line["ratio"] == pytest.approx(1, abs=1e-4)
        assert line["sampler_kl"] < 1e-6
    # And it is served as it is: vLLM starts with the weights themselves.
    config = check_config({"engine": "vllm"})
    async with served_policy(config, find_adapter(run), tmp_path) as server:
        answer = await server.policy().ainvoke("hello")
    assert answer.response_metadata["model_name"] == server.name == name_of(find_adapter(run))

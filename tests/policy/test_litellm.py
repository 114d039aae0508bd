"""Baselines of any provider, through litellm; here the provider is an engine of ours behind OpenAI's protocol."""

from pathlib import Path

import pytest
from langchain_core.messages import HumanMessage

from stateset_agents.cli.checks import _check_model
from stateset_agents.errors import BadInput, ContextFull, PolicyRefused, PolicyUnreachable
from stateset_agents.jobs.config import check_config
from stateset_agents.jobs.evaluate import evaluate_job
from stateset_agents.jobs.run_folder import new_run
from stateset_agents.policy.litellm import ProviderPolicy
from stateset_agents.traces.store import TraceStore


async def test_a_providers_model_is_measured_and_its_traces_are_text(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    config = check_config({"model": "litellm:openai/policy", "base_url": engine, "held_out": 6})
    run = new_run(tmp_path)
    result = await evaluate_job(config, run, None, 0.0, lambda event: None)
    assert result.failed == 0
    with TraceStore(run / "traces.db") as store:
        traces = list(store.traces())
    assert {trace.exactness for trace in traces} == {"text"}
    assert any(trace.tool_calls for trace in traces)


async def test_what_a_provider_refuses_is_typed(
    engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    with pytest.raises(PolicyRefused, match="nobody"):
        await ProviderPolicy(provider_model="openai/nobody", base_url=engine).ainvoke("hello")
    policy = ProviderPolicy(provider_model="openai/policy", base_url=engine)
    with pytest.raises(ContextFull):
        await policy.ainvoke([HumanMessage("a b " * 3000)])
    unreachable = ProviderPolicy(provider_model="openai/policy", base_url="http://127.0.0.1:9/v1")
    with pytest.raises(PolicyUnreachable):
        await unreachable.ainvoke("hello")


def test_a_providers_model_is_not_trained() -> None:
    with pytest.raises(BadInput, match="evaluated but not trained"):
        _check_model("litellm:openai/gpt-x")

"""Tokens are recorded exactly and never enter messages; a failure is recorded as one."""

from typing import Any, TypedDict

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import HumanMessage
from langgraph.graph import END, START, StateGraph
from langgraph.types import Send
from transformers import AutoTokenizer

from stateset_agents.graphs.custom import CustomGraph
from stateset_agents.graphs.rollout import play_episode
from stateset_agents.nodes.oracle import Oracle
from stateset_agents.policy.chat_model import connect
from stateset_agents.policy.weight_files import SEED_POLICY
from stateset_agents.scenario import Act, Scenario
from stateset_agents.trace import Sampling
from stateset_agents.traces.recorder import Recorder
from stateset_agents.traces.sink import CallBuffer
from stateset_agents.trajectory import trajectory


async def test_an_episode_is_recorded_exactly(engine: str, development: list[Scenario]) -> None:
    policy = connect(engine, "policy")
    trace = await play_episode(development[0], policy, Sampling(version="policy", seed=1))
    assert trace.status == "completed"
    assert trace.exactness == "exact"
    assert trajectory(trace).tokens > 0
    for before, after in zip(trace.model_calls, trace.model_calls[1:], strict=False):
        seen = (*before.prompt_ids, *before.sampled_ids)
        assert after.prompt_ids[: len(seen)] == seen
    assert "logprob" not in str(trace.messages)
    assert "token_ids" not in str(trace.messages)


async def test_the_same_seed_gives_the_same_episode(
    engine: str, development: list[Scenario]
) -> None:
    policy = connect(engine, "policy")
    sampling = Sampling(version="policy", seed=7)
    first, two = [await play_episode(development[1], policy, sampling) for _ in range(2)]
    assert [c.sampled_ids for c in first.model_calls] == [c.sampled_ids for c in two.model_calls]


async def test_a_model_without_ids_gives_a_text_trace(development: list[Scenario]) -> None:
    trace = await play_episode(development[0], Oracle(plan=development[0].plan), Sampling())
    assert trace.exactness == "text"
    assert trace.goal_score is not None
    assert trace.goal_score.success


async def test_a_dead_server_is_a_failed_trace_and_not_a_crash(development: list[Scenario]) -> None:
    trace = await play_episode(
        development[0], connect("http://127.0.0.1:9/v1", "policy"), Sampling()
    )
    assert trace.status == "failed"
    assert trace.error is not None
    assert "127.0.0.1:9" in trace.error
    assert trace.model_calls[0].error is not None


TOPICS = ["Where is my order?", "Cancel it.", "Is the oak lamp in stock?"]


class State(TypedDict, total=False):
    topic: str
    answer: str


async def test_samples_of_a_fan_out_stay_apart(engine: str) -> None:
    """Three branches ask something each: every call keeps its own tokens and namespace."""

    def build(policy: BaseChatModel) -> Any:
        async def draft(state: State) -> State:
            await policy.ainvoke([("user", state["topic"])])
            return {}

        graph = StateGraph(State)
        graph.add_node("draft", draft)
        graph.add_conditional_edges(START, lambda s: [Send("draft", {"topic": t}) for t in TOPICS])
        graph.add_edge("draft", END)
        return graph.compile()

    rollout = CustomGraph(build, "fan").play_episode
    scenario = Scenario(id="f", input={"topic": "all"})
    trace = await rollout(scenario, connect(engine, "policy"), Sampling(version="policy"))
    assert len(trace.model_calls) == 3
    assert len({call.response_id for call in trace.model_calls}) == 3
    assert len({call.namespace for call in trace.model_calls}) == 3
    assert len(trajectory(trace).rows) == 3
    tokenizer = AutoTokenizer.from_pretrained(SEED_POLICY)
    prompts = {tokenizer.decode(list(call.prompt_ids)) for call in trace.model_calls}
    assert all(any(topic in text for text in prompts) for topic in TOPICS)


async def test_a_graph_of_ones_own_that_raises_is_a_failed_trace() -> None:
    def build(policy: BaseChatModel) -> Any:
        def broken(state: State) -> State:
            raise RuntimeError("boom")

        graph = StateGraph(State)
        graph.add_node("broken", broken)
        graph.add_edge(START, "broken")
        return graph.compile()

    trace = await CustomGraph(build, "broken").play_episode(
        Scenario(id="f", input={"topic": "x"}), Oracle(plan=()), Sampling()
    )
    assert (trace.status, trace.error) == ("failed", "RuntimeError: boom")


async def test_the_recorder_keeps_the_order_of_calls() -> None:
    episode = CallBuffer()
    model = Oracle(plan=(Act(say="a"),))
    for _ in range(3):
        await model.ainvoke([HumanMessage("x")], {"callbacks": [Recorder(episode)]})
    assert len(episode.calls) == 3
    assert all(call.seconds >= 0 and call.error is None for call in episode.calls)


async def test_each_call_of_a_run_draws_with_a_seed_of_its_own() -> None:
    """With one seed for all, the first tokens of every call would come from the same draw."""
    policy = connect("http://127.0.0.1:9/v1", "policy")
    first, again = (policy.sampling(Sampling(seed=5)) for _ in range(2))
    seeds = [first._get_request_payload("x")["seed"] for _ in range(50)]
    assert len(set(seeds)) == 50
    assert [again._get_request_payload("x")["seed"] for _ in range(50)] == seeds


async def test_a_conversation_beyond_the_context_is_truncated_and_not_failed(
    served: str, development: list[Scenario]
) -> None:
    """Otherwise a policy could talk its way out of being scored."""
    customer = development[0].customer.model_copy(update={"opening": "Where is it? " * 700})
    endless = development[0].model_copy(update={"customer": customer})
    trace = await play_episode(endless, connect(served, "policy"), Sampling(version="policy"))
    assert trace.status == "truncated"
    assert "maximum context length" in (trace.error or "")

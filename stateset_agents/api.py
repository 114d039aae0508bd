"""The short way in: an agent, an environment, a reward, `train`. Thin over the same parts as the CLI."""

import contextlib
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.messages.utils import convert_to_messages
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver

from stateset_agents.errors import BadInput
from stateset_agents.graphs import service
from stateset_agents.graphs.rollout import play_episode
from stateset_agents.jobs import policy_server
from stateset_agents.jobs.config import JobConfig, check_config
from stateset_agents.jobs.registry import find_limits
from stateset_agents.jobs.run_folder import new_run
from stateset_agents.policy.chat_model import Policy
from stateset_agents.policy.rendering import renderer_of
from stateset_agents.policy.weight_files import model_path
from stateset_agents.reward import Reward
from stateset_agents.rewards.composite import CompositeReward
from stateset_agents.rewards.helpfulness import HelpfulnessReward
from stateset_agents.rewards.safety import SafetyReward
from stateset_agents.scenario import Scenario, parse_scenarios
from stateset_agents.server.launch import engine_of
from stateset_agents.tools.shop.generate import generate
from stateset_agents.trace import Sampling, Trace
from stateset_agents.traces.store import TraceStore
from stateset_agents.trainers.config import PROFILES, Profile, TrainConfig
from stateset_agents.trainers.step_log import StepLog


@dataclass(frozen=True, kw_only=True)
class AgentConfig:
    """`model_name` is 'seed', a folder or a Hugging Face name; `base_url` is a running policy server."""

    model_name: str = "seed"
    temperature: float = 1.0
    max_new_tokens: int = 96
    base_url: str | None = None


class MultiTurnAgent:
    """The service graph with a policy behind it. `initialize` starts the engine, `close` ends it."""

    def __init__(self, config: AgentConfig) -> None:
        self.config = config
        self.adapter: Path | None = None
        self._exit = contextlib.AsyncExitStack()
        self._server: policy_server.PolicyServer | None = None
        self.version = "policy"

    async def initialize(self) -> None:
        """Start (or find) the policy server. Raises BadInput if the model cannot be served."""
        if self._server is not None:
            return
        config = check_config({"model": self.config.model_name, "base_url": self.config.base_url})
        async with contextlib.AsyncExitStack() as opened:
            folder = Path(opened.enter_context(tempfile.TemporaryDirectory()))
            self._server = await opened.enter_async_context(
                policy_server.policy_server(
                    config, folder, exact=False, training=True, also_from=[Path("/")]
                )
            )
            self._exit = opened.pop_all()  # kept only where all of it could be opened
        self.version = self._server.name

    async def close(self) -> None:
        """End the engine, if one was started."""
        self._server = None
        await self._exit.aclose()

    async def __aenter__(self) -> Self:
        await self.initialize()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    @property
    def server(self) -> policy_server.PolicyServer:
        """Raises BadInput before `initialize`."""
        if self._server is None:
            raise BadInput("Expected an initialised agent: call `await agent.initialize()` first.")
        return self._server

    @property
    def policy(self) -> Policy:
        """The policy as a chat model."""
        return self.server.policy(retry_seconds=0)

    async def serve_adapter(self, name: str, path: Path, before: int = 1) -> None:
        """Answer with the adapter at `path` from now on; the `before` versions before it stay loaded."""
        await self.server.publisher.publish(name, path, before)
        self.version, self.adapter = name, path

    async def generate_response(self, messages: str | Sequence[dict[str, Any]]) -> str:
        """The agent's reply to a conversation, after its tool calls. The last message must be the customer's."""
        history = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
        conversation = [
            m for m in convert_to_messages(list(history)) if not isinstance(m, SystemMessage)
        ]
        if not conversation or not isinstance(conversation[-1], HumanMessage):
            raise BadInput("Expected messages that end with the user's, found none there.")
        sampling = Sampling(
            version=self.version,
            temperature=self.config.temperature,
            max_tokens=self.config.max_new_tokens,
        )
        shop = generate(0, "train").clone()
        thread: RunnableConfig = {
            "configurable": {"thread_id": "reply"},
            "recursion_limit": service.STEP_LIMIT,
        }
        state: Any = {"messages": conversation}
        try:
            end = await service.build(InMemorySaver()).ainvoke(
                state,
                thread,
                context=service.context(
                    self.policy.sampling(sampling), service.over(shop), thread="reply"
                ),
            )
        finally:
            shop.close()
        if "__interrupt__" in end:
            write = end["__interrupt__"][0].value
            return f"Please confirm: {write['tool']} {write['arguments']}"
        last = end["messages"][-1]
        return last.text if isinstance(last, AIMessage) else ""


class ConversationEnvironment:
    """Scenarios to play: full ones, or `{"id", "user_responses": [...]}` for a scripted customer."""

    def __init__(self, scenarios: Sequence[dict[str, Any] | Scenario], max_turns: int = 8) -> None:
        if not scenarios:
            raise BadInput("Expected at least one scenario, found none.")
        self.scenarios = parse_scenarios(scenarios, where="ConversationEnvironment")
        self.max_turns = max_turns

    async def run(self, agent: MultiTurnAgent, scenario: Scenario, sampling: Sampling) -> Trace:
        """One episode."""
        return await play_episode(scenario, agent.policy, sampling, max_turns=self.max_turns)


def default_reward() -> CompositeReward:
    """The default reward of `AutoTrainer`."""
    return CompositeReward([HelpfulnessReward(0.7), SafetyReward(0.3)])


async def train(
    *,
    agent: MultiTurnAgent,
    environment: ConversationEnvironment,
    reward_fn: Reward,
    num_episodes: int = 50,
    profile: Profile = "balanced",
    output_dir: Path | str | None = None,
    on_step: Callable[[StepLog], None] | None = None,
    **settings: Any,
) -> MultiTurnAgent:
    """GRPO on episodes of the environment. Afterwards the agent answers with the trained policy.

    Episodes are played in groups of up to ten of one scenario, up to four scenarios a step; `settings` are fields of
    `trainers.config.TrainConfig`, and override what `profile` sets. Raises BadInput for fewer than two episodes, an unknown
    profile and settings that exclude each other.
    """
    from stateset_agents.trainers import grading, loop

    if num_episodes < 2:
        raise BadInput(f"num_episodes: expected at least 2 to compare, found {num_episodes}.")
    if profile not in PROFILES:
        raise BadInput(f"profile: expected one of {', '.join(PROFILES)}, found {profile!r}.")
    if agent.config.temperature == 0:
        raise BadInput("temperature: expected more than 0 to train, found 0: nothing would differ.")
    await agent.initialize()
    config = _config(agent, environment, num_episodes, profile, settings)
    run = new_run(Path(output_dir) if output_dir is not None else Path("runs"))
    path = model_path(agent.config.model_name)

    async def play(scenario: Scenario, sampling: Sampling) -> Trace:
        return await environment.run(agent, scenario, sampling)

    with TraceStore(run / "traces.db") as store:
        await loop.train(
            loop.InitialPolicy(
                base=str(agent.adapter) if config.full and agent.adapter else path,
                tokenizer=renderer_of(path).tokenizer,
                served=agent.version,
                adapter=None if config.full else agent.adapter,
            ),
            loop.Episodes(scenarios=environment.scenarios, rollout=play),
            grading.Grading(reward=reward_fn, limits=find_limits(config)),
            loop.RunOutputs(
                run=run, store=store, report=on_step or (lambda log: None), trackers=config.log
            ),
            config,
            publish=agent.serve_adapter,
        )
    return agent


def _config(
    agent: MultiTurnAgent, environment: ConversationEnvironment, num_episodes: int, profile: Profile,
    settings: dict[str, Any],
) -> JobConfig:  # fmt: skip
    """The config of `train`. Raises BadInput for settings that it does not use."""
    group_size = min(10, num_episodes)
    groups = max(1, min(len(environment.scenarios), 4, num_episodes // group_size))
    config = check_config(
        {
            "steps": max(1, num_episodes // (groups * group_size)),
            "groups": groups,
            "group_size": group_size,
            "temperature": agent.config.temperature,
            "max_tokens": agent.config.max_new_tokens,
            "log": (),
            **PROFILES[profile],
            **settings,
        }
    )
    unknown = sorted(
        set(settings) - {*TrainConfig.model_fields, "log"} | set(settings) & {"adapters"}
    )
    if unknown:
        raise BadInput(
            f"{unknown[0]}: expected a setting that `train` accepts, found another. `stateset-agents train` has them all."
        )
    if config.full and (agent.config.base_url or engine_of(None) == "vllm"):
        raise BadInput(
            "full: expected the embedded engine (STATESET_ENGINE=embedded) behind the agent, which loads whole models, found "
            "another server. `stateset-agents train --full --engine vllm` starts a vLLM that loads them."
        )
    return config


@dataclass(kw_only=True)
class AutoTrainer:
    """`train` with defaults: the composite reward of helpfulness and safety, settings that adapt to what is measured
    (`auto_adjust`), and with `early_stopping` an end on a plateau of `patience` steps."""

    num_episodes: int = 50
    profile: Profile = "balanced"
    auto_adjust: bool = True
    early_stopping: bool = False
    patience: int = 8
    output_dir: Path | str | None = None
    history: list[StepLog] = field(default_factory=list)
    """The steps of the last training."""

    async def train(
        self,
        agent: MultiTurnAgent,
        env: ConversationEnvironment,
        reward_fn: Reward | None = None,
    ) -> MultiTurnAgent:
        self.history = []
        return await train(
            agent=agent,
            environment=env,
            reward_fn=reward_fn or default_reward(),
            num_episodes=self.num_episodes,
            profile=self.profile,
            output_dir=self.output_dir,
            on_step=self.history.append,
            auto_adjust=self.auto_adjust,
            **({"early_stopping": True, "patience": self.patience} if self.early_stopping else {}),
        )

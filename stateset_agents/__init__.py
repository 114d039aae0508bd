"""stateset-agents: commerce agents as LangGraph graphs, trained on what really happened in the shop.

Names are resolved when they are first used, so that importing the package costs nothing.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stateset_agents.api import (
        AgentConfig,
        AutoTrainer,
        ConversationEnvironment,
        MultiTurnAgent,
        train,
    )
    from stateset_agents.graphs.build import build_graph
    from stateset_agents.policy.chat_model import connect
    from stateset_agents.reward import Reward, Score
    from stateset_agents.rewards.composite import CompositeReward
    from stateset_agents.rewards.helpfulness import HelpfulnessReward
    from stateset_agents.rewards.safety import SafetyReward
    from stateset_agents.scenario import Scenario
    from stateset_agents.trace import ModelCall, Sampling, ToolCall, Trace
    from stateset_agents.traces.record import record
    from stateset_agents.traces.store import TraceStore
    from stateset_agents.trajectory import Trajectory

__version__ = "0.1.0"

_HOMES = {
    "AgentConfig": "api",
    "AutoTrainer": "api",
    "CompositeReward": "rewards.composite",
    "ConversationEnvironment": "api",
    "HelpfulnessReward": "rewards.helpfulness",
    "ModelCall": "trace",
    "MultiTurnAgent": "api",
    "Reward": "reward",
    "SafetyReward": "rewards.safety",
    "Sampling": "trace",
    "Scenario": "scenario",
    "Score": "reward",
    "ToolCall": "trace",
    "Trace": "trace",
    "TraceStore": "traces.store",
    "Trajectory": "trajectory",
    "build_graph": "graphs.build",
    "connect": "policy.chat_model",
    "record": "traces.record",
    "train": "api",
}

__all__ = [
    "AgentConfig",
    "AutoTrainer",
    "CompositeReward",
    "ConversationEnvironment",
    "HelpfulnessReward",
    "ModelCall",
    "MultiTurnAgent",
    "Reward",
    "SafetyReward",
    "Sampling",
    "Scenario",
    "Score",
    "ToolCall",
    "Trace",
    "TraceStore",
    "Trajectory",
    "build_graph",
    "connect",
    "record",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


if os.environ.get("STATESET_RECORD", "") not in ("", "0", "false"):
    import_module(f"{__name__}.traces.process_recorder").record_process()

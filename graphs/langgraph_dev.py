"""What `langgraph dev` serves: every graph over a generated shop, with the policy at STATESET_BASE_URL.

stateset-agents policy serve        # or any server that speaks OpenAI's protocol
langgraph dev
"""

import functools

from langchain_core.runnables import RunnableConfig

from stateset_agents.graphs import agent, orchestrator
from stateset_agents.graphs.domains import DOMAINS
from stateset_agents.nodes.state import Agents
from stateset_agents.policy.chat_model import connect
from stateset_agents.settings import load_settings
from stateset_agents.tools.shop.generate import generate

# Made when the module is loaded: the server lets no run of a graph wait for a file or a database.
_settings = load_settings()
_policy = connect(_settings.base_url or "http://127.0.0.1:8001/v1", _settings.model).model_copy(
    update={"temperature": 0.0, "max_tokens": 160}
)
_shop = generate(1, "train").clone()


def _alone(name: str, config: RunnableConfig) -> Agents:
    domain = DOMAINS[name]
    thread = str(config.get("configurable", {}).get("thread_id", ""))
    return agent.context(domain, _policy, agent.over(domain, _shop, threads=True), thread=thread)


def _team(config: RunnableConfig) -> Agents:
    thread = str(config.get("configurable", {}).get("thread_id", ""))
    return orchestrator.context(_policy, orchestrator.over(_shop, threads=True), thread=thread)


service = agent.build(DOMAINS["service"], bound=functools.partial(_alone, "service"))
sales = agent.build(DOMAINS["sales"], bound=functools.partial(_alone, "sales"))
returns = agent.build(DOMAINS["returns"], bound=functools.partial(_alone, "returns"))
fulfilment = agent.build(DOMAINS["fulfilment"], bound=functools.partial(_alone, "fulfilment"))
pricing = agent.build(DOMAINS["pricing"], bound=functools.partial(_alone, "pricing"))
risk = agent.build(DOMAINS["risk"], bound=functools.partial(_alone, "risk"))
team = orchestrator.build(bound=_team)

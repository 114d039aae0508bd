"""The chat template of the seed policy, also used for base models without one.

Hermes-style: tools as compact signatures, calls as `<tool_call>{...}</tool_call>`.
"""

from importlib import resources


def default_chat_template() -> str:
    return (
        resources.files("stateset_agents")
        .joinpath("seed_policy", "chat_template.jinja")
        .read_text()
    )

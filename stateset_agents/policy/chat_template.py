"""The chat template of the seed policy, and the one that a base model without any is given.

Hermes-style: tools as compact signatures, calls as `<tool_call>{...}</tool_call>`.
"""

from importlib import resources


def default_chat_template() -> str:
    return (
        resources.files("stateset_agents")
        .joinpath("seed_policy", "chat_template.jinja")
        .read_text()
    )

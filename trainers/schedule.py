"""The schedule: adapts settings to what is measured, each change with its reason, and ends a run on a plateau.

reward falls                 the learning rate is halved
KL off its target            its weight is scaled (Ziegler et al., arXiv 1909.08593, section 2.2)
equal rewards in groups      larger groups, then a higher temperature, where there is still something to win
they differ again            back to the configured size
"""

import math
from collections.abc import Sequence
from typing import Any

from stateset_agents.evaluation import paired_gain
from stateset_agents.trainers.config import TrainConfig
from stateset_agents.trainers.step_log import StepLog

WINDOW = 4
"""Number of steps that are compared with as many before them."""


class Schedule:
    """Follows a run step by step. `config` has the settings of the next step."""

    def __init__(self, config: TrainConfig, state: dict[str, Any] | None = None) -> None:
        kept = state or {}
        self._initial = config
        self.config = config.model_copy(update=kept.get("settings", {}))
        self.plateau: str | None = kept.get("plateau")
        """Why the run should end."""
        self._rewards: list[float] = list(kept.get("rewards", []))
        self._flat: list[float] = list(kept.get("flat", []))
        self._success: list[float] = list(kept.get("success", []))
        self._kl: list[float] = list(kept.get("kl", []))
        self._changed = int(kept.get("changed", 0))
        self._same = int(kept.get("same", 0))

    @property
    def state(self) -> dict[str, Any]:
        """The state of `Schedule` for a resume."""
        settings = {
            name: getattr(self.config, name)
            for name in ("learning_rate", "beta", "temperature", "group_size")
            if getattr(self.config, name) != getattr(self._initial, name)
        }
        return {
            "settings": settings, "plateau": self.plateau, "rewards": self._rewards, "flat": self._flat,
            "success": self._success, "kl": self._kl, "changed": self._changed, "same": self._same,
        }  # fmt: skip

    def see(self, log: StepLog) -> list[str]:
        """Process a step. Returns the changes with their reasons."""
        if log.reward is None:
            return []
        self._rewards.append(log.reward)
        self._flat.append(log.flat_groups)
        self._success.append(log.success or 0.0)
        self._kl.append(log.kl)
        changes = self._adjusted() if self._initial.auto_adjust else []
        if self._initial.early_stopping:
            self.plateau = self._ended()
            if self.plateau:
                changes.append(self.plateau)
        return changes

    def _adjusted(self) -> list[str]:
        """At most one change in a window, because the effects of two could not be separated."""
        seen = len(self._rewards)
        if seen < 2 * WINDOW or seen - self._changed < WINDOW:
            return []
        for rule in (self._slower, self._closer, self._wider, self._hotter, self._narrower):
            change = rule()
            if change is not None:
                self._changed = seen
                return [change]
        return []

    def _set(self, name: str, value: float, why: str) -> str:
        before = getattr(self.config, name)
        self.config = self.config.model_copy(update={name: value})
        return f"{name} {before:g} -> {value:g}: {why}"

    def _slower(self) -> str | None:
        before, now = self._rewards[-2 * WINDOW : -WINDOW], self._rewards[-WINDOW:]
        fall = _mean(before) - _mean(now)
        error = math.sqrt((_variance(before) + _variance(now)) / WINDOW)
        if fall <= 2 * error or fall < 1e-3:
            return None
        return self._set(
            "learning_rate", self.config.learning_rate / 2,
            f"the mean reward fell from {_mean(before):.3f} to {_mean(now):.3f} over {WINDOW} steps",
        )  # fmt: skip

    def _closer(self) -> str | None:
        target = self._initial.kl_target
        if target is None:
            return None
        now = _mean(self._kl[-WINDOW:])
        if target / 1.5 <= now <= target * 1.5:
            return None
        scaled = self.config.beta * (1.5 if now > target else 1 / 1.5)
        if not 1e-4 <= scaled <= 1.0:
            return None
        return self._set("beta", scaled, f"KL {now:.4f} for a target of {target:g}")

    def _wider(self) -> str | None:
        flat, success = _mean(self._flat[-WINDOW:]), _mean(self._success[-WINDOW:])
        size = min(2 * self._initial.group_size, round(1.5 * self.config.group_size))
        if flat < 0.6 or success > 0.95 or size == self.config.group_size:
            return None
        return self._set(
            "group_size",
            size,
            f"{flat:.0%} of the groups have equal rewards, and success is {success:.0%}",
        )

    def _hotter(self) -> str | None:
        flat, success = _mean(self._flat[-WINDOW:]), _mean(self._success[-WINDOW:])
        temperature = round(min(1.3, self.config.temperature + 0.1), 2)
        if flat < 0.6 or success > 0.95 or temperature <= self.config.temperature:
            return None
        return self._set(
            "temperature",
            temperature,
            f"{flat:.0%} of the groups have equal rewards in larger groups too",
        )

    def _narrower(self) -> str | None:
        flat = _mean(self._flat[-WINDOW:])
        if flat > 0.3 or self.config.group_size == self._initial.group_size:
            return None
        return self._set(
            "group_size",
            self._initial.group_size,
            f"only {flat:.0%} of the groups have equal rewards",
        )

    def _ended(self) -> str | None:
        """A plateau: for `patience` steps in a row, the last `patience` steps were not significantly better than those before
        them. The n-th steps of both are compared as pairs, since the order of intents is fixed."""
        patience = self._initial.patience
        if len(self._rewards) < 2 * patience:
            return None
        before, now = self._rewards[-2 * patience : -patience], self._rewards[-patience:]
        gain, (low, high) = paired_gain(before, now, draws=1000)
        self._same = self._same + 1 if low <= 0 else 0
        if self._same < patience:
            return None
        return f"ended on a plateau: the last {patience} steps gained {gain:+.3f} ({low:+.3f} to {high:+.3f}) on those before them"


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _variance(values: Sequence[float]) -> float:
    mean = _mean(values)
    return math.fsum((v - mean) ** 2 for v in values) / max(1, len(values) - 1)

"""Errors that a user can act on: each says what was expected, what was found and what to do."""


class StatesetError(Exception):
    """An error raised on purpose. The command line prints it as one line, exit code 2."""


class BadInput(StatesetError):
    """A file, an option or a value that cannot be used; nothing was written."""


class PolicyUnreachable(StatesetError):
    """The policy server did not answer, or not in its protocol."""


class PolicyRefused(PolicyUnreachable):
    """The policy server answered and refused: the key, the model, the adapter or the request."""

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        """The HTTP status of the refusal, if it has one."""


class ContextFull(StatesetError):
    """The conversation no longer fits into the model's context. The policy caused it, so the run is truncated and not
    failed."""


class CustomerInvented(StatesetError):
    """A simulated customer stated something that it cannot know: the episode is invalid."""


class NotExact(StatesetError):
    """Exact training got a trace without token ids or log-probabilities."""


class NothingMeasured(StatesetError):
    """A run ended without a result: every episode failed, none could be scored, nothing was learned, or no tool was called."""


class RunBroken(StatesetError):
    """A training run cannot continue or be resumed; the committed steps are kept."""

"""Errors that a user can act on: each says what was expected, what was found and what to do."""


class StatesetError(Exception):
    """Anything this package refuses on purpose. The command line prints it as one line, exit 2."""


class BadInput(StatesetError):
    """A file, an option or a value that cannot be used; nothing has been written yet."""


class PolicyUnreachable(StatesetError):
    """The policy server did not answer, or answered something that is not its protocol."""


class PolicyRefused(PolicyUnreachable):
    """The policy server answered and refused: the key, the model, the adapter or the request."""

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        """The HTTP status, where the refusal was one."""


class ContextFull(StatesetError):
    """The conversation no longer fits into the model's context. The policy caused it, so it is no failure of the run."""


class CustomerInvented(StatesetError):
    """A simulated customer said what it cannot know: the episode says nothing about the agent."""


class NotExact(StatesetError):
    """A trace whose token ids or log-probabilities are missing was offered for exact training."""


class RunBroken(StatesetError):
    """A training run cannot continue or be resumed; the committed steps are kept."""

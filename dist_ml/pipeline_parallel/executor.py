"""Runs one rank's actions of a schedule, each by the method that its kind names."""

from collections.abc import Callable, Mapping, Sequence

from dist_ml.errors import CommunicationError
from dist_ml.pipeline_parallel.schedule import Action, Kind


class Executor:
    """`actions` in their order; `methods` says what each kind does. Nothing else decides what runs.

    Cost: a lookup and a call an action.
    """

    def __init__(
        self, actions: Sequence[Action], methods: Mapping[Kind, Callable[[Action], None]]
    ) -> None:
        missing = {action.kind for action in actions} - set(methods)
        assert not missing, f"no method for {sorted(missing)}"
        self._actions = tuple(actions)
        self._methods = dict(methods)

    def run(self, start: int = 0, stop: int | None = None) -> None:
        """The actions from number `start` on, before `stop` (None: to the step's end).
        `CommunicationError` names the action that it came in.
        """
        for action in self._actions[start:stop]:
            try:
                self._methods[action.kind](action)
            except CommunicationError as error:
                raise CommunicationError(f"{error}; this rank was at {action}") from error

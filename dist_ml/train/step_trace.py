"""Notes what the steps of a timeline are made of, as they run (docs/timeline.md).

turn           when it is due: before the first traced step, and after the last
before_step    a step comes
after_step     its calls are taken out of the flight recorder
close          the run ends, perhaps before the last traced step
"""

import logging
import time
from pathlib import Path

from dist_ml.comm.agreement import from_root
from dist_ml.config.trace import TraceConfig
from dist_ml.errors import ConfigError
from dist_ml.measure.timer import RecordedPhases
from dist_ml.trace import clock
from dist_ml.trace.torch_operators import TorchOperators
from dist_ml.train import timeline
from dist_ml.train.timeline import Noted, TracedStep
from dist_ml.train.trainer import Trainer

log = logging.getLogger(__name__)

MOST_CALLS = 50_000  # of a rank: 100 MB with what is made of them; further ones are left out


def require_traced(skip: int, num_steps: int) -> None:
    """`ConfigError` for a timeline of no step of a run."""
    if skip >= num_steps:
        raise ConfigError(
            f"trace.skip={skip} leaves out all of the run's {num_steps} steps; set trace.skip=0"
        )


class StepTrace:
    """Traces the first steps after those that are left out, into `folder` unless the configuration
    names another. Collective.

    Cost: two readings of the recorder's number and a slice of its ring a step, an entry a phase.
    """

    def __init__(self, config: TraceConfig, trainer: Trainer, folder: Path) -> None:
        assert isinstance(trainer.phases, RecordedPhases)
        self._trainer, self._phases = trainer, trainer.phases
        self._world, self._recorder = trainer.mesh.world, trainer.mesh.world.recorder
        self._folder = folder if config.folder is None else Path(config.folder).absolute()
        self._left_out, self._wanted = config.skip, config.steps
        self._operators = TorchOperators() if config.profiler else None
        self._noted: Noted | None = None  # between the first step and the file
        self._from = self._start = 0  # the step's first call, and moment

    @property
    def is_due(self) -> bool:
        """Is the next step the first, or the last one over?"""
        if self._noted is not None:
            return len(self._noted.steps) == self._wanted
        return self._wanted > 0 and self._left_out == 0

    def turn(self) -> None:
        """Compare clocks, and begin; or compare them again, and write."""
        if self._noted is not None:
            self.close()
            return
        from_root(self._world, self._make_folder)
        self._noted = Noted(clock.read(self._world))
        if self._operators is not None:
            self._operators.start()

    def before_step(self) -> None:
        if self._noted is not None:
            self._phases.spans = self._noted.spans
            self._from, self._start = self._recorder.mark(), time.monotonic_ns()

    def after_step(self, number: int) -> None:
        """`number`: the step's."""
        noted = self._noted
        if noted is None:
            self._left_out = max(0, self._left_out - 1)
            return
        stop, until = time.monotonic_ns(), self._recorder.mark()
        self._phases.spans = None
        taken = self._recorder.between(self._from, until)[: MOST_CALLS - len(noted.records)]
        noted.records += taken
        noted.num_missing += until - self._from - 1 - len(taken)
        actions = self._trainer.own_timed_actions
        noted.steps.append(TracedStep(number, self._start, stop, actions))

    def close(self) -> None:
        """Write the steps that were traced; the run may go on."""
        noted, wanted = self._noted, self._wanted
        self._noted, self._wanted, self._phases.spans = None, 0, None
        if noted is not None and self._operators is not None:
            self._operators.stop()
        if wanted and (noted is None or not noted.steps):
            log.warning("trace: no step was left to trace")
        if noted is None or not noted.steps:
            return
        path = timeline.write(noted, self._trainer, self._folder, self._operators)
        log.info("the timeline of %d steps is in %s", len(noted.steps), path)

    def _make_folder(self) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"trace.folder={self._folder} can't be made: {error.strerror or error}; choose "
                "another"
            ) from error

"""`dist-ml schedule`: prove, time and draw a pipeline schedule, without MPI."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from dist_ml.bench.timeline_plot import draw
from dist_ml.cli import arguments, compose, configured, terminal
from dist_ml.cli.timeline_chart import chart
from dist_ml.config.convert import from_mapping
from dist_ml.config.names import require_one_of
from dist_ml.config.schedule import ScheduleConfig
from dist_ml.errors import ConfigError
from dist_ml.pipeline_parallel import timeline_file
from dist_ml.pipeline_parallel.dry_run import Costs, Timeline, dry_run
from dist_ml.pipeline_parallel.proof import Proof, prove
from dist_ml.pipeline_parallel.schedule import Schedule
from dist_ml.pipeline_parallel.schedules import csv_file, family
from dist_ml.pipeline_parallel.schedules.pipedream_2bw import unrolled
from dist_ml.pipeline_parallel.schedules.request import Request
from dist_ml.train.run_folder import RunFolder

PROGRAM = "dist-ml schedule"
_WIDTHS = (40, 200)  # that a chart is drawn for, at least and at most


def main(argv: Sequence[str]) -> int:
    """A table, the chart of the plan and, with `run`, of what was measured below it."""
    request = arguments.parse(argv, PROGRAM, "schedule")
    if request.help or request.show:
        return configured.show(request, ScheduleConfig, PROGRAM)
    config = from_mapping(ScheduleConfig, compose.composed(request))
    if config.run is not None:
        _show_run(config, Path(config.run))
    else:
        _show_plan(config)
    return 0


def _show_plan(config: ScheduleConfig) -> None:
    schedule = _make(config)
    if schedule.is_asynchronous:
        schedule = unrolled(schedule, 3)
    proof = prove(schedule)
    costs = Costs.of_parts(schedule.num_stages, config.costs, config.message)
    timeline = dry_run(schedule, costs)
    _say(
        (
            "schedule",
            f"{schedule.name}, {schedule.num_stages} stages on {schedule.num_ranks} ranks",
        ),
        ("step", f"{schedule.num_microbatches} micro-batches, {timeline.makespan:g} time units"),
        ("bubble", f"{100 * timeline.bubble:.1f} % of the ranks' time up to the common end"),
        ("a rank", f"{timeline.span:g} time units from its first action to its last, at most"),
        ("activations", f"{_spread(proof.memory.activations)} micro-batches of a stage at once"),
        ("messages", f"{_spread(proof.messages)} sent by a rank; {_in_flight(proof)}"),
        ("weights", f"{schedule.weight_copies:g} times the model's over all ranks"),
    )
    terminal.say("\n".join(["", *_chart(timeline)]))
    if config.csv is not None:
        _write(Path(config.csv), csv_file.write_csv(schedule))
    if config.plot is not None:
        _plot({f"{schedule.name}, planned": timeline}, Path(config.plot), "time units")


def _show_run(config: ScheduleConfig, folder: Path) -> None:
    measured = timeline_file.read(RunFolder(folder).timeline)
    planned, found = measured.planned(), measured.timeline
    _say(
        ("schedule", f"{measured.schedule.name} of {folder}, last step"),
        ("planned", f"{1e3 * planned.makespan:.3g} ms, bubble {100 * planned.bubble:.1f} %"),
        ("measured", f"{1e3 * found.makespan:.3g} ms, bubble {100 * found.bubble:.1f} %"),
    )
    terminal.say("\n".join(["", "planned, from the mean time of each action", *_chart(planned)]))
    terminal.say("\n".join(["", "measured", *_chart(found)]))
    if config.plot is not None:
        name = measured.schedule.name
        both = {f"{name}, planned": planned, f"{name}, measured": found}
        _plot(both, Path(config.plot), "seconds")


def _make(config: ScheduleConfig) -> Schedule:
    ranks, microbatches = config.ranks, config.microbatches
    if config.name == "file" and config.file is not None:
        found = csv_file.read_csv(Path(config.file))
        ranks = found.num_ranks if ranks is None else ranks
        microbatches = found.num_microbatches if microbatches is None else microbatches
    elif ranks is None and config.stages is not None:
        ranks = _ranks_for(config, config.stages)
    ranks = 4 if ranks is None else ranks
    request = Request(
        ranks,
        2 * ranks if microbatches is None else microbatches,
        chunks=config.chunks,
        pipes=config.pipes,
        concatenation=config.concatenation,
        forward=config.costs[0],
        backward=sum(config.costs[1:]),
        file=config.file,
    )
    schedule = family.make(config.name, request)
    if config.stages not in (None, schedule.num_stages):
        raise ConfigError(
            f"stages={config.stages}, but schedule {config.name} has {schedule.num_stages} on "
            f"{ranks} ranks; use stages={schedule.num_stages}, or leave ranks out"
        )
    return schedule


def _ranks_for(config: ScheduleConfig, stages: int) -> int:
    """How many ranks hold so many stages, each as many as the schedule gives one."""
    require_one_of("name", config.name, family.SCHEDULES)
    held = family.SCHEDULES[config.name].stages_a_rank(Request(1, 1, chunks=config.chunks))
    if stages % held:
        raise ConfigError(
            f"stages={stages} can't be dealt out: schedule {config.name} has {held} on each rank; "
            f"use {stages + held - stages % held}"
        )
    return stages // held


def _chart(timeline: Timeline) -> list[str]:
    smallest, largest = _WIDTHS
    return chart(timeline, min(largest, max(smallest, shutil.get_terminal_size().columns)))


def _plot(timelines: dict[str, Timeline], file: Path, unit: str) -> None:
    draw(timelines, str(file), unit)
    terminal.say(f"\npicture     {file}")


def _write(file: Path, text: str) -> None:
    try:
        file.write_text(text)
    except OSError as error:
        raise ConfigError(
            f"csv={file} can't be written ({error.strerror or error}); choose another path"
        ) from error
    terminal.say(f"\nactions     {file}")


def _say(*lines: tuple[str, str]) -> None:
    terminal.say("\n".join(f"{what:11} {value}" for what, value in lines))


def _spread(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"


def _in_flight(proof: Proof) -> str:
    number = proof.sends_in_flight
    return (
        f"free of dead-locks with {number or 'blocking'} sends{' not received' if number else ''}"
    )

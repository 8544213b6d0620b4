"""`dist-ml doctor`: what this machine, its MPI and its launcher can do, a line each: ok, warn or
fail, with the remedy. `dist-ml doctor hang RUN` is in `hang.py`.

Under a launcher it examines the world that it was started in. Alone it starts two ranks with each
MPI that it finds, and has them examine theirs.
"""

import importlib.metadata
import json
import os
import platform
import shutil
import sys
from collections.abc import Sequence
from typing import Any

from dist_ml.cli import terminal
from dist_ml.cli.terminal import Parser
from dist_ml.errors import MachineError
from dist_ml.launch import mpi_installation, mpiexec, stacks
from dist_ml.launch.extras import install_command

_TIME_LIMIT_SECONDS = 60.0
_RANKS = 2


def main(argv: Sequence[str]) -> int:
    """0 unless something failed, then 1."""
    if argv and argv[0] == "hang":
        from dist_ml.cli import hang

        return hang.main(argv[1:])
    parser = Parser(
        prog="dist-ml doctor",
        description="Tell what this machine, its MPI and its launcher can do, and what to mend. "
        "dist-ml doctor hang RUN: why the ranks of a run waited for each other.",
    )
    parser.add_argument(
        "-n",
        "--ranks",
        type=int,
        default=_RANKS,
        help="ranks to start with each MPI when alone (default: %(default)s)",
    )
    parser.add_argument("--mpi", choices=mpi_installation.NAMES, help="try this MPI only")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.add_argument(
        "--debug", action="store_true", help="show tracebacks of errors that are the user's, too"
    )
    options = parser.parse_args(argv)
    if stacks.TIME_LIMIT not in os.environ:  # what it diagnoses may hang
        os.environ[stacks.TIME_LIMIT] = str(_TIME_LIMIT_SECONDS * 3)
        stacks.arm()
    from dist_ml.comm import mpi

    findings = _examine_world() if mpi.launched() else _examine_machine(options.mpi, options.ranks)
    terminal.say(json.dumps(findings) if options.json else "\n".join(map(_line, findings)))
    return 1 if any(finding["state"] == "fail" for finding in findings) else 0


def _examine_world() -> list[dict[str, Any]]:
    """The findings of all ranks together, on all of them."""
    from dist_ml.cli import diagnosis, facts
    from dist_ml.comm import mpi

    try:
        known = facts.world_facts(mpi.world())
    except MachineError as error:
        known = facts.lone_facts(str(error))
    return [_launcher(), *(finding.as_json() for finding in diagnosis.diagnose(known))]


def _examine_machine(name: str | None, ranks: int) -> list[dict[str, Any]]:
    """Versions, then a world of each MPI."""
    findings = [_finding("ok", "versions", f"Python {platform.python_version()}, {_versions()}")]
    try:
        found = [mpi_installation.find(name)] if name else mpi_installation.available()
    except MachineError as error:
        return [*findings, _finding("fail", "MPI", str(error), "")]
    if not found:
        text = "none found: neither a wheel nor mpiexec on the path; one rank trains without"
        findings.append(
            _finding(
                "warn", "MPI", text, f"{install_command('mpich')}, or load the site's MPI module"
            )
        )
    for installation in found:
        findings.append(
            _finding(
                "ok", "---", f"{installation.name}: {ranks} ranks started by {installation.mpiexec}"
            )
        )
        findings += _examine_installation(installation, ranks)
    return findings


def _examine_installation(
    installation: mpi_installation.MpiInstallation, ranks: int
) -> list[dict[str, Any]]:
    program = [sys.executable, "-m", "dist_ml", "doctor", "--json"]
    done = mpiexec.run(
        program, ranks, installation, time_limit_seconds=_TIME_LIMIT_SECONDS, capture=True
    )
    for line in reversed(done.stdout.splitlines()):
        if line.startswith("[{"):
            findings: list[dict[str, Any]] = json.loads(line)
            return findings
    why = (
        f"no answer within {_TIME_LIMIT_SECONDS:g} s"
        if done.timed_out
        else f"exit status {done.returncode}"
    )
    words = " ".join((done.stderr or done.stdout).split())[-400:]
    return [
        _finding(
            "fail",
            "start",
            f"{why}: {words or 'it said nothing'}",
            f"try: {installation.mpiexec} -n {ranks} hostname",
        )
    ]


def _launcher() -> dict[str, Any]:
    """Which launcher started this, and which one `mpiexec` on the path would be."""
    started_by = mpi_installation.started_by(os.environ) or (
        "srun" if "SLURM_STEP_ID" in os.environ else "an unknown launcher"
    )
    on_path = shutil.which("mpiexec")
    return _finding(
        "ok", "launcher", f"started by {started_by}; mpiexec on the path: {on_path or 'none'}"
    )


def _versions() -> str:
    named = ("dist_ml", "torch", "numpy", "mpi4py")
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in named)


def _finding(state: str, subject: str, text: str, remedy: str = "") -> dict[str, Any]:
    return {"state": state, "subject": subject, "text": text, "remedy": remedy}


def _line(finding: dict[str, Any]) -> str:
    if finding["subject"] == "---":
        return f"\n{finding['text']}"
    remedy = f"\n{'':22}-> {finding['remedy']}" if finding["remedy"] else ""
    return f"{finding['state']:4}  {finding['subject']:14}  {finding['text']}{remedy}"

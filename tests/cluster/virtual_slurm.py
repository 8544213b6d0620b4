"""A real Slurm on the hosts of an emulated network: munge, slurmctld beside the switch, one slurmd
a host.

Without systemd, cgroups and a database; everything dies with the process that started it, and
nothing of the system is changed.
"""

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from dist_ml.launch.emulated_network import EmulatedNetwork
from dist_ml.launch.emulated_network import missing as missing_network
from dist_ml.launch.process import end_with_parent, wait_for

PROGRAMS = {
    "munged": "munge",
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "srun": "slurm-client",
    "sbatch": "slurm-client",
}
PLUGINS = Path("/usr/lib/x86_64-linux-gnu")
START_SECONDS = 60.0
CLIENT_SECONDS = 20.0

CONFIGURATION = """\
ClusterName=virtual
SlurmctldHost=head(10.78.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
TmpFS={folder}/tmp/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
SlurmdParameters=config_overrides
KillWait=5
SlurmdTimeout=10
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=60 State=UP
"""


def missing() -> str | None:
    """What this machine lacks for a virtual cluster, in words; None when nothing."""
    packages = sorted(
        {package for program, package in PROGRAMS.items() if shutil.which(program) is None}
    )
    return (
        f"Slurm is not installed: apt-get install {' '.join(packages)}"
        if packages
        else missing_network()
    )


class VirtualSlurm:
    """`num_nodes` nodes h0, h1, … of `cpus` CPUs each; `folder` must have a short path (sockets
    live in it).
    """

    def __init__(self, num_nodes: int, cpus: int, folder: Path) -> None:
        self.num_nodes, self.cpus, self.folder = num_nodes, cpus, folder
        self.network = EmulatedNetwork(num_nodes)
        self._daemons: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "VirtualSlurm":
        self.network.__enter__()
        try:
            self._start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for daemon in reversed(self._daemons):
            daemon.terminate()
        wait_for(self._daemons, 3.0)
        for daemon in self._daemons:
            daemon.kill()
        self.network.close()
        wait_for(self._daemons, 3.0)

    def client(
        self,
        *command: str,
        environment: dict[str, str] | None = None,
        seconds: float = CLIENT_SECONDS,
    ) -> str:
        """Run a Slurm command at the head; gives what it printed, and fails with what it complained
        of.
        """
        argv = [*self.network.at_head, *command]
        variables = {
            **os.environ,
            "SLURM_CONF": str(self.folder / "slurm.conf"),
            **(environment or {}),
        }
        told = subprocess.run(
            argv,
            env=variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
        )
        assert told.returncode == 0, (
            f"{' '.join(command)}: exit status {told.returncode}\n{told.stdout}{told.stderr}"
        )
        return told.stdout

    def submit(
        self, *arguments: str, environment: dict[str, str] | None = None, seconds: float = 300.0
    ) -> tuple[int, str]:
        """Submit a batch job and wait for its end: its exit status and output. Fails when it takes
        longer than `seconds`.
        """
        output = self.folder / "job-%j.out"
        job = self.client(
            "sbatch", "--parsable", f"--output={output}", *arguments, environment=environment
        ).strip()
        deadline = time.monotonic() + seconds
        file = Path(str(output).replace("%j", job))
        while (state := self._state(job)) in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING"):
            if time.monotonic() > deadline:
                self.client("scancel", job)
                raise AssertionError(
                    f"job {job} is still {state} after {seconds:g} s\n{_read(file)}{self._logs()}"
                )
            time.sleep(0.1)
        return self._exit_status(job), _read(file)

    def _state(self, job: str) -> str:
        return _field("JobState", self.client("scontrol", "show", "job", job))

    def _exit_status(self, job: str) -> int:
        status, signal = _field("ExitCode", self.client("scontrol", "show", "job", job)).split(":")
        return int(status) or (128 + int(signal) if int(signal) else 0)

    def _start(self) -> None:
        self.folder.chmod(0o755)  # munge insists that everybody can reach its socket
        for name in ("state", "spool", "tmp"):
            for node in range(self.num_nodes):
                (self.folder / name / f"h{node}").mkdir(parents=True, exist_ok=True)
        nodes = [
            f"NodeName=h{i} NodeAddr=10.78.0.{10 + i} CPUs={self.cpus} RealMemory=1000 "
            "State=UNKNOWN"
            for i in range(self.num_nodes)
        ]
        (self.folder / "slurm.conf").write_text(
            CONFIGURATION.format(folder=self.folder, nodes="\n".join(nodes))
        )
        self._start_munge()
        conf = str(self.folder / "slurm.conf")
        self._provide_pmix()
        self._daemon([*self.network.at_head, "slurmctld", "-D", "-f", conf])
        for host in self.network.hosts:
            self._daemon([*host.inside("/"), "slurmd", "-D", "-N", host.name, "-f", conf])
        self._wait_until_idle()

    def _start_munge(self) -> None:
        key, socket = self.folder / "munge.key", self.folder / "munge.socket"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(1024))
        files = {
            "socket": socket,
            "key-file": key,
            "pid-file": "munged.pid",
            "seed-file": "munged.seed",
            "log-file": "munged.log",
        }
        self._daemon(
            [
                "munged",
                "--foreground",
                *(f"--{name}={self.folder / file}" for name, file in files.items()),
            ]
        )
        self._wait_for("munge", socket.exists)

    def _provide_pmix(self) -> None:
        """Slurm's plugin looks for libpmix.so, which Debian leaves out: give it to the hosts, and
        to the head for srun.
        """
        original = PLUGINS / "pmix2/lib"
        if not original.exists() or (original / "libpmix.so").exists():
            return
        copy = self.folder / "pmix"
        shutil.copytree(original, copy, symlinks=True)
        (copy / "libpmix.so").symlink_to("libpmix.so.2")
        for host in [self.network.switch, *self.network.hosts]:
            subprocess.run(
                [*host.inside("/"), "mount", "--bind", str(copy), str(original)],
                check=True,
                timeout=CLIENT_SECONDS,
            )

    def _daemon(self, argv: list[str]) -> None:
        with (self.folder / "daemons.log").open("ab") as log:
            self._daemons.append(
                subprocess.Popen(
                    argv,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    preexec_fn=end_with_parent(),
                    start_new_session=True,
                )
            )

    def _wait_until_idle(self) -> None:
        """All nodes idle, and one real step through all of them; srun's exit status alone can't be
        trusted.
        """
        self._wait_for(
            "idle nodes",
            lambda: (
                self._quietly("sinfo", "-h", "-t", "idle", "-o", "%D").strip()
                == str(self.num_nodes)
            ),
        )
        step = [
            "srun",
            "--time=1",
            f"--nodes={self.num_nodes}",
            f"--ntasks={self.num_nodes}",
            "echo",
            "reached",
        ]
        self._wait_for(
            "a first step", lambda: self._quietly(*step).count("reached") == self.num_nodes
        )

    def _quietly(self, *command: str) -> str:
        try:
            return self.client(*command, seconds=5.0)
        except (AssertionError, subprocess.TimeoutExpired):
            return ""

    def _wait_for(self, what: str, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not condition():
            ended = [daemon.args for daemon in self._daemons if daemon.poll() is not None]
            if ended or time.monotonic() > deadline:
                raise AssertionError(
                    f"the virtual Slurm has no {what}; ended: {ended}\n{self._logs()}"
                )
            time.sleep(0.05)

    def _logs(self) -> str:
        return "".join(
            f"== {file.name}\n{_read(file)[-2000:]}\n" for file in sorted(self.folder.glob("*.log"))
        )


def _field(name: str, text: str) -> str:
    found = re.search(rf"\b{name}=(\S+)", text)
    assert found is not None, f"no {name} in: {text}"
    return found.group(1)


def _read(file: Path) -> str:
    return file.read_text(errors="replace") if file.exists() else ""

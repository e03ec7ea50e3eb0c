"""A SLURM cluster of one node, installed from Debian packages, with all its files below one folder.

By hand, as root::

    eval "$(python tests/workflow/slurm_node.py start /tmp/slurm)"
    snakemake --workflow-profile workflow/profiles/slurm
    python tests/workflow/slurm_node.py stop /tmp/slurm
"""

import argparse
import getpass
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

PACKAGES = ("slurm-wlm", "munge")
SEARCHED = "/usr/sbin:/usr/bin:/sbin:/bin"  # not what is on PATH: a wrapper of `srun` may be there

# More memory than there is, so that jobs may ask for what a whole study needs.
SLURM_CONF = """\
ClusterName=test
SlurmctldHost=localhost
SlurmctldPort={controller_port}
SlurmdPort={node_port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
SlurmUser={user}
SlurmdUser={user}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
ReturnToService=2
KillWait=5
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
GresTypes=gpu
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
MinJobAge=3600
NodeName=localhost NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=256000 Gres=gpu:1 State=UNKNOWN
PartitionName=main Nodes=localhost Default=YES MaxTime=INFINITE State=UP
"""
GRES_CONF = """\
AutoDetect=off
NodeName=localhost Name=gpu File=/dev/null
"""
CGROUP_CONF = "CgroupPlugin=cgroup/v1\n"  # not used; found out by itself, it may want systemd


class Unavailable(Exception):
    """SLURM cannot be had on this machine; the message says why."""


class SlurmNode:
    """One node with one card that is none, without accounting; a job that exceeds its memory is killed.

    Parameters
    ----------
    folder
        Where configuration, state and logs of the daemons go.
    cpus
        How many processors the node says it has.

    Attributes
    ----------
    environment : dict
        What must be added to the environment of a program that submits jobs.
    """

    def __init__(self, folder: Path, cpus: int = 2):
        self.folder = folder.resolve()
        self.cpus = cpus
        self.environment = {"SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}"}

    def start(self) -> None:
        """Start the daemons and wait until the node takes jobs."""
        self._configure()
        munged = ["munged", "--force", f"--key-file={self.folder}/munge.key", f"--seed-file={self.folder}/munge.seed"]
        self._run(*munged, f"--socket={self.folder}/munge.sock", f"--pid-file={self.folder}/munged.pid", f"--log-file={self.folder}/munged.log")
        self._run("slurmctld", "-c")
        self._run("slurmd", "-N", "localhost")
        if not wait_until(lambda: self._run("sinfo", "--noheader", "--format=%t", check=False).strip() == "idle", seconds=30):
            raise RuntimeError("\n".join(file.read_text() for file in sorted(self.folder.glob("*.log"))))

    def stop(self) -> None:
        """Cancel all jobs and stop the daemons."""
        for job in self.queue():
            self._run("scancel", job, check=False)
        wait_until(lambda: not self.queue(), seconds=30)
        for daemon in ("slurmd", "slurmctld", "munged"):
            file = self.folder / f"{daemon}.pid"
            if file.exists():
                end(int(file.read_text()))
                file.unlink(missing_ok=True)

    def queue(self) -> list[str]:
        """Numbers of the jobs that wait, run or are being ended."""
        return self._run("squeue", "--noheader", "--format=%i", check=False).split()

    def jobs(self) -> list[dict[str, str]]:
        """All jobs of the last hour, in the words of `scontrol`: `JobState`, `Comment`, `TRES`, ..."""
        lines = self._run("scontrol", "--oneliner", "show", "jobs").splitlines()
        return [dict(re.findall(r"(\S+?)=(\S*)", line)) for line in lines if line.startswith("JobId=")]

    def _configure(self) -> None:
        for name in ("bin", "state", "spool"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        key = self.folder / "munge.key"
        if not key.exists():
            key.write_bytes(os.urandom(128))
            key.chmod(0o400)
        controller_port, node_port = free_ports(2)
        (self.folder / "slurm.conf").write_text(
            SLURM_CONF.format(folder=self.folder, user=getpass.getuser(), cpus=self.cpus, controller_port=controller_port, node_port=node_port)
        )
        (self.folder / "gres.conf").write_text(GRES_CONF)
        (self.folder / "cgroup.conf").write_text(CGROUP_CONF)
        # Snakemake's plugin takes SLURM_CONF out of the environment of the `srun` inside a job.
        srun = self.folder / "bin" / "srun"
        srun.write_text(f'#!/bin/sh\nSLURM_CONF="{self.folder}/slurm.conf" exec {shutil.which("srun", path=SEARCHED)} "$@"\n')
        srun.chmod(0o755)

    def _run(self, *command: str, check: bool = True) -> str:
        environment = os.environ | self.environment | {"PATH": SEARCHED}
        done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=self.folder)
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr or done.stdout}")
        return done.stdout


def install() -> None:
    """Install SLURM where it is missing, which takes root and `apt-get`.

    Raises
    ------
    Unavailable
        SLURM is not here and cannot be installed.
    """
    missing = [name for name in ("munged", "slurmctld", "slurmd", "sbatch") if not shutil.which(name, path=SEARCHED)]
    if not missing:
        return
    if os.geteuid() != 0:
        raise Unavailable(f"no {missing[0]} here, and only root can install {' and '.join(PACKAGES)}")
    if not shutil.which("apt-get"):
        raise Unavailable(f"no {missing[0]} here, and no apt-get to install {' and '.join(PACKAGES)}")
    for command in (["update"], ["install", "--yes", "--no-install-recommends", *PACKAGES]):
        done = subprocess.run(
            ["apt-get", "--quiet", "-o", "DPkg::Lock::Timeout=60", *command],
            env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"}, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        if done.returncode:
            raise Unavailable(f"apt-get {command[0]} failed: {(done.stderr or done.stdout).strip().splitlines()[-1]}")


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nothing listens on."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def wait_until(condition, seconds: float) -> bool:
    """Whether the condition comes true within so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def end(pid: int) -> None:
    """End a process and wait until it is gone."""

    def gone() -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except (FileNotFoundError, ProcessLookupError):
            return True

    if not gone():
        os.kill(pid, signal.SIGTERM)
        if not wait_until(gone, seconds=20):
            os.kill(pid, signal.SIGKILL)


def main() -> None:
    parser = argparse.ArgumentParser(description="Start or stop a SLURM of one node.")
    parser.add_argument("action", choices=["start", "stop"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cpus", type=int, default=os.cpu_count())
    given = parser.parse_args()
    node = SlurmNode(given.folder, given.cpus)
    if given.action == "stop":
        node.stop()
        return
    try:
        install()
    except Unavailable as reason:
        sys.exit(str(reason))
    given.folder.mkdir(parents=True, exist_ok=True)
    node.start()
    print(f"export SLURM_CONF={node.environment['SLURM_CONF']} PATH={node.folder / 'bin'}:$PATH")


if __name__ == "__main__":
    main()

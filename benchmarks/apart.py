"""Stages in processes of their own, and what each took; for the other scripts here."""

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def measured(arguments: list[str], script: str | None = None) -> dict[str, Any]:
    """Run `unimind` with these arguments, or the Python of `script` with them, in a process of its own.

    Returns
    -------
    dict
        `seconds` (wall), `cpu` (seconds, user and system), `peak` (bytes resident at most), `read`, `written` (bytes asked of the system,
        where it counts them, else None), `said` (standard output).

    Raises
    ------
    SystemExit
        It failed; with the end of what it said.
    """
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    call = [sys.executable, __file__, *arguments] if script is None else [sys.executable, __file__, "--script", script, *arguments]
    place = Path(__file__).resolve().parents[1]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(place), *filter(None, [os.environ.get("PYTHONPATH")])])}
    done = subprocess.run(call, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(f"{' '.join(call[2:])[:200]}\n{done.stderr[-3000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    said, _, last = done.stdout.rstrip().rpartition("\n")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": time.monotonic() - begun, "cpu": cpu, "said": said} | json.loads(last)


def taken() -> dict[str, int | None]:
    """Peak memory of this process, and the bytes that it has read and written, files in the system's cache included."""
    status, counts = Path("/proc/self/status"), Path("/proc/self/io")
    if not status.exists():
        return {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024), "read": None, "written": None}
    # Of this program alone: ru_maxrss also counts the process that started it.
    peak = next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    io = dict(line.split(": ") for line in counts.read_text().splitlines())
    return {"peak": 1024 * peak, "read": int(io["rchar"]), "written": int(io["wchar"])}


def main() -> None:
    arguments = sys.argv[1:]
    if arguments[0] == "--script":
        script, sys.argv = arguments[1], [sys.argv[0], *arguments[2:]]
        exec(compile(script, "script", "exec"), {"__name__": "apart"})
        status = 0
    else:
        from unimind.cli import main

        status = main(arguments)
    print(json.dumps(taken()))
    sys.exit(status)


if __name__ == "__main__":
    main()

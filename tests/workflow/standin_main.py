"""Stands in for `unimind/__main__.py`: takes a stage's arguments, writes what the stage would write, computes nothing.

`STANDIN_FAIL=<stage>` makes that stage fail once it has written a checkpoint, `STANDIN_REFUSE=<stage>` makes it refuse what it is
given. `STANDIN_MEMORY=<stage>:<megabytes>` makes it hold so much memory for some seconds. Every call is recorded in `calls.tsv`.
"""

import mmap
import os
import sys
import tempfile
import time
from pathlib import Path

from unimind.cli import build_parser

begun = time.time()
given = vars(build_parser().parse_args())
stage, out = given["stage"], given["out"]
for value in given.values():
    for path in value if isinstance(value, list) else [value]:
        if isinstance(path, Path) and path not in (out, given.get("grid"), given.get("checkpoints")) and not path.exists():
            sys.exit(f"{path}: no such input")
print(f"working on {out}", file=sys.stderr)
if given.get("checkpoints"):
    given["checkpoints"].mkdir(parents=True, exist_ok=True)
    with open(given["checkpoints"] / "attempts", "a") as stream:
        stream.write("x")
if os.environ.get("STANDIN_FAIL") == stage:
    sys.exit("something went wrong: this is the last line of the log")
if os.environ.get("STANDIN_REFUSE") == stage:
    print(f"unimind {stage}: not this", file=sys.stderr)
    sys.exit(2)
greedy, _, megabytes = os.environ.get("STANDIN_MEMORY", "").partition(":")
if greedy == stage:
    with tempfile.TemporaryFile() as file:  # 64 megabytes mapped many times: the kernel counts every mapping, the machine need not have the memory
        file.truncate(64 * 2**20)
        held = [mmap.mmap(file.fileno(), 64 * 2**20, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE) for _ in range(int(megabytes) // 64)]
        time.sleep(5)
time.sleep(float(os.environ.get("STANDIN_SECONDS", 0)))
if out.suffix:
    out.write_text(f"made by {stage}\n")
else:
    out.mkdir(parents=True, exist_ok=True)
    (out / {"tabulate": "reconstruction.csv", "figures": "losses.png"}.get(stage, "model.safetensors")).write_text(f"made by {stage}\n")
if given.get("grid"):
    given["grid"].write_text("grid\n")
with open("calls.tsv", "a") as stream:
    stream.write(f"{stage}\t{out}\t{begun}\t{time.time()}\t{os.environ.get('OMP_NUM_THREADS')}\t{sys.executable}\n")

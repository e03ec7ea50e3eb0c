"""What a training leaves on disk: checkpoints on its way, a model at its end."""

import csv
import json
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from accelerate import PartialState
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from unimind.progress import say
from unimind.provenance import code_hash
from unimind.storage import content_hash, file_hash, save_model, whole_directory, whole_file, write_json
from unimind.study import Study
from unimind.study.view import declared
from unimind.training.measuring import Trained

#: Share of a training's time that writing checkpoints may take: rather than more, they are written less often.
SHARE = 0.03


def fingerprint(seen: Study, files: Iterable[Path], module: str, *further: Any) -> str:
    """Hash of everything a training depends on: the study, contents of files (directories: their model), code.

    Parameters
    ----------
    seen : Study
        The study as the stage sees it: what its declaration reads counts, and nothing else; of a study that is no view, everything.
    files : iterable of Path
        Data files, or model directories.
    module : str
        Name of the stage's module, such as `unimind.training.align`.
    *further
        What else tells this training from others of the stage; JSON-able.
    """
    hashes = [file_hash(path / "model.safetensors" if path.is_dir() else path) for path in files]
    return content_hash({"settings": declared(seen), "further": further, "files": hashes, "code": code_hash(module)})


class Checkpoint:
    """A training's tensors and state in one file, written whole or not at all, by the clock.

    Parameters
    ----------
    folder : Path
    fingerprint : str
        A file with another one is not read.
    minutes : float
        Time between two writings; more where they would take more than `SHARE` of it.
    label : str
        What is trained, for messages.
    """

    def __init__(self, folder: Path, fingerprint: str, minutes: float, label: str) -> None:
        self.file, self.fingerprint, self.label = Path(folder) / "checkpoint.safetensors", fingerprint, label
        self.seconds, self.cost, self.written = 60 * minutes, 0.0, time.monotonic()

    @property
    def due(self) -> bool:
        """Whether it is time to write."""
        return time.monotonic() - self.written >= max(self.seconds, self.cost / SHARE)

    def write(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Write tensors and a state that JSON knows."""
        begun = time.monotonic()
        content = {"fingerprint": self.fingerprint, **state}
        with whole_file(self.file) as temporary:
            save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, temporary, {"state": json.dumps(content)})
        self.written = time.monotonic()
        self.cost = self.written - begun

    def read(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """What was written last; None, and a line that says why, where there is nothing to go on from."""
        if not self.file.exists():
            return None
        try:
            with safe_open(self.file, "pt") as stored:
                state = json.loads(stored.metadata()["state"])
                if state["fingerprint"] != self.fingerprint:
                    say(f"{self.label}: {self.file} is of another configuration, other data or other code; training starts anew")
                    return None
                return {name: stored.get_tensor(name) for name in stored.keys()}, state
        except (SafetensorError, KeyError, TypeError, ValueError):
            say(f"{self.label}: {self.file} cannot be read; training starts anew")
            return None


def write_model(
    out: Path, state: dict[str, Tensor], config: dict[str, Any], trained: Trained,
    checkpoints: Path | None = None, beside: Callable[[Path], None] | None = None,
) -> None:  # fmt: skip
    """Write a trained model's directory, whole or not at all, then remove its checkpoints. Only the main process writes.

    Parameters
    ----------
    out : Path
        Directory that gets `model.safetensors`, `config.json`, `losses.csv` (step, split, term, value), `efficiency.json`.
    state : dict of str to Tensor
    config : dict
        Constructor arguments and hashes.
    trained : Trained
    checkpoints : Path, optional
        Directory to remove when the model is there.
    beside : function, optional
        Writes what else belongs to the model into the directory that it is given.
    """
    processes = PartialState()
    if processes.is_main_process:
        with whole_directory(out) as temporary:
            save_model(temporary, state, config)
            with open(temporary / "losses.csv", "w", newline="") as stream:
                rows = csv.writer(stream, lineterminator="\n")
                rows.writerow(["step", "split", "term", "value"])
                rows.writerows(trained.losses)
            write_json(temporary / "efficiency.json", trained.efficiency)
            if beside is not None:
                beside(temporary)
        if checkpoints is not None:
            shutil.rmtree(checkpoints, ignore_errors=True)
    processes.wait_for_everyone()

"""Training in processes of their own, to be killed: forked by a server that has imported everything and computed nothing."""

import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["diffusers.models.unets.unet_2d_condition", "timm.models.vision_transformer", "unimind.training.condition"])


def started(function: Callable[..., Any], *arguments: Any) -> BaseProcess:
    """A process that calls a function of an importable module on a CPU, with the same torch threads everywhere."""
    process = CONTEXT.Process(target=_call, args=(function, arguments))
    process.start()
    return process


def killed(process: BaseProcess) -> bool:
    """Whether a process ended by SIGKILL; waits for its end."""
    process.join()
    return process.exitcode == -signal.SIGKILL


def _call(function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    import torch

    os.environ["UNIMIND_DEVICE"] = "cpu"
    torch.set_num_threads(1)
    function(*arguments)

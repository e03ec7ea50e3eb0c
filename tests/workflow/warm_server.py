"""Runs stages for `warm_main.py` in forks of this process, one at a time: `python warm_server.py <socket>`, in a clone's folder."""

import os
import socket
import sys
import traceback

import diffusers
import transformers

from unimind.cli import main

diffusers.StableDiffusionPipeline, transformers.CLIPVisionModelWithProjection, transformers.CLIPTextModel, transformers.CLIPTokenizer  # loaded late  # noqa: B018
with socket.socket(socket.AF_UNIX) as listening:
    listening.bind(sys.argv[1])
    listening.listen()
    while True:
        job, _ = listening.accept()
        content, (out, err), *_ = socket.recv_fds(job, 1 << 16, 2)
        if (child := os.fork()) == 0:
            os.dup2(out, 1), os.dup2(err, 2)
            folder, *arguments = content.decode().split("\0")
            os.chdir(folder)
            code = 1
            try:
                code = main(arguments)
            except BaseException:
                traceback.print_exc()
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(code)
        job.sendall(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])).encode())
        for descriptor in (out, err):
            os.close(descriptor)
        job.close()

"""Stands in for `unimind/__main__.py`: every stage is the real one, run in a fork of one process that has the large libraries loaded.

A study of fifty jobs spends most of its time on loading them again; `python -m unimind` itself is tested by the other studies.
"""

import os
import socket
import sys

with socket.socket(socket.AF_UNIX) as server:
    server.connect(os.environ["WARM_SOCKET"])
    words = [os.getcwd(), *sys.argv[1:]]
    socket.send_fds(server, ["\0".join(words).encode()], [1, 2])
    sys.exit(int(server.recv(4) or b"1"))

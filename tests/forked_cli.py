"""`heirloom` commands in forks of one process that has imported everything: each saves the seconds of its imports.

Run as a script it reads a JSON line for each command and writes its exit code; `ForkedCommands` is the other end.
"""

import json
import os
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path


class ForkedCommands:
    """Runs `heirloom` commands as `subprocess.run` would, in the current folder, from the same imported modules.

    The first command starts the process that imports.
    """

    def __init__(self):
        self._process: subprocess.Popen | None = None

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess:
        """Run one command and wait for its end.

        Args:
            arguments: words after `heirloom`.

        Returns:
            With exit code and what it printed.
        """
        if self._process is None:
            command = [sys.executable, __file__]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        with tempfile.TemporaryDirectory() as folder:
            places = [str(Path(folder) / name) for name in ("out", "err")]
            order = {"arguments": arguments, "folder": str(Path.cwd()), "places": places}
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
            code = int(self._process.stdout.readline())
            out, err = (Path(place).read_text(encoding="utf-8") for place in places)
        return subprocess.CompletedProcess(["heirloom", *arguments], code, out, err)

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.communicate()
            self._process = None


def _run(order: dict) -> int:
    """In the fork: one command, its exit code."""
    from heirloom.cli.main import main

    os.chdir(order["folder"])
    for number, place in enumerate(order["places"], 1):
        os.dup2(os.open(place, os.O_WRONLY | os.O_CREAT), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.argv = ["heirloom", *order["arguments"]]
    try:
        main()
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _serve() -> None:
    import torch

    import heirloom.sharing.runs
    import heirloom.sharing.translation
    import heirloom.training.seq2seq  # noqa: F401

    torch.set_num_threads(1)  # threads of a pool would not live on in a fork
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            code = _run(json.loads(line))
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    _serve()

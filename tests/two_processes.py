"""Run a test suite's own functions in two gloo processes, as torchrun starts them."""

import os
import subprocess
import sys
from pathlib import Path

BEGIN = """
import importlib.util, pathlib, sys, torch

sys.path.insert(0, {tests!r})
spec = importlib.util.spec_from_file_location("suite", {suite!r})
suite = importlib.util.module_from_spec(spec)
spec.loader.exec_module(suite)
torch.set_num_threads(1)
folder = pathlib.Path({folder!r})
"""
# Without it the threads of one process may die with the other's sockets.
END = """
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""


def run_in_two_processes(suite: str, folder: Path, code: str) -> None:
    """Run code in two processes and wait for both.

    Args:
        suite: `__file__` of the test file, which the code knows as `suite`.
        folder: for files; the code knows it as `folder` and runs in it.
        code: what each process does; it must start the process group, as Trainer does.
    """
    script = folder / "in_two_processes.py"
    begin = BEGIN.format(tests=str(Path(__file__).parent), suite=suite, folder=str(folder))
    script.write_text(begin + code + END, encoding="utf-8")
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *launch], env=environment, cwd=folder, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-3000:]

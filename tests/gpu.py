"""What the tests of the GPU's way share: what it needs, and Triton's interpreter where there is no GPU."""

import importlib.util
import os
import subprocess
import sys

import pytest

from heirloom.modeling.lstmp_cuda import why_not_cuda

needs_cuda = pytest.mark.skipif(bool(why_not_cuda()), reason=why_not_cuda() or "-")


def check_interpreted(code: str) -> None:
    """Run code that prints "equal" with Triton's interpreter in the place of a GPU; skips where Triton is not installed."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed")
    environment = os.environ | {"TRITON_INTERPRET": "1"}  # read when triton is imported: another process
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout == "equal\n", done.stderr

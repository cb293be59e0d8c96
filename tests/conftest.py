"""What every test starts from: no network, few threads, no display, the same random numbers."""

import atexit
import logging
import os
import random
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "Agg")
if "HF_HOME" not in os.environ:
    # A cache of its own: copies of remote code or data from an earlier run would hide a failure.
    os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="heirloom-tests-")
    atexit.register(shutil.rmtree, os.environ["HF_HOME"], ignore_errors=True)


@pytest.fixture(autouse=True)
def same_start():
    """Seeds, threads and log levels of each test; torch and Transformers only where the test's file has imported them."""
    random.seed(0)
    logging.getLogger("heirloom").setLevel(logging.NOTSET)
    if transformers := sys.modules.get("transformers.utils.logging"):
        transformers.set_verbosity_warning()  # benchmarks say less
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)
        torch.set_num_threads(1)  # tiny models gain nothing from more, and lose on a busy machine


@pytest.fixture
def no_tf32():
    """Products of float32 on a GPU without TF32."""
    import torch

    before, torch.backends.cuda.matmul.allow_tf32 = torch.backends.cuda.matmul.allow_tf32, False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of originals' outputs and data sets that may lie beside the checkout."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("needs the folder `shared` (originals' outputs, data sets) beside the checkout")
    return folder

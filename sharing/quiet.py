"""Other libraries' bars and notices, silenced while one of our verbs tells its own story."""

import contextlib
from collections.abc import Iterator

import datasets
from transformers.utils import logging


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence Transformers' notices and loading bars and datasets' bars; Trainer's own bar stays."""
    verbosity, bars, other_bars = (
        logging.get_verbosity(),
        logging.is_progress_bar_enabled(),
        datasets.are_progress_bars_disabled(),
    )
    logging.set_verbosity_error()  # "newly initialized" heads, for one: they are the point of fine-tuning
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
        if not other_bars:
            datasets.enable_progress_bars()

"""Slow, readable twins of the fast code, and what tests share. None of it is shipped."""

import torch

torch.set_num_threads(1)  # the models of the tests are so tiny that threads only wait for each other

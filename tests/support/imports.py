"""What processes that are forked find imported; no device is asked for here."""

import gc
import importlib

from adanat_jax import main
from support import toy_cluster, toy_training  # noqa: F401

for module in main.STAGES.values():
  importlib.import_module(module)

# What is imported stays: nothing looks through it again. See conftest.py.
gc.collect()
gc.freeze()
gc.set_threshold(50_000, 10, 10)

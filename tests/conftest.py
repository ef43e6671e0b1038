"""What tests need when pytest runs them and not `absltest.main`."""

import gc
import os

from absl import flags
import jax
import pytest

from support import children

# These go first, so that at the end no worker waits for another that has one
# of them still before it.
_LONGEST = (
  'end_to_end_real_images_test',
  'stages_policy_test',
  'end_to_end_test',
  'runtime_processes_test',
  'stages_distributed_test',
  'examples_test',
  'parity_test',
  'benchmarks_collectives_test',
  'stages_prepare_test',
  'stages_tokenizer_test',
  'runtime_loop_test',
  'convert_test',
  'stages_search_test',
  'stages_nat_test',
  'end_to_end_old_workdir_test',
  'main_test',
)

# The tests are of CPUs, whatever else is here. A JAX that looks for a GPU and
# finds none gives up its compiler, which some of them try.
jax.config.update('jax_platforms', 'cpu')

# Threads of OpenBLAS spin while they wait for small products. NumPy reads it
# when it is loaded.
os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')

# Processes that tests start inherit it. `XLA_FLAGS= ./test.sh` compiles as for
# users.
os.environ.setdefault('XLA_FLAGS', children.XLA_FLAGS)

# Tracing makes many objects that stay; looking through all of them every 700
# new ones, as Python does by itself, takes a twentieth of the tests' time.
gc.set_threshold(50_000, 10, 10)

# absltest reads its temporary directory from a flag.
flags.FLAGS.mark_as_parsed()


@pytest.fixture(autouse=True, scope='module')
def _programs_of_one_module():
  """Frees what a module has compiled; thousands of programs fill gigabytes.

  What is left is kept out of later garbage collections, as the imports are: a
  damaged checkpoint starts one over all that there is.
  """
  yield
  jax.clear_caches()
  gc.collect()
  gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
  """Puts the longest files first; within a file the order stays."""
  place = {name: index for index, name in enumerate(_LONGEST)}
  items.sort(key=lambda item: place.get(item.path.stem, len(place)))


def pytest_collection_finish() -> None:
  """Leaves what the imports made out of later garbage collections."""
  gc.collect()
  gc.freeze()

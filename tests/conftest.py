"""What tests need when pytest runs them and not `absltest.main`."""

import gc
import os

from absl import flags
import pytest

from support import children

# These go first, so that at the end no worker waits for another that has one
# of them still before it.
_LONGEST = (
  'end_to_end_test',
  'real_images_test',
  'multiprocess_test',
  'distributed_test',
  'collectives_test',
  'policy_stage_test',
  'prepare_test',
  'tokenizer_test',
  'parity_test',
  'training_test',
  'search_test',
  'nat_training_test',
)

# Processes that tests start inherit it. `XLA_FLAGS= ./test.sh` compiles as for
# users.
os.environ.setdefault('XLA_FLAGS', children.XLA_FLAGS)

# Tracing makes many objects that stay; looking through all of them every 700
# new ones, as Python does by itself, takes a twentieth of the tests' time.
gc.set_threshold(50_000, 10, 10)

# absltest reads its temporary directory from a flag.
flags.FLAGS.mark_as_parsed()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
  """Puts the longest files first; within a file the order stays."""
  place = {name: index for index, name in enumerate(_LONGEST)}
  items.sort(key=lambda item: place.get(item.path.stem, len(place)))

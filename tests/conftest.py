"""What a test needs when pytest runs it and not `absltest.main`."""

import os

from absl import flags
import children

# Processes that tests start inherit it. `XLA_FLAGS= ./test.sh` compiles as for
# users.
os.environ.setdefault('XLA_FLAGS', children.XLA_FLAGS)

# absltest reads its temporary directory from a flag.
flags.FLAGS.mark_as_parsed()

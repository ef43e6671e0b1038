"""What a test needs when pytest runs it and not `absltest.main`."""

from absl import flags

# absltest reads its temporary directory from a flag.
flags.FLAGS.mark_as_parsed()

"""What a test needs when pytest runs it and not `absltest.main`."""

import os

from absl import flags

# Compiling is most of the tests' time, and what is compiled runs for moments.
# Processes that tests start inherit it; `XLA_FLAGS= ./test.sh` compiles as for
# users.
os.environ.setdefault(
  'XLA_FLAGS',
  '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true'
  ' --xla_cpu_use_fusion_emitters=false'
  ' --xla_cpu_parallel_codegen_split_count=1',
)

# absltest reads its temporary directory from a flag.
flags.FLAGS.mark_as_parsed()

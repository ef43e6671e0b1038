"""allocator: a CPU process keeps its memory, others are left alone."""

import platform
import resource
import sys

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp

from adanat_jax.runtime import environment
from support import children

_NUM_CALLS = 20


def _faults_a_call(keep: bool) -> float:
  """Page faults of a program with 64 MB of scratch memory, in this process."""
  if keep:
    assert environment.keep_memory()
  program = jax.jit(lambda x: (x @ x.T) @ x)
  x = jnp.ones((4096, 4))
  # What is kept grows until it holds all that is in use at once.
  for _ in range(_NUM_CALLS):
    program(x).block_until_ready()
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  for _ in range(_NUM_CALLS):
    program(x).block_until_ready()
  after = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  return (after - before) / _NUM_CALLS


class AllocatorTest(parameterized.TestCase):
  @absltest.skipUnless(platform.libc_ver()[0] == 'glibc', 'this is of glibc')
  def test_scratch_memory_is_asked_of_the_kernel_once(self):
    left = children.run(__file__, 1, 'leave')
    self.assertGreater(left, 10_000)
    self.assertLess(children.run(__file__, 1, 'keep'), left / 4)

  @parameterized.parameters(('cpu', True), ('cuda,cpu', False), ('tpu', False))
  def test_only_where_the_cpu_is_the_device(self, platforms, expected):
    before = jax.config.jax_platforms
    self.addCleanup(jax.config.update, 'jax_platforms', before)
    jax.config.update('jax_platforms', platforms)
    self.assertEqual(environment._is_cpu(), expected)

  def test_an_accelerators_plugin_counts_as_a_device(self):
    before = jax.config.jax_platforms
    self.addCleanup(jax.config.update, 'jax_platforms', before)
    jax.config.update('jax_platforms', None)
    found = ['jax_plugins']
    self.enter_context(
      absltest.mock.patch.object(
        environment.importlib.util,
        'find_spec',
        lambda name: name if name in found else None,
      )
    )
    self.assertFalse(environment._is_cpu())
    found.clear()
    self.assertTrue(environment._is_cpu())


if __name__ == '__main__':
  if '--child' in sys.argv:
    print(_faults_a_call(sys.argv[-1] == 'keep'))
  else:
    absltest.main()

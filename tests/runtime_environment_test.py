"""The cache of compiled programs changes no result; memory is kept on CPUs."""

import json
import os
import pathlib
import platform
import resource
import subprocess
import sys
import tempfile
from unittest import mock
import zlib

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp

from adanat_jax.errors import UserError
from adanat_jax.runtime import environment
from support import children

_NUM_CALLS = 20
# Prints the bits of a small training-like computation.
_COMPUTE = """
import sys
import jax
import jax.numpy as jnp
from adanat_jax.runtime import environment

if len(sys.argv) > 1:
  environment.set_cache(None if sys.argv[1] == 'off' else sys.argv[1])

@jax.jit
def run(key):
  weights = jax.random.normal(key, (48, 48))
  x = jax.random.normal(jax.random.fold_in(key, 1), (16, 48))
  def loss(weights):
    return jnp.mean(jax.nn.softmax(jnp.tanh(x @ weights) @ weights) * x)
  def step(weights, _):
    return weights - 0.1 * jax.grad(loss)(weights), loss(weights)
  return jax.lax.scan(step, weights, length=20)

weights, losses = run(jax.random.key(0))
print(weights.tobytes().hex(), losses.tobytes().hex())
"""


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


class CompileCacheTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    directory = self.enter_context(tempfile.TemporaryDirectory())
    self.directory = pathlib.Path(directory)

  def _compute(self, *arguments):
    result = children.call(['-c', _COMPUTE, *arguments])
    self.assertEqual(result.returncode, 0, result.stderr)
    return result.stdout, result.stderr

  def _compute_as_jax_is_told(self, directory, *arguments):
    # JAX reads this when it is imported.
    subprocess.run(
      [sys.executable, '-c', _COMPUTE, *arguments],
      check=True,
      timeout=120,
      stdout=subprocess.DEVNULL,
      env={
        **children.environment(1),
        'JAX_COMPILATION_CACHE_DIR': str(directory),
      },
    )

  def _entries(self):
    return sorted(self.directory.glob('*/*-cache'))

  def test_same_bits_without_cold_warm_and_after_a_kill(self):
    bits, _ = self._compute()
    cold, _ = self._compute(str(self.directory))
    entries = self._entries()
    self.assertNotEmpty(entries)
    warm, _ = self._compute(str(self.directory))
    self.assertEqual(self._entries(), entries)
    # What a process leaves that is killed while it writes.
    whole = [entry.read_bytes() for entry in entries]
    for entry, content in zip(entries, whole, strict=True):
      entry.write_bytes(content[: len(content) // 2])
    cut, errors = self._compute(str(self.directory))
    self.assertEqual([bits] * 3, [cold, warm, cut])
    self.assertNotIn('Error reading', errors)
    sizes = [entry.stat().st_size for entry in self._entries()]
    self.assertGreater(min(sizes), 0)
    for entry in self._entries():
      zlib.decompress(entry.read_bytes())

  def test_only_entries_since_the_last_look_are_read(self):
    damaged = self.directory / 'jit_f-00-cache'
    (self.directory / 'jit_g-00-cache').write_bytes(zlib.compress(b'program'))
    damaged.write_bytes(zlib.compress(b'program')[:-3])
    self.assertEqual(environment.delete_damaged(self.directory), 1)
    self.assertFalse(damaged.exists())
    damaged.write_bytes(b'')
    self.assertEqual(environment.delete_damaged(self.directory), 1)
    damaged.write_bytes(b'')
    os.utime(damaged, (1, 1))
    self.assertEqual(environment.delete_damaged(self.directory), 0)

  def test_directory_that_cannot_be_made_is_done_without(self):
    blocked = self.directory / 'file'
    blocked.write_text('')
    self.assertIsNone(environment.set_cache(str(blocked)))

  def test_where_others_may_write_is_refused(self):
    self.addCleanup(environment.set_cache, None)
    place = self.directory / 'cache'
    path = environment.set_cache(str(place))
    self.assertEqual(place.stat().st_mode & 0o777, 0o700)
    with mock.patch.object(os, 'geteuid', return_value=os.getuid() + 1):
      with self.assertRaisesRegex(UserError, "is another user's"):
        environment.set_cache(str(place))
    for where, mode, is_refused in (
      (path, 0o777, True),
      (place, 0o777, True),
      (place, 0o775, place.stat().st_gid != os.geteuid()),
      (place, 0o755, False),
      (self.directory, 0o777, True),
      (self.directory, 0o1777, False),
    ):
      before = where.stat().st_mode
      where.chmod(mode)
      with self.subTest(f'{where.name} {mode:o}'):
        if is_refused:
          with self.assertRaisesRegex(UserError, 'written by others.* go-w'):
            environment.set_cache(str(place))
        else:
          self.assertEqual(environment.set_cache(str(place)), path)
      where.chmod(before)

  def test_cpus_that_compute_together_compile(self):
    saved = jax.config.jax_enable_compilation_cache
    self.addCleanup(jax.config.update, 'jax_enable_compilation_cache', saved)
    for backend, count, is_left in (
      ('cpu', 1, False),
      ('gpu', 8, False),
      ('cpu', 2, True),
    ):
      jax.config.update('jax_enable_compilation_cache', True)
      with (
        mock.patch.object(jax, 'default_backend', lambda name=backend: name),
        mock.patch.object(jax, 'device_count', lambda number=count: number),
      ):
        self.assertEqual(environment.leave_cache_to_one(), is_left)
      self.assertEqual(jax.config.jax_enable_compilation_cache, not is_left)

  def test_off_is_off_whatever_jax_is_told(self):
    self._compute_as_jax_is_told(self.directory / 'a', 'off')
    self.assertEmpty(os.listdir(self.directory))
    self._compute_as_jax_is_told(self.directory / 'a')
    self.assertNotEmpty(os.listdir(self.directory))


class MemoryTest(parameterized.TestCase):
  @absltest.skipUnless(platform.libc_ver()[0] == 'glibc', 'this is of glibc')
  def test_scratch_memory_is_asked_of_the_kernel_once(self):
    left = self._faults('leave')
    self.assertGreater(left, 10_000)
    self.assertLess(self._faults('keep'), left / 4)

  def _faults(self, what):
    # A fresh process: threads of one that was forked may have arenas.
    child = subprocess.run(
      [sys.executable, __file__, '--child', what],
      env=children.environment(1),
      capture_output=True,
      text=True,
      check=True,
    )
    return json.loads(child.stdout.splitlines()[-1])

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
      mock.patch.object(
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

"""The compilation cache changes when a run starts, never what it computes."""

import os
import pathlib
import subprocess
import sys
import tempfile
import zlib

from absl.testing import absltest

from adanat_jax.runtime import environment

# Prints the bits of a small training-like computation.
_COMPUTE = """
import sys
import jax
import jax.numpy as jnp
from adanat_jax.runtime import environment

if len(sys.argv) > 1:
  environment.enable_cache(sys.argv[1])

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


class CompileCacheTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    directory = self.enter_context(tempfile.TemporaryDirectory())
    self.directory = pathlib.Path(directory)

  def _compute(self, *arguments):
    result = subprocess.run(
      [sys.executable, '-c', _COMPUTE, *arguments],
      capture_output=True,
      text=True,
      check=True,
      timeout=120,
      cwd=pathlib.Path(__file__).parents[1],
      env={
        **os.environ,
        'JAX_PLATFORMS': 'cpu',
        # Else nothing that is as small as this would be cached.
        'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
      },
    )
    return result.stdout, result.stderr

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
    self.assertIsNone(environment.enable_cache(str(blocked)))


if __name__ == '__main__':
  absltest.main()

"""Checkpoints: everything comes back, and damage is never taken for data."""

from collections.abc import Callable
import functools
import pathlib
import shutil
from typing import Any, NamedTuple
import unittest
from unittest import mock

from absl import logging
from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np

from adanat_jax.errors import UserError
from adanat_jax.runtime import checkpoint, checkpoint_format, journal, leaves


class Moments(NamedTuple):
  count: jax.Array
  mean: dict[str, jax.Array]


def make_state(seed: int = 0) -> dict[str, Any]:
  """Returns a state with a leaf of every kind that stages use."""
  draw = np.random.default_rng(seed)
  floats = functools.partial(draw.normal, size=(7, 5))
  kernel = jnp.asarray(floats(), jnp.float32)
  return {
    'params': {
      'block': {'kernel': kernel, 'scale': jnp.asarray(floats(), jnp.bfloat16)},
      'codebook': jnp.asarray(floats(), jnp.float16),
    },
    'opt': (Moments(jnp.int32(seed), {'kernel': kernel * 2}), ()),
    'key': jax.random.key(seed),
    'keys': jax.random.split(jax.random.key(seed), 3),
    'used': jnp.asarray(draw.integers(0, 2, 9), jnp.bool_),
    'tokens': jnp.asarray(draw.integers(0, 99, (2, 3)), jnp.int8),
    'scalar': jnp.float32(seed + 0.1),
    # Large enough for a file of its own, which Orbax has no checksum of.
    'large': jnp.asarray(draw.normal(size=(64, 64)), jnp.float32),
  }


def bits(tree: Any) -> Any:
  """Returns the leaves as NumPy arrays, keys as their data."""

  def read(leaf: jax.Array) -> np.ndarray:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      leaf = jax.random.key_data(leaf)
    return np.asarray(leaf)

  return jax.tree.map(read, tree)


def same(one: Any, other: Any) -> bool:
  """Returns whether two trees have the same leaves to the last bit."""
  equal = jax.tree.map(
    lambda a, b: a.dtype == b.dtype and a.tobytes() == b.tobytes(),
    bits(one),
    bits(other),
  )
  return all(jax.tree.leaves(equal))


def save(directory: pathlib.Path, *steps: int, **options: Any) -> None:
  """Saves the state of seed `step` for each step, and marks the last."""
  with checkpoint.Checkpointer(directory, **options) as checkpoints:
    for step in steps:
      checkpoints.save(step, make_state(step), {'config': {'seed': step}})
  journal.mark_complete(directory, steps[-1], {})


def restore(directory: pathlib.Path) -> checkpoint.Restored | None:
  with checkpoint.Checkpointer(directory) as checkpoints:
    return checkpoints.restore(make_state())


def steps_in(directory: pathlib.Path) -> set[str]:
  return {path.name for path in (directory / 'checkpoints').iterdir()}


def flip(data: bytes) -> bytes:
  middle = len(data) // 2
  return data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :]


def setUpModule():
  logging.set_verbosity(logging.WARNING)  # Orbax tells much at INFO.
  unittest.enterModuleContext(
    mock.patch.object(checkpoint_format, '_PAUSES', (0.0, 0.0))
  )


class CheckpointTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.directory = pathlib.Path(self.create_tempdir().full_path)

  def test_every_leaf_comes_back_to_the_last_bit(self):
    self.assertIsNone(restore(self.directory))
    save(self.directory, 3, 7)
    restored = restore(self.directory)
    self.assertEqual(restored.step, 7)
    self.assertTrue(same(restored.state, make_state(7)))
    self.assertFalse(same(restored.state, make_state(3)))
    self.assertEqual(
      jax.tree.structure(restored.state), jax.tree.structure(make_state())
    )
    self.assertEqual(restored.meta['config'], {'seed': 7})
    self.assertEqual(restored.meta['versions']['jax'], jax.__version__)
    # The restored key is a key, not its data.
    self.assertEqual(jax.random.bits(restored.state['key']).shape, ())

  def test_a_field_without_leaves_may_come_or_go(self):
    save(self.directory, 3)
    with checkpoint.Checkpointer(self.directory) as checkpoints:
      target = make_state() | {'average': None}
      restored = checkpoints.restore(target)
      self.assertTrue(same(restored.state, make_state(3) | {'average': None}))
      self.assertEqual(
        jax.tree.structure(restored.state), jax.tree.structure(target)
      )
      checkpoints.save(5, make_state(5) | {'average': None}, {})
    self.assertTrue(same(restore(self.directory).state, make_state(5)))

  def test_the_state_may_be_donated_while_it_is_being_saved(self):
    grow = jax.jit(lambda x: x + 1, donate_argnums=0)
    state = {'x': jnp.zeros((1000, 1000))}
    with checkpoint.Checkpointer(self.directory) as checkpoints:
      checkpoints.save(1, state, {})
      for _ in range(30):
        state = {'x': grow(state['x'])}
      jax.block_until_ready(state)
      checkpoints.wait()
      restored = checkpoints.restore(state)
    self.assertEqual(float(restored.state['x'].max()), 0.0)
    self.assertEqual(float(state['x'].min()), 30.0)

  def test_only_the_newest_are_kept(self):
    save(self.directory, 1, 2, 3, 4)
    self.assertEqual(steps_in(self.directory), {'3', '4'})

  def test_every_third_is_kept_too(self):
    save(self.directory, *range(1, 9), keep_every=3)
    self.assertEqual(steps_in(self.directory), {'3', '6', '7', '8'})
    with self.assertRaisesRegex(UserError, 'keep_every: 0 given'):
      checkpoint.Checkpointer(self.directory, keep_every=0)

  @parameterized.parameters(('min', '4'), ('max', '2'))
  def test_the_best_is_kept_too(self, mode: str, best: str):
    losses = {1: 5.0, 2: 9.0, 3: 8.0, 4: 1.5, 5: 4.0, 6: 3.0, 7: 2.0}

    def save_with_loss(*steps: int) -> None:
      with checkpoint.Checkpointer(
        self.directory, best_of=('loss', mode)
      ) as checkpoints:
        for step in steps:
          metrics = {'loss': np.float32(losses[step]), 'other': -step}
          checkpoints.save(step, make_state(step), {}, metrics)

    save_with_loss(1, 2, 3, 4)
    # A new start still knows how good the earlier ones were.
    save_with_loss(5, 6, 7)
    self.assertEqual(steps_in(self.directory), {best, '6', '7'})
    self.assertEqual(restore(self.directory).step, 7)

  def test_what_a_killed_deletion_leaves_is_cleared_away(self):
    options = {'keep_every': 3, 'best_of': ('eval/loss', 'min')}
    save(self.directory, *range(1, 8), keep_every=1)
    shutil.rmtree(self.directory / 'checkpoints/1/meta')
    with checkpoint.Checkpointer(self.directory, **options) as checkpoints:
      self.assertEqual(checkpoints.restore(make_state()).step, 7)
      checkpoints.score({step: {'eval/loss': step % 5} for step in (4, 5, 7)})
      checkpoints.tidy()
      self.assertEqual(checkpoints.best()['step'], 5)
    self.assertEqual(steps_in(self.directory), {'3', '5', '6', '7'})

  def test_what_cannot_be_best(self):
    with self.assertRaisesRegex(UserError, "'min' or 'max'"):
      checkpoint.Checkpointer(self.directory, best_of=('loss', 'least'))
    with (
      checkpoint.Checkpointer(
        self.directory, best_of=('loss', 'min')
      ) as checkpoints,
      self.assertRaisesRegex(UserError, "'loss' is no metric .* are kl, rewa"),
    ):
      checkpoints.save(1, make_state(), {}, {'reward': 1.0, 'kl': 0.0})

  @parameterized.parameters('', '{', '[1]')
  def test_a_damaged_metric_costs_nothing_else(self, content: str):
    with checkpoint.Checkpointer(
      self.directory, best_of=('loss', 'min')
    ) as checkpoints:
      for step in (1, 2, 3):
        checkpoints.save(step, make_state(step), {}, {'loss': step})
    for path in (self.directory / 'checkpoints/1/meta').rglob('*'):
      path.write_text(content)
    with checkpoint.Checkpointer(
      self.directory, best_of=('loss', 'min')
    ) as checkpoints:
      checkpoints.save(4, make_state(4), {}, {'loss': 7})
      checkpoints.save(5, make_state(5), {}, {'loss': 8})
      checkpoints.wait()
      self.assertEqual(checkpoints.restore(make_state()).step, 5)
    # The first was the best, but nobody knows any more.
    self.assertEqual(steps_in(self.directory), {'2', '4', '5'})

  @parameterized.named_parameters(
    ('shortened', lambda data: data[: len(data) // 2]),
    ('emptied', lambda data: b''),
    ('one_bit_changed', flip),
    ('removed', None),
  )
  def test_damage_to_any_file_is_never_taken_for_data(
    self, damage: Callable[[bytes], bytes] | None
  ):
    whole = self.directory / 'whole'
    save(whole, 3, 7)
    fell_back = []
    for number, path in enumerate(sorted((whole / 'checkpoints/7').rglob('*'))):
      if path.is_dir() or not path.stat().st_size:
        continue
      copy = self.directory / str(number)
      shutil.copytree(whole, copy)
      victim = copy / path.relative_to(whole)
      if damage is None:
        victim.unlink()
      else:
        victim.write_bytes(damage(victim.read_bytes()))
      with self.subTest(victim.relative_to(copy)):
        with self.assertLogs('absl', 'WARNING') as logs:
          logging.warning('there is always one')
          restored = restore(copy)
        # Files that nothing depends on may break: then the newest is used.
        self.assertIn(restored.step, (3, 7))
        self.assertTrue(same(restored.state, make_state(restored.step)))
        if restored.step == 3:
          fell_back.append(path.name)
          self.assertLen(logs.output, 2)
          self.assertIn(f'{copy}/checkpoints/7 is damaged', logs.output[1])
          self.assertEqual(steps_in(copy), {'3'})
          self.assertTrue((copy / 'checkpoints.damaged/7').is_dir())
    # The meta, the tree's description, an index, and the numbers themselves.
    self.assertGreaterEqual(len(fell_back), 4, fell_back)

  def test_a_checkpoint_under_another_number_is_not_restored_as_that(self):
    save(self.directory, 3, 7)
    place = self.directory / 'checkpoints'
    (place / '7').rename(place / '9')
    with self.assertRaisesRegex(UserError, 'checkpoints/7: .* damaged'):
      checkpoint.load_params(self.directory, 'params')
    shutil.copytree(place / '9', place / '7')
    journal.mark_complete(self.directory, 9, {})
    for read in (
      lambda: checkpoint.load_params(self.directory, 'params'),
      lambda: checkpoint.digest_params(self.directory, 'params'),
    ):
      with self.assertRaisesRegex(
        UserError, r'9: .* damaged .*of step 7 under'
      ):
        read()
    self.assertEqual(restore(self.directory).step, 7)
    self.assertEqual(steps_in(self.directory), {'3', '7'})

  @parameterized.parameters((2, 7), (3, 3))
  def test_a_read_that_is_refused_is_tried_again(self, refused: int, step: int):
    save(self.directory, 3, 7)
    for number in range(2):
      refusals = [OSError(116, 'Stale file handle')] * refused
      with mock.patch.object(
        checkpoint_format,
        'read',
        wraps=checkpoint_format.read,
        side_effect=[*refusals, mock.DEFAULT, mock.DEFAULT],
      ):
        restored = restore(self.directory)
      self.assertEqual(restored.step, step)
      damaged = self.directory / 'checkpoints.damaged'
      if step == 7:
        self.assertFalse(damaged.exists())
        continue
      # A second one of the same step does not push out the first.
      self.assertLen(list(damaged.iterdir()), number + 1)
      save(self.directory, 7)

  def test_what_a_killed_save_leaves_is_cleared_away(self):
    save(self.directory, 3)
    path = self.directory / 'checkpoints'
    shutil.copytree(path / '3', path / '9.orbax-checkpoint-tmp')
    (path / '8').mkdir()
    with self.assertLogs('absl', 'WARNING') as logs:
      restored = restore(self.directory)
    self.assertEqual(restored.step, 3)
    self.assertIn('checkpoints/8 is damaged', '\n'.join(logs.output))
    self.assertEqual(steps_in(self.directory), {'3'})
    save(self.directory, 8, 9)
    self.assertEqual(restore(self.directory).step, 9)

  @parameterized.named_parameters(
    (
      'shape',
      {'params': {'block': {'kernel': jnp.zeros((7, 6))}}},
      r'3: params/block/kernel is float32\[7,5\] in the checkpoint, '
      r'float32\[7,6\] is expected',
    ),
    (
      'type',
      {'params': {'block': {'scale': jnp.zeros((7, 5))}}},
      r'scale is bfloat16\[7,5\] in the checkpoint, float32\[7,5\] is expected',
    ),
    (
      'new_leaf',
      {'params': {'block': {'bias': jnp.zeros(5)}}},
      r'bias is absent in the checkpoint, float32\[5\] is expected',
    ),
    (
      'key',
      {'key': jnp.zeros(2, jnp.uint32)},
      r'key is key<fry>\[\] in the checkpoint, uint32\[2\] is expected',
    ),
  )
  def test_a_checkpoint_of_another_shape_is_refused(
    self, change: dict[str, Any], message: str
  ):
    def merged(old: Any, new: Any) -> Any:
      if not isinstance(new, dict):
        return new
      return old | {k: merged(old.get(k), v) for k, v in new.items()}

    save(self.directory, 3)
    with (
      checkpoint.Checkpointer(self.directory) as checkpoints,
      self.assertRaisesRegex(UserError, message),
    ):
      checkpoints.restore(merged(make_state(), change))
    self.assertEqual(steps_in(self.directory), {'3'})

  def test_a_leaf_too_many_in_the_checkpoint_is_refused(self):
    save(self.directory, 3)
    state = make_state()
    del state['tokens']
    with (
      checkpoint.Checkpointer(self.directory) as checkpoints,
      self.assertRaisesRegex(UserError, r'tokens is int8\[2,3\] .* absent is'),
    ):
      checkpoints.restore(state)

  def test_numbers_that_are_not_finite_are_not_saved(self):
    state = make_state()
    scale = state['params']['block']['scale'].at[1, 2].set(jnp.nan)
    state['params']['block']['scale'] = scale
    with (
      checkpoint.Checkpointer(self.directory) as checkpoints,
      self.assertRaisesRegex(checkpoint.NonFiniteError, 'step 4: params/bl'),
    ):
      checkpoints.save(4, state, {})
    self.assertEqual(steps_in(self.directory), set())

  def test_a_file_where_a_directory_should_be(self):
    path = self.directory / 'stage'
    path.write_text('')
    with self.assertRaisesRegex(UserError, 'stage.* a file is in the way'):
      checkpoint.Checkpointer(path)


class LoadParamsTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.directory = pathlib.Path(self.create_tempdir().full_path)

  def test_reads_one_field(self):
    save(self.directory, 3, 7)
    expected = make_state(7)
    for target in (None, make_state()['params']):
      params = checkpoint.load_params(self.directory, 'params', target)
      self.assertTrue(same(params, expected['params']))
    block = checkpoint.load_params(self.directory, 'params/block')
    self.assertTrue(same(block, expected['params']['block']))
    opt = checkpoint.load_params(self.directory, 'opt', make_state()['opt'])
    self.assertTrue(same(opt, expected['opt']))

  def test_says_what_is_wrong(self):
    with self.assertRaisesRegex(UserError, 'no finished training .* run this'):
      checkpoint.load_params(self.directory, 'params')
    save(self.directory, 3, 7)
    with self.assertRaisesRegex(UserError, "no field 'ema', only .*'params'"):
      checkpoint.load_params(self.directory, 'ema')
    target = make_state()['params']
    target['codebook'] = jnp.zeros((4, 5), jnp.float16)
    with self.assertRaisesRegex(
      UserError, r'codebook is float16\[7,5\] .*, float16\[4,5\] is expected'
    ):
      checkpoint.load_params(self.directory, 'params', target)

  def test_does_not_read_an_older_one_instead_of_a_damaged(self):
    save(self.directory, 3, 7)
    for path in (self.directory / 'checkpoints/7/state').rglob('d/*'):
      path.write_bytes(flip(path.read_bytes()))
    with self.assertRaisesRegex(UserError, '/7: this checkpoint is damaged'):
      checkpoint.load_params(self.directory, 'params')
    self.assertEqual(steps_in(self.directory), {'3', '7'})


class LeavesTest(absltest.TestCase):
  def test_the_checksum_sees_every_small_change(self):
    array = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    variants = [array, array[::-1], array.T, -array, np.roll(array, 1)]
    for index in np.ndindex(array.shape):
      changed = array.copy()
      changed[index] = np.nextafter(array[index], np.inf)
      variants.append(changed)
    examined = [leaves.examine([jnp.asarray(v)])['0'] for v in variants]
    self.assertLen({leaf.checksum for leaf in examined}, len(variants))

  def test_the_checksum_is_the_same_on_host_and_device(self):
    state = make_state(3) | {'long': jnp.arange(70_000.0), 'none': jnp.zeros(0)}
    on_host = leaves.examine(state)
    with mock.patch.object(jax, 'default_backend', return_value='tpu'):
      on_device = leaves.examine(state)
    self.assertEqual(on_host, on_device)
    self.assertEqual(on_host['long'].layout, 'float32[70000]')
    self.assertLen({leaf.checksum for leaf in on_host.values()}, len(on_host))

  def test_the_checksum_is_of_bits_whatever_their_type(self):
    words = np.array([[1, 2], [0xFFFFFFFF, 0x3F800000]], np.uint32)
    plain = leaves.examine([jnp.asarray(words)])['0']
    self.assertEqual(plain.layout, 'uint32[2,2]')
    self.assertTrue(plain.finite)
    for other in (words.astype(np.int32), words.view(np.float32)):
      leaf = leaves.examine([jnp.asarray(other)])['0']
      self.assertEqual(leaf.checksum, plain.checksum)
    self.assertFalse(leaf.finite)  # 0xFFFFFFFF is a NaN


if __name__ == '__main__':
  absltest.main()

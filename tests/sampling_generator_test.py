"""The generator that users hold, and the tables they give it."""

import contextlib
import dataclasses
import io
import itertools
import json
import pathlib
from typing import Any
from unittest import mock
import weakref

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image

import adanat_jax
from adanat_jax.decoding import loop, schedules, tables
from adanat_jax.decoding.schedules import Schedule
from adanat_jax.errors import UserError
from adanat_jax.experiment import named_schedules
from adanat_jax.learning.agent import Agent
from adanat_jax.sampling import best_of, program, replay, requests
from adanat_jax.sampling.generator import Generator
from adanat_jax.types import PolicyValues

N, K, C, T = 4, 5, 3, 3


@dataclasses.dataclass(frozen=True)
class ToyNat:
  """Stands for a module: its parameters decide between tokens."""

  num_tokens: int = N
  codebook_size: int = K

  def apply(self, variables: Any, tokens: Any, condition: Any) -> Any:
    words, head = variables['params']
    x = words[tokens] + condition[:, None, None]
    features = jnp.sin(x + x.mean(1, keepdims=True))
    return features, features @ head


@dataclasses.dataclass(frozen=True)
class ToyTokenizer:
  downsampling: int = 1
  image_channels: int = 1

  def apply(self, variables: Any, inputs: Any, method: str) -> Any:
    if method == 'tokenize':
      return jnp.int32(inputs.reshape(-1, N) * variables['params'])
    assert method == 'decode_tokens'
    return inputs.reshape(-1, 2, 2, 1) / variables['params']


def toy_actor_critic(params, features, step):
  signal = features.mean((1, 2))
  return signal[:, None] + params + step[:, None] / T, signal


def toy_generator(batch_size=4, **more):
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.float32(rng.normal(size=shape))
  agent = Agent(jnp.float32(0.1), jnp.zeros((T, 4)), toy_actor_critic)
  return Generator(
    ToyNat(),
    (draw(K + 1, 6), draw(6, K)),
    ToyTokenizer(),
    jnp.float32(K),
    C,
    {T: agent},
    batch_size,
    **more,
  )


class GeneratorTest(parameterized.TestCase):
  @parameterized.parameters('learned', 'hand-made')
  def test_batches_do_not_show(self, policy):
    labels = [0, 1, 2, 2, 1, 0, 1]
    expected = toy_generator(7).generate(labels, T, 3, policy, record=True)
    self.assertEqual(expected.images.shape, (7, 2, 2, 1))
    self.assertIsNone(expected.trajectory.features)
    for batch_size in (3, 16):
      got = toy_generator(batch_size).generate(
        labels, T, 3, policy, record=True
      )
      np.testing.assert_array_equal(got.tokens, expected.tokens)
      np.testing.assert_array_equal(got.images, expected.images)
      np.testing.assert_array_equal(
        got.trajectory.tokens, expected.trajectory.tokens
      )
    # Image i does not ask what comes after it; a seed is another image.
    fewer = toy_generator(3).sample(labels[:3], T, 3, policy, record=True)
    np.testing.assert_array_equal(fewer, expected.images[:3])
    again = toy_generator().sample(
      labels, T, 3, policy, batch_size=3, record=True
    )
    np.testing.assert_array_equal(again, expected.images)
    other = toy_generator(3).sample(labels[:3], T, 4, policy, record=True)
    self.assertTrue((other.tokens != fewer.tokens).any())

  @parameterized.parameters(
    ('learned', 2 * T + 2 * (T - 1)), ('maskgit', T + 2 * (T - 1))
  )
  def test_looking_ahead(self, policy, passes):
    labels = [0, 1, 2, 2, 1]
    plain = toy_generator(8).schedule(policy, T)
    schedule = plain.looking_ahead(3)
    found = toy_generator(8).sample(labels, T, 3, schedule, record=True)
    self.assertEqual(found.passes.tolist(), [passes] * 5)
    fewer = toy_generator(2).sample(labels[:2], T, 3, schedule)
    np.testing.assert_array_equal(fewer.tokens, found.tokens[:2])
    shown = replay.make(toy_generator(8), schedule, found)
    np.testing.assert_array_equal(shown.passes[-1], found.passes)
    np.testing.assert_allclose(
      shown.values['guidance scale'],
      plain.guided * found.trajectory.values.guidance_scale,
    )
    one = toy_generator(8).sample(labels, T, 3, plain.looking_ahead(1))
    same = toy_generator(8).sample(labels, T, 3, policy)
    np.testing.assert_array_equal(one.tokens, same.tokens)
    self.assertFalse(np.array_equal(found.tokens, same.tokens))
    # What was given stays.
    canvas = np.full((5, N), K, np.int32)
    canvas[:, 1] = 2
    given = toy_generator(8).sample(labels, T, 3, schedule, tokens=canvas)
    np.testing.assert_array_equal(given.tokens[:, 1], 2)
    with self.assertRaisesRegex(UserError, 'has no critic; give entropy'):
      toy_generator().sample(labels, T, 3, plain.looking_ahead(2, 'value'))

  def test_looking_ahead_by_the_critic(self):
    generator, asked = toy_generator(), []

    def actor_critic(params, features, step):
      asked.append(features.shape)
      return toy_actor_critic(params['critic'], features, step)

    agent = Agent({'critic': jnp.float32(0.1)}, jnp.zeros((T, 4)), actor_critic)
    learned = dataclasses.replace(
      generator.schedule('learned', T), policy=agent
    )
    found = generator.sample(
      [0, 1, 2], T, 3, learned.looking_ahead(2, 'value'), guidance_scale=0.5
    )
    self.assertEqual(found.passes.tolist(), [2 * T + T - 1] * 3)
    # Four rows are two samples, of which it sees both draws.
    self.assertIn((4, N, K + 1), asked)

  def test_few_images_are_not_padded_to_a_whole_batch(self):
    seen = []
    decode = program.decode_batch

    def spy(*args):
      seen.append(len(args[6]['tokens']))
      return decode(*args)

    with mock.patch('adanat_jax.sampling.generator.decode_batch', spy):
      for count in (1, 8, 9, 33, 65):
        toy_generator(40).sample([0] * count, T)
    self.assertEqual(seen, [8, 8, 16, 40, 40, 40])

  def test_batches_are_in_order_and_memory_does_not_grow(self):
    generator, labels = toy_generator(16), np.arange(90) % C
    whole = generator.sample(labels, T, 3, 'maskgit', record=True)
    held, kept, keep = [], [], program.keep

    def spy(*given):
      kept.append(weakref.ref(given[0].images))
      return keep(*given)

    parts = []
    with mock.patch.object(program, 'keep', spy):
      batches = generator.sample_batches(labels, T, 3, 'maskgit', record=True)
      for part in batches:
        parts.append(jax.tree.map(np.copy, part))
        held.append(sum(ref() is not None for ref in kept))
    self.assertEqual([len(part) for part in parts], [16] * 5 + [10])
    jax.tree.map(np.testing.assert_array_equal, program.join(parts), whole)
    # Those of a batch are dropped before the next but one is there.
    self.assertLessEqual(max(held), 2)
    with self.assertRaisesRegex(UserError, 'labels'):
      generator.sample_batches([C], T)

  def test_tables_share_a_program(self):
    generator, labels = toy_generator(), [0, 1, 2]
    # This one also asks how many steps there are.
    run = lambda num_steps, policy='klass': generator.sample(
      labels, num_steps, 3, policy, record=True
    )
    shared = {num_steps: run(num_steps) for num_steps in (3, 1)}
    compiled = program.decode_batch._cache_size()
    of_each = generator.schedule('klass', 2)
    columns = jax.tree.map(lambda x: np.stack([x] * 3, 1), of_each.policy)
    shared[2] = run(2, dataclasses.replace(of_each, policy=columns))
    self.assertEqual(program.decode_batch._cache_size(), compiled)
    for num_steps, found in shared.items():
      self.assertLen(found.trajectory.tokens, num_steps)
    with mock.patch.object(program, '_LEAST_STEPS', 1):
      alone = run(2)
    jax.tree.map(np.testing.assert_array_equal, shared[2], alone)
    self.assertEqual(program.decode_batch._cache_size(), compiled + 1)

  @parameterized.parameters((True, True), (True, False), (False, True))
  def test_a_bar_for_long_calls_on_a_terminal(self, is_terminal, wanted):
    terminal, seen = io.StringIO(), []
    terminal.isatty = lambda: is_terminal
    # Three seconds pass whenever the bar looks.
    clock = mock.patch('tqdm.std.time', side_effect=itertools.count(0, 3))
    with contextlib.redirect_stderr(terminal), clock:
      samples = toy_generator(8).sample(
        [0, 1, 2, 0, 1] * 3,
        T,
        progress=wanted,
        callback=lambda done, _: seen.append(done),
      )
    self.assertEqual(seen, [8, 15])
    self.assertLen(samples, 15)
    for part in (' 8/15 ', '15/15 '):
      self.assertEqual(part in terminal.getvalue(), is_terminal and wanted)

  def test_the_callback_sees_every_batch(self):
    seen = []
    samples = toy_generator(3).sample(
      [0, 1, 2, 0], T, callback=lambda *args: seen.append(args)
    )
    self.assertEqual([done for done, _ in seen], [3, 4])
    parts = np.concatenate([part.images for _, part in seen])
    np.testing.assert_array_equal(parts, samples)

  def test_class_names(self):
    generator = toy_generator(class_names=('cat', 'dog', 'eel'))
    named = generator.sample(['eel', 'cat'], T)
    np.testing.assert_array_equal(named, generator.sample([2, 0], T))
    with self.assertRaisesRegex(
      UserError, "labels hold 'cow'; classes are 0 to 2, cat, dog, eel$"
    ):
      generator.sample(['cat', 'cow'], T)

  def test_what_may_be_a_policy(self):
    generator, labels = toy_generator(), [2, 0, 1]
    lists = dict(
      mask_ratio=[0.7, 0.3, 0],
      sampling_temperature=[1, 2, 1],
      masking_temperature=[3, 2, 0],
      guidance_scale=[0.5, 1, 2],
    )

    def function(step, observation, keys, carry):
      del observation, keys
      at = lambda name: jnp.array(lists[name], jnp.float32)[step]
      return PolicyValues(**{name: at(name) for name in lists}), (), carry

    table = PolicyValues(**{k: np.float32(v) for k, v in lists.items()})
    expected = generator.sample(labels, T, 5, table, record=True)
    self.assertGreater(len(np.unique(expected.tokens)), 1)
    for policy in (lists, function, Schedule('mine', table)):
      samples = generator.sample(labels, T, 5, policy, record=True)
      jax.tree.map(np.testing.assert_array_equal, samples, expected)
    agent = generator.agents[T]
    np.testing.assert_array_equal(
      generator.sample(labels, T, 5, agent), generator.sample(labels, T, 5)
    )
    with self.assertRaisesRegex(UserError, 'policy returned .* must return'):
      generator.sample(labels, T, 5, lambda step, *_: step)

  @parameterized.parameters('learned', 'maskgit', 'function')
  def test_another_guidance(self, name):
    def function(step, observation, keys, carry):
      del step, observation, keys
      return PolicyValues(0.5, 1.0, 1.0, 0.0), (), carry

    policy = function if name == 'function' else name
    generator, labels = toy_generator(), [0, 1, 2]
    run = lambda **more: generator.sample(
      labels, T, 5, policy, record=True, **more
    )
    plain, changed = run(), run(guidance_scale=2.5)
    np.testing.assert_array_equal(changed.trajectory.values.guidance_scale, 2.5)
    self.assertTrue((changed.tokens != plain.tokens).any())
    seen = []
    decode = program.decode_batch
    spy = lambda *args: (seen.append(args[2].guided), decode(*args))[1]
    with mock.patch('adanat_jax.sampling.generator.decode_batch', spy):
      run(guidance_scale=0)
    self.assertEqual(seen, [False])

  def test_tokens_and_images(self):
    generator = toy_generator(3)
    tokens = np.arange(20).reshape(5, N) % K
    images = generator.decode(tokens)
    np.testing.assert_allclose(images, tokens.reshape(5, 2, 2, 1) / K)
    np.testing.assert_array_equal(generator.encode(images + 1e-3), tokens)
    np.testing.assert_array_equal(generator.encode(images[3]), tokens[3:4])
    for wrong in (tokens[0], tokens + 1, tokens * 1.0, [[0], [1, 2]], []):
      with self.assertRaisesRegex(UserError, '^tokens [^\n]*$'):
        generator.decode(wrong)
    for wrong in (
      images[0, 0],
      images + 1,
      tokens,
      images[:, :1],
      images * np.nan,
    ):
      with self.assertRaisesRegex(UserError, '^images [^\n]*$'):
        generator.encode(wrong)

  def test_samples_are_pictures(self):
    samples = toy_generator().sample([0, 1, 2], T)
    self.assertLen(samples, 3)
    self.assertEqual(samples.shape, (3, 2, 2, 1))
    np.testing.assert_array_equal(samples[1], samples.images[1])
    first, *_ = images = samples.to_pil()
    self.assertLen(images, 3)
    self.assertEqual((first.size, first.mode), ((2, 2), 'L'))
    np.testing.assert_array_equal(
      first, np.round(samples[0, ..., 0] * 255).astype(np.uint8)
    )
    path = pathlib.Path(self.create_tempdir().full_path) / 'grid.png'
    samples.save_grid(path, columns=2)
    with PIL.Image.open(path) as grid:
      self.assertEqual(grid.size, (2 + 2 * 64, 2 + 2 * 64))

  def test_its_repr_is_short(self):
    for steps, words in (
      ([], 'none'),
      ([8, 2, 4], '2, 4, 8'),
      ([2, 3], '2, 3'),
      ([3, 4, 5, 2, 8], '2 to 5, 8'),
    ):
      self.assertEqual(requests.steps_of(steps), words)
    text = repr(toy_generator(class_names=('cat', 'dog', 'eel')))
    self.assertEqual(
      text,
      '<Generator: ToyNat (66 parameters) and ToyTokenizer (1 parameters),'
      ' images of 2x2x1 as 4 tokens, 3 classes (cat, dog, eel), policies'
      ' learned for num_steps: 3, on 1 x cpu>',
    )

  def test_tables_a_sample_are_cut_with_the_batches(self):
    # Sample i: temperature 0 if i is even, hot if it is odd.
    hot = np.broadcast_to(30.0 * (np.arange(6) % 2), (T, 6))
    table = PolicyValues(np.full((T, 6), 0.5), hot, np.zeros((T, 6)), hot * 0)
    run = lambda size, seed: toy_generator(size).run(
      Schedule('mine', table), np.zeros(6, np.int32), jax.random.key(seed)
    )
    expected = run(6, 0).tokens
    np.testing.assert_array_equal(run(4, 0).tokens, expected)
    other = run(4, 1).tokens
    np.testing.assert_array_equal(other[::2], expected[::2])
    self.assertTrue((other[1::2] != expected[1::2]).any())

  def test_given_tokens_stay(self):
    tokens = np.full((2, N), K, np.int32)
    tokens[0, 1:] = [1, 2, 3]
    result = toy_generator().generate([0, 1], T, tokens=tokens)
    np.testing.assert_array_equal(result.tokens[0, 1:], [1, 2, 3])
    self.assertLess(result.tokens.max(), K)
    self.assertIsNone(result.trajectory)

  def test_a_table_decodes_as_the_loop_does(self):
    generator = toy_generator(3)
    table = tables.hand_made(T, total=N, guidance_scale=1.0)
    result = generator.generate([2, 0, 1], T, 5, table)

    def denoiser(tokens, condition, cache):
      params = {'params': generator.nat_params}
      return *generator.nat.apply(params, tokens, condition), cache

    expected = jax.jit(
      lambda: loop.decode(
        denoiser,
        tables.table_policy(table),
        tokens=loop.full_mask(3, N, K),
        condition=jnp.array([2, 0, 1]),
        null_condition=jnp.int32(C),
        keys=loop.sample_keys(jax.random.key(5), 3),
        num_steps=T,
        mask_token=K,
      )
    )()
    np.testing.assert_array_equal(result.tokens, expected.tokens)

  @parameterized.parameters(
    (dict(labels=[0, C]), r'labels hold \[0, 3\]; classes are 0 to 2'),
    (dict(labels=[-1]), r'labels hold \[-1\]'),
    (dict(labels=[]), r'labels are \[\]; give a list of class ids'),
    (dict(labels=[0.5]), r'labels are \[0.5\]'),
    (dict(labels=[[0], [0, 1]]), r'labels are .*; give rows of equal lengths'),
    (dict(labels=['cat']), r"labels are \['cat'\]; give a list of class ids$"),
    (dict(labels='cat'), "labels are 'cat'"),
    (dict(labels=None), 'labels are None'),
    (dict(labels=[True]), r'labels are \[True\]'),
    (dict(labels=[2**70]), 'labels are'),
    (dict(num_steps=0), 'num_steps is 0; give an integer of at least 1'),
    (dict(num_steps='2'), "num_steps is '2'; give an integer"),
    (dict(num_steps=None), 'num_steps is None'),
    (dict(num_steps=2.0), 'num_steps is 2.0'),
    (dict(num_steps=True), 'num_steps is True'),
    (dict(seed=-1), 'seed is -1; give an integer from 0 to 4294967295'),
    (dict(seed=2**32), 'seed is 4294967296; give'),
    (dict(seed=2**63), 'seed is 9223372036854775808; give'),
    (dict(seed=0.0), 'seed is 0.0'),
    (dict(seed=None), 'seed is None'),
    (dict(batch_size=0), 'batch_size is 0; give an integer of at least 1'),
    (dict(batch_size='8'), "batch_size is '8'"),
    (dict(guidance_scale=-1), 'guidance_scale is -1; give a finite number'),
    (dict(guidance_scale=np.inf), 'guidance_scale is inf'),
    (dict(guidance_scale='1'), "guidance_scale is '1'"),
    (dict(num_steps=2), 'no policy was learned for num_steps=2; learned: 3'),
    (
      dict(policy='best'),
      "policy is 'best'; give learned, hand-made, maskgit, .*, a Schedule",
    ),
    (dict(policy=3), 'policy is 3; give learned'),
    (
      dict(policy=Schedule('mine', tables.hand_made(4))),
      'the schedule mine has 4 steps, num_steps is 3',
    ),
    (dict(policy='autonat_large'), "AutoNAT-L's schedule has 8 steps"),
    (
      dict(policy=tables.hand_made(4)),
      'the table has 4 steps, num_steps is 3',
    ),
    (dict(tokens=np.zeros((2, N), int)), r'tokens are int64\[2, \d+\]; give'),
    (dict(tokens=np.zeros((1, N))), 'tokens are float64'),
    (dict(tokens=np.full((1, N), K + 1)), 'tokens lie in .* allowed are 0'),
  )
  def test_mistakes_are_one_clear_line(self, changes, message):
    arguments = {'labels': [0], 'num_steps': T, **changes}
    with self.assertRaisesRegex(UserError, message) as caught:
      toy_generator().sample(**arguments)
    self.assertLen(str(caught.exception).splitlines(), 1)


class BestOfTest(absltest.TestCase):
  """Of each sample the draw of the best score."""

  labels = np.array([0, 1, 2, 2, 1], np.int32)

  def sample(self, score, num_draws, batch_size=8, **options):
    generator = best_of.best_of(toy_generator(batch_size), score, num_draws)
    return generator.sample(self.labels, T, 3, **options)

  def test_the_best_is_kept(self):
    asked = []

    def score(images, labels):
      asked.append((images, labels))
      return images.reshape(len(images), -1).sum(1) + labels

    found = self.sample(score, 3, record=True)
    ((images, labels),) = asked
    np.testing.assert_array_equal(labels, np.tile(self.labels, 3))
    draws = images.reshape(3, 5, 2, 2, 1)
    plain = toy_generator(8).sample(self.labels, T, 3, record=True)
    np.testing.assert_array_equal(draws[0], plain.images)
    self.assertTrue((draws[1] != draws[0]).any())
    self.assertTrue((draws[2] != draws[1]).any())
    best = draws.sum((2, 3, 4)).argmax(0)
    self.assertGreater(len({*best.tolist()}), 1)
    np.testing.assert_array_equal(found.images, draws[best, np.arange(5)])
    np.testing.assert_array_equal(found.passes, 3 * plain.passes)
    self.assertEqual(found.passes.dtype, np.int32)
    # The record is that of the draw that stayed.
    known = found.trajectory.tokens[-1] < K
    self.assertGreater(known.sum(), 5)
    np.testing.assert_array_equal(
      found.trajectory.tokens[-1][known], found.tokens[known]
    )
    rows = np.flatnonzero(best == 0)
    jax.tree.map(
      lambda x, y: np.testing.assert_array_equal(x[:, rows], y[:, rows]),
      found.trajectory,
      plain.trajectory,
    )
    # A page counts the passes of all draws.
    generator = best_of.best_of(toy_generator(8), score, 3)
    schedule = generator.schedule('learned', T)
    shown = replay.make(generator, schedule, found)
    np.testing.assert_array_equal(shown.passes[-1], found.passes)
    # Neither batches nor further draws change the earlier ones.
    fewer = self.sample(score, 3, batch_size=2)
    np.testing.assert_array_equal(fewer.tokens, found.tokens)
    scores = [self.sample(score, n).images.sum() for n in (1, 2, 3, 5)]
    self.assertEqual(scores, sorted(scores))

  def test_of_equal_ones_it_is_the_first(self):
    plain = toy_generator(8)
    self.assertIs(best_of.best_of(plain, None, 1), plain)
    same = self.sample(lambda images, labels: np.zeros(len(images)), 4)
    expected = plain.sample(self.labels, T, 3)
    np.testing.assert_array_equal(same.tokens, expected.tokens)
    self.assertEqual(same.passes.tolist(), (4 * expected.passes).tolist())

  def test_edits_too(self):
    canvas = np.full((5, N), K, np.int32)
    canvas[:, 1] = 2
    darkest = lambda images, labels: -images.sum((1, 2, 3))
    found = self.sample(darkest, 3, tokens=canvas)
    np.testing.assert_array_equal(found.tokens[:, 1], 2)
    plain = toy_generator(8).sample(self.labels, T, 3, tokens=canvas)
    self.assertLess(found.images.sum(), plain.images.sum())

  def test_mistakes(self):
    with self.assertRaisesRegex(UserError, 'num_draws is 0'):
      self.sample(None, 0)
    with self.assertRaisesRegex(UserError, 'score is None; give a function'):
      self.sample(None, 2)
    for wrong in (
      *(lambda x, y: x, lambda x, y: np.full(len(x), np.nan)),
      lambda x, y: 'good',
    ):
      with self.assertRaisesRegex(UserError, 'must return a number for each'):
        self.sample(wrong, 2)
    generator = best_of.best_of(toy_generator(), lambda x, y: y, 2)
    with self.assertRaisesRegex(UserError, 'the best of 2 draws already'):
      best_of.best_of(generator, lambda x, y: y, 2)
    with self.assertRaisesRegex(UserError, 'best of several draws has no like'):
      adanat_jax.log_likelihood(generator, np.zeros((1, N)), [0], 'maskgit')
    self.assertStartsWith(repr(generator), '<the best of 2 draws of <Generato')
    for method, what in (
      (generator.save, 'saved'),
      (generator.export, 'exported'),
      (generator.stream, 'streamed'),
    ):
      with self.assertRaisesRegex(UserError, f'cannot be {what}'):
        method('path')


class TablesTest(parameterized.TestCase):
  """One checker, wherever a table comes from."""

  GOOD = dict(
    mask_ratio=[0.5, 0.3, 0],
    sampling_temperature=[1, 1, 1],
    masking_temperature=[2, 1, 0],
    guidance_scale=[0, 1.5, 2],
  )

  def read(self, content):
    name = 'table.json'
    path = self.create_tempfile(name, content).full_path
    return named_schedules.read_file(path).policy

  def test_a_good_file(self):
    table = self.read(json.dumps(self.GOOD))
    np.testing.assert_array_equal(table.mask_ratio, np.float32([0.5, 0.3, 0]))
    np.testing.assert_array_equal(table.guidance_scale, [0, 1.5, 2])

  @parameterized.parameters(
    (dict(mask_ratio=[1.5, 0, 0]), r'mask_ratio holds 1.5; .* in \[0, 1\]'),
    (dict(mask_ratio=['a', 0, 0]), 'mask_ratio is .*; give a list of numbers'),
    (dict(mask_ratio=[[0], [0, 1]]), 'mask_ratio is .*; give a list'),
    (dict(mask_ratio=0.5), 'mask_ratio is 0.5; give a list'),
    (dict(mask_ratio=[]), r'mask_ratio is \[\]; give a list'),
    (dict(mask_ratio=None), 'mask_ratio is None|must have the lists'),
    (dict(guidance_scale=[-1, 0, 0]), 'guidance_scale holds -1.0; .* finite'),
    (
      dict(guidance_scale=[np.nan, 0, 0]),
      'scale holds nan|NaN is no number',
    ),
    (dict(guidance_scale=[np.inf, 0, 0]), 'scale holds inf|Infinity is no'),
    (dict(guidance_scale=[1e39, 0, 0]), 'guidance_scale holds inf'),
    (dict(guidance_scale=[1, 2]), 'lists must have equal lengths'),
    (dict(guidance_scale=[[1], [2], [3]]), 'lists must have equal lengths'),
    ({name: [[0], [0], [0]] for name in GOOD}, r'equal lengths.*\(3, 1\)'),
  )
  def test_mistakes(self, changes, message):
    given = {**self.GOOD, **changes}
    ways = {
      'the table': lambda: toy_generator().sample([0, 1], T, policy=given),
      'table.json': lambda: self.read(json.dumps(given)),
    }
    mine = Schedule('mine', PolicyValues(**given))
    ways["SCHEDULES['mine']"] = lambda: schedules.make('mine', T, N)
    ways['the schedule mine'] = lambda: toy_generator().sample(
      [0, 1], T, policy=mine
    )
    self.enter_context(
      mock.patch.dict(schedules.SCHEDULES, mine=lambda *_: mine)
    )
    for where, run in ways.items():
      with self.subTest(where), self.assertRaisesRegex(UserError, message) as e:
        run()
      self.assertRegex(str(e.exception), where.replace('[', r'\['))
      self.assertLen(str(e.exception).splitlines(), 1)

  def test_no_file(self):
    with self.assertRaisesRegex(UserError, 'nowhere.json: no such file'):
      named_schedules.read_file('nowhere.json')
    for content in ('{', '[1]', json.dumps({'mask_ratio': [1]})):
      with self.assertRaisesRegex(UserError, 'JSON|object|must have the lists'):
        self.read(content)


if __name__ == '__main__':
  absltest.main()

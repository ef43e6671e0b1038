"""Training a network that decodes with a cache: its inputs, what it learns."""

import contextlib
import dataclasses
import functools
import io
import json
import pathlib
import sys
from unittest import mock

from absl import logging
from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax

from adanat_jax.data.examples import ArrayExamples
from adanat_jax.errors import UserError
from adanat_jax.experiment.experiment import Experiment
from adanat_jax.learning import masked_tokens
from adanat_jax.models.enat import ENAT
from adanat_jax.runtime import journal, sharding
from adanat_jax.stages import nat as nat_stage
from support import children, configs, random_weights

_MASK, _NUM_TOKENS, _BATCH = 5, 4, 8
_KEY = jax.random.key(17)
_RECIPE = masked_tokens.Recipe(
  _MASK, condition_dropping=0.4, reuse_probability=0.5, ema_decay=0.5
)
_BY_CLASS = ENAT(
  _MASK, _NUM_TOKENS, 8, 1, 1, 2, num_classes=3, dropout_rate=0.0
)
_BY_TEXT = _BY_CLASS.clone(num_classes=None, text_width=6)


def setUpModule():
  logging.set_verbosity(logging.WARNING)  # Orbax tells much at INFO.


class TrainStepTest(parameterized.TestCase):
  """Gradients are compared: the update is the gradient itself."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    random = np.random.default_rng(0)
    integers = lambda *x: random.integers(*x, dtype=np.int32)
    tokens = integers(0, _MASK, (_BATCH, _NUM_TOKENS))
    floats = lambda *shape: random.normal(size=shape).astype(np.float32)
    labels = integers(0, 3, _BATCH)
    cls.batches = {
      _BY_CLASS: {'tokens': tokens, 'condition': labels},
      _BY_TEXT: {
        'tokens': tokens,
        'states': floats(_BATCH, 2, 6),
        'embedding': floats(_BATCH, 6),
      },
    }
    cls.frozen = {'text': {}, 'null': floats(2, 6)}
    cls.params = {
      module: random_weights.random_variables(
        module, tokens, cls.conditions(module)
      )['params']
      for module in (_BY_CLASS, _BY_TEXT)
    }
    # The average is another network.
    cls.emas = {
      module: jax.tree.map(
        lambda x: jnp.asarray(np.asarray(x) + 0.1 * floats(*x.shape)), params
      )
      for module, params in cls.params.items()
    }

  @classmethod
  def conditions(cls, module):
    batch = cls.batches[module]
    return batch['condition' if module is _BY_CLASS else 'states']

  @staticmethod
  @functools.cache
  def compiled(module, **changes):
    """The step, which does not draw what is reused if that is given."""
    draw = masked_tokens.draw_reuse
    step = masked_tokens.make_train_step(
      nat_stage.make_network(module),
      optax.sgd(-1.0),
      dataclasses.replace(_RECIPE, **changes),
      key=_KEY,
    )

    def run(frozen, state, batch, is_given, given):
      def choose(*args):
        return jax.tree.map(
          lambda x, y: jnp.where(is_given, x, y), given, draw(*args)
        )

      with mock.patch.object(masked_tokens, 'draw_reuse', choose):
        return step(frozen, state, batch, jnp.int32(5))

    return jax.jit(run)

  def run_step(self, module=_BY_CLASS, reuse=None, **changes):
    """The loss and the gradient; `(wanted, hidden)` may be given."""
    params = self.params[module]
    after, metrics = self.compiled(module, **changes)(
      self.frozen,
      masked_tokens.NatState(
        params, self.emas[module], optax.sgd(-1.0).init(params)
      ),
      self.batches[module],
      reuse is not None,
      reuse or self.draws()[2:],
    )
    return metrics['loss'], jax.tree.map(np.subtract, after.params, params)

  def assert_close(self, ours, expected):
    compare = functools.partial(np.testing.assert_allclose, atol=3e-6)
    jax.tree.map(compare, ours, expected)

  def draws(self):
    """What the step draws: masks, dropped conditions, reuse."""
    step_key = jax.random.fold_in(_KEY, 5)
    *mask_keys, drop_key, _ = jax.random.split(step_key, 4)
    masked = masked_tokens.draw_masks(
      tuple(mask_keys), (_BATCH, _NUM_TOKENS), _RECIPE
    )
    dropped = jax.random.bernoulli(drop_key, 0.4, (_BATCH,))
    key = jax.random.fold_in(step_key, 4)
    reuse = masked_tokens.draw_reuse(key, masked, _RECIPE)
    return jax.tree.map(np.asarray, (masked, dropped, *reuse))

  def test_it_is_two_forwards_of_each_example(self):
    # Of texts, since a cache that nobody wanted has seen the text, too.
    module = _BY_TEXT
    masked, dropped, wanted, hidden = self.draws()
    # All four kinds of examples are there, and the cache says something.
    kinds = 2 * dropped + wanted
    self.assertLen(np.unique(kinds), 4)
    self.assertTrue((wanted & ~hidden.all(1)).any())
    tokens = self.batches[module]['tokens']
    shown = np.where(masked, _MASK, tokens)
    shown_before = np.where(hidden, _MASK, tokens)
    condition = np.where(
      dropped[:, None, None], self.frozen['null'], self.conditions(module)
    )
    apply = lambda params, *inputs: module.apply({'params': params}, *inputs)

    def loss_fn(params):
      total = 0.0
      for rows in (np.flatnonzero(wanted), np.flatnonzero(~wanted)):
        cache = None
        if wanted[rows[0]]:
          *_, cache = apply(
            self.emas[module], shown_before[rows], condition[rows]
          )
        logits = apply(params, shown[rows], condition[rows], cache)[1]
        logs = jax.nn.log_softmax(logits)
        truth = jnp.take_along_axis(logs, tokens[rows, :, None], -1)[..., 0]
        smooth = 0.9 * truth + 0.1 * logs.mean(-1)
        total -= jnp.sum(smooth * masked[rows])
      return total / masked.sum()

    expected = jax.jit(jax.value_and_grad(loss_fn))(self.params[module])
    self.assert_close(self.run_step(module), expected)

  def test_parts_of_a_batch_have_its_gradient(self):
    self.assert_close(self.run_step(micro_batches=4), self.run_step())

  def steps_on(self, num_devices, fsdp):
    """Loss and gradient of both kinds of drawing, on so many devices."""
    mesh = sharding.make_mesh(fsdp=fsdp, devices=jax.devices()[:num_devices])
    place = lambda trees, put: {_BY_CLASS: put(trees[_BY_CLASS], mesh)}
    params = place(self.params, sharding.shard_state)
    emas = place(self.emas, sharding.shard_state)
    batches = place(self.batches, sharding.put_batch)
    with (
      mock.patch.multiple(self, params=params, emas=emas, batches=batches),
      jax.set_mesh(mesh),
    ):
      return {
        kind: {
          jax.tree_util.keystr(path): np.asarray(leaf).tolist()
          for path, leaf in jax.tree.leaves_with_path(
            self.run_step(mask_ratio_per=kind)
          )
        }
        for kind in ('example', 'batch')
      }

  def test_devices_do_not_show(self):
    one, four = children.run(__file__, 4)
    # As drawn by one that has no mesh at all.
    np.testing.assert_allclose(
      one['example']['[0]'], self.run_step()[0], rtol=1e-6
    )
    for kind, values in one.items():
      for name, value in values.items():
        self.assert_close(np.float32(four[kind][name]), np.float32(value))

  def test_a_cache_that_saw_nothing_is_none(self):
    masked, *_ = self.draws()
    nothing = np.ones_like(masked)
    loss, gradient = self.run_step(reuse=(np.ones(_BATCH, bool), nothing))
    nobody = self.run_step(reuse=(np.zeros(_BATCH, bool), masked))
    self.assert_close((loss, gradient), nobody)
    # What carries features over is not used, and everything else is.
    sizes = jax.tree.map(lambda x: float(np.abs(x).max()), gradient)
    self.assertEqual(max(jax.tree.leaves(sizes['carry_over'])), 0)
    self.assertGreater(min(jax.tree.leaves(sizes['blocks_0']['mlp'])), 0)

  def test_a_cache_that_saw_everything_leaves_nothing_to_encode(self):
    masked, *_ = self.draws()
    _, gradient = self.run_step(reuse=(np.ones(_BATCH, bool), masked))
    # One encoder block, one decoder block. No gradient comes through the
    # features to whoever made them.
    sizes = jax.tree.map(lambda x: float(np.abs(x).max()), gradient)
    self.assertEqual(max(jax.tree.leaves(sizes['blocks_0'])), 0)
    self.assertGreater(min(jax.tree.leaves(sizes['carry_over'])), 0)
    self.assertGreater(min(jax.tree.leaves(sizes['blocks_1']['mlp'])), 0)


class LearningTest(absltest.TestCase):
  def test_it_learns_to_read_its_cache(self):
    # All tokens of a grid are the same: one that is seen says it all.
    module = ENAT(_MASK, _NUM_TOKENS, 16, 1, 1, 2, num_classes=1)
    optimizer = optax.adam(5e-3)
    recipe = masked_tokens.Recipe(
      _MASK, reuse_probability=0.5, label_smoothing=0.0, ema_decay=0.9
    )
    step = masked_tokens.make_train_step(
      nat_stage.make_network(module), optimizer, recipe, key=_KEY
    )
    values = np.arange(40, dtype=np.int32) % _MASK
    batch = {
      'tokens': np.repeat(values[:, None], _NUM_TOKENS, 1),
      'condition': np.zeros(40, np.int32),
    }
    params = jax.jit(module.init)(_KEY, *batch.values())['params']
    state = masked_tokens.NatState(params, params, optimizer.init(params))
    train = jax.jit(
      lambda state: jax.lax.scan(
        lambda state, i: (step({}, state, batch, i)[0], None),
        state,
        jnp.arange(200),
      )[0]
    )
    params = {'params': train(state).ema}
    one = np.where(np.arange(_NUM_TOKENS) == 2, batch['tokens'], _MASK)
    apply = jax.jit(module.apply)
    read = lambda cache: apply(params, one, batch['condition'], cache)
    _, logits, cache = read(None)
    right = lambda logits, values: np.mean(
      np.asarray(logits)[:, [0, 1, 3]].argmax(-1) == values[:, None]
    )
    self.assertGreater(right(logits, values), 0.95)
    # Then from the cache alone: another's says what that one has seen.
    self.assertGreater(right(read(cache)[1], values), 0.95)
    other = cache.replace(features=jnp.roll(cache.features, 1, 0))
    self.assertGreater(right(read(other)[1], np.roll(values, 1)), 0.95)


def _config(**changes):
  fields = {
    'tensorboard': False,
    'nat.network': 'enat',
    'nat.encoder_depth': 1,
    'nat.decoder_depth': 1,
    'nat.reuse_probability': 0.5,
    'nat.mask_ratio_per': 'batch',
    'nat.width': 16,
    'nat.depth': 0,
    'nat.num_steps': 4,
    'nat.batch_size': 8,
    'nat.validation_examples': 20,
  }
  changes = {f'nat.{name}': value for name, value in changes.items()}
  return configs.load('digits.py:tiny', fields | changes)


class StageTest(parameterized.TestCase):
  def test_it_trains_and_is_found(self):
    config = _config(training_dtype='bfloat16')
    workdir = pathlib.Path(self.create_tempdir().full_path)
    random = np.random.default_rng(0)
    rows = {
      'tokens': random.integers(0, 128, (30, 16)).astype(np.int32),
      'condition': random.integers(0, 2, 30).astype(np.int32),
    }
    with (
      contextlib.redirect_stdout(io.StringIO()),
      mock.patch.object(
        Experiment,
        'examples',
        return_value=ArrayExamples(rows),
      ),
    ):
      nat_stage.run(Experiment(config, workdir))
    module, params = Experiment(config, workdir).network('nat')
    self.assertIsInstance(module, ENAT)
    self.assertIn('carry_over', params)
    figures = journal.read_complete(workdir / 'nat')['figures']
    # ln 128 is what knowing nothing costs.
    self.assertBetween(figures['test_loss'], 4.0, np.log(128) + 0.5)

  @parameterized.parameters(
    (
      {'network': 'nat'},
      r'reuse_probability is 0.5; give 0 with config.nat.network=nat',
    ),
    (
      {'reuse_probability': 0.0},
      r'reuse_probability is 0; give more with config.nat.network=enat',
    ),
  )
  def test_a_config_that_cannot_work(self, changes, message):
    with self.assertRaisesRegex(UserError, message):
      nat_stage.check_config(Experiment(_config(**changes), 'unused'))

  def test_converted_weights_need_no_reuse(self):
    config = _config(reuse_probability=0.0)
    with config.unlocked():
      config.nat.init_from = 'weights'
    nat_stage.check_config(Experiment(config, 'unused'))


if __name__ == '__main__':
  if '--child' in sys.argv:
    TrainStepTest.setUpClass()
    steps_on = TrainStepTest().steps_on
    print(json.dumps([steps_on(1, 1), steps_on(4, 2)]))
  else:
    absltest.main()

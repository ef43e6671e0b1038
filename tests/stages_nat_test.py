"""Stage `nat`: what it measures and leaves, resumed; texts; mistakes."""

import contextlib
import io
import pathlib
from unittest import mock

from absl import logging
from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax
from PIL import Image

from adanat_jax.data.examples import ArrayExamples
from adanat_jax.errors import UserError
from adanat_jax.experiment import networks
from adanat_jax.experiment.experiment import Experiment
from adanat_jax.learning import masked_tokens
from adanat_jax.models.clip import CLIPText
from adanat_jax.models.nat import NAT
from adanat_jax.runtime import checkpoint, journal, metric_writer
from adanat_jax.stages import nat as nat_stage, nat_held_out
from support import compiling, configs, random_weights


def setUpModule():
  logging.set_verbosity(logging.WARNING)  # Orbax tells much at INFO.


def small_config(**changes):
  """Four steps on the digits, with everything that can be measured."""
  fields = {
    'tensorboard': False,
    'log_every': 4,
    'nat.width': 16,
    'nat.depth': 0,
    'tokenizer.width_multipliers': (1, 1, 1),
    'nat.num_steps': 4,
    'nat.batch_size': 16,
    'nat.micro_batches': 2,
    'nat.training_dtype': 'bfloat16',
    'nat.ema_decay': 0.0,
    'nat.learning_rate': 0.05,
    'nat.evaluate_every': 1,
    'nat.validation_examples': 20,
    'nat.sample_grid': 5,
    'nat.frechet_samples': 12,
    'nat.frechet_every': 2,
    'evaluate.network': 'pixels',
    'evaluate.batch_size': 8,
    'nat.sample_num_steps': 2,
    'data.condition': 'digit',
  }
  return configs.load(
    'digits.py:tiny',
    fields,
    **changes,
  )


class StageTest(absltest.TestCase):
  """One training, which dies in its second evaluation and goes on."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.config = small_config()
    cls.workdir = pathlib.Path(cls().create_tempdir('stage').full_path)
    # What goes on after the death is the same program: it is compiled once.
    cls.enterClassContext(compiling.compiled_once(cls.workdir / 'cache'))
    module = networks.tokenizer_module(cls.config)
    params = random_weights.random_variables(module, jnp.zeros((1, 16, 16, 1)))
    measured = nat_held_out.TrainingSamples.__call__
    cls.died = []

    def dies_once(samples, params, step):
      found = measured(samples, params, step)
      if step == 2 and not cls.died:
        cls.died.append(found)
        raise InterruptedError('killed')
      return found

    with (
      contextlib.redirect_stdout(io.StringIO()),
      mock.patch.object(
        Experiment, 'network', return_value=(module, params['params'])
      ),
      mock.patch.object(nat_held_out.TrainingSamples, '__call__', dies_once),
    ):
      try:
        nat_stage.run(Experiment(cls.config, cls.workdir))
      except InterruptedError:
        nat_stage.run(Experiment(cls.config, cls.workdir))

  def test_figures_stand_in_the_rows(self):
    rows = {
      row['step']: row
      for row in metric_writer.read_metrics(self.workdir / 'nat')
    }
    self.assertEqual(list(rows), [1, 2, 3, 4])
    losses = {'eval/train_loss', 'eval/test_loss'}
    distance = 'eval/frechet_pixels_12'
    found = {
      step: {key for key in row if key.startswith('eval/')}
      for step, row in rows.items()
    }
    every = losses | {distance}
    self.assertEqual(found, {1: losses, 2: every, 3: losses, 4: every})
    # Measured again after the kill, it is the same.
    self.assertEqual(self.died, [{'frechet_pixels_12': rows[2][distance]}])
    self.assertNotEqual(rows[2][distance], rows[4][distance])
    # ln 128 is what knowing nothing costs.
    for name in losses:
      self.assertBetween(rows[4][name], 1.0, np.log(128) + 0.3)

  def test_the_last_figures_are_those_of_the_finished_stage(self):
    last = metric_writer.read_metrics(self.workdir / 'nat')[-1]
    figures = journal.read_complete(self.workdir / 'nat')['figures']
    self.assertEqual(figures, {name: last[f'eval/{name}'] for name in figures})
    self.assertLen(figures, 2)

  def test_images_learned_by_heart_are_told(self):
    warnings = nat_stage._warnings
    self.assertEmpty(warnings({'train_loss': 2.0}))
    self.assertEmpty(warnings({'train_loss': 2.0, 'test_loss': 2.5}))
    (found,) = warnings({'train_loss': 2.0, 'test_loss': 2.51})
    self.assertIn('2.51 on held-out images and 2.00 on', found)

  def test_pictures(self):
    paths = sorted((self.workdir / 'nat/samples').iterdir())
    self.assertEqual(
      [path.name for path in paths], [f'000000{n}.png' for n in range(1, 5)]
    )
    # Five images of 16 pixels, four times as large, in lines of three.
    for path in paths:
      width, height = Image.open(path).size
      self.assertBetween(width, 3 * 64, 3 * 64 + 16)
      self.assertBetween(height, 2 * 64, 2 * 64 + 16)

  def test_parameters_are_float32(self):
    for field in ('params', 'ema'):
      params = checkpoint.load_params(self.workdir / 'nat', field)
      types = {leaf.dtype for leaf in jax.tree.leaves(params)}
      self.assertEqual(types, {np.dtype(np.float32)})


class HeldOutLossTest(absltest.TestCase):
  def test_it_is_the_mean_over_all_masked_tokens(self):
    # In batches of three, the last of them padded, or all at once.
    config = small_config(nat__validation_examples=0)
    module = NAT(128, 16, 8, 0, 2, num_classes=10)
    random = np.random.default_rng(0)
    examples = ArrayExamples(
      {
        'tokens': random.integers(0, 128, (7, 16)).astype(np.int32),
        'condition': random.integers(0, 10, 7).astype(np.int32),
      }
    )
    everything = examples.take(np.arange(7))
    params = random_weights.random_variables(module, *everything.values())
    network = nat_stage.make_network(module)
    measure = lambda: nat_held_out.HeldOutLoss(
      Experiment(config, 'unused'),
      module,
      network.condition,
      examples,
      jax.random.key(1),
    )(params['params'], {})
    whole = measure()
    with mock.patch.object(nat_held_out, '_TOKENS_AT_A_TIME', 3 * 16):
      self.assertAlmostEqual(measure(), whole, 5)
    ratio_key, mask_key = jax.random.split(jax.random.key(1))
    recipe = masked_tokens.Recipe(128)
    ratio = masked_tokens.sample_mask_ratio(ratio_key, 7, 16, recipe)
    masked = np.asarray(masked_tokens.random_mask(mask_key, ratio, 16))
    _, logits = jax.jit(module.apply)(
      params,
      np.where(masked, 128, everything['tokens']),
      everything['condition'],
    )
    logs = np.asarray(jax.nn.log_softmax(logits))
    truth = np.take_along_axis(logs, everything['tokens'][..., None], -1)
    self.assertAlmostEqual(whole, -truth[masked].mean(), 4)


class TextTest(absltest.TestCase):
  def test_stored_states_and_the_tower_train_alike(self):
    tower = CLIPText(8, 1, 2, 16, 8, 'gelu', vocabulary=30, num_positions=5)
    module = NAT(12, 4, 16, 0, 2, text_width=8, dropout_rate=0.0)
    random = np.random.default_rng(0)
    ids = random.integers(0, 30, (8, 5)).astype(np.int32)
    tokens = random.integers(0, 12, (8, 4)).astype(np.int32)
    tower_params = random_weights.random_variables(tower, ids)['params']
    read = jax.jit(tower.apply)({'params': tower_params}, ids)
    params = random_weights.random_variables(module, tokens, read.states)
    params = params['params']
    null = jnp.asarray(random.normal(size=(5, 8)), jnp.float32)
    optimizer = optax.sgd(1.0)
    state = masked_tokens.NatState(params, params, optimizer.init(params))

    def step(frozen, batch, tower=None):
      train_step = masked_tokens.make_train_step(
        nat_stage.make_network(module, tower),
        optimizer,
        masked_tokens.Recipe(12, condition_dropping=0.4, micro_batches=2),
        key=jax.random.key(0),
      )
      return jax.jit(train_step)(
        frozen, state, {'tokens': tokens, **batch}, jnp.int32(0)
      )

    computed, metrics = step(
      {'text': tower_params, 'null': null}, {'ids': ids}, tower
    )
    stored, others = step(
      {'text': {}, 'null': null},
      {
        'states': np.asarray(read.states, np.float16),
        'embedding': np.asarray(read.pooled),
      },
    )
    self.assertAlmostEqual(
      float(metrics['loss']), float(others['loss']), delta=1e-3
    )
    apart, moved = jax.jit(
      lambda new, others: [
        optax.tree.norm(optax.tree.sub(new, other)) for other in others
      ]
    )(computed.params, (stored.params, params))
    self.assertLess(float(apart), 0.01 * float(moved))


class MistakesTest(parameterized.TestCase):
  @parameterized.parameters(
    ({'nat__micro_batches': 3}, r'nat.batch_size is 16.*multiple of 3'),
    (
      {'nat__frechet_every': 3, 'nat__evaluate_every': 2},
      r'frechet_every is 3.*multiple.*which is 2',
    ),
    ({'nat__attention': 'cudnn'}, r'bfloat16 only: set config.nat.dtype'),
    (
      {
        'nat__attention': 'cudnn',
        'nat__dtype': 'bfloat16',
        'nat__training_dtype': 'float32',
      },
      'bfloat16 only',
    ),
  )
  def test_a_config_that_cannot_work(self, changes, message):
    with self.assertRaisesRegex(UserError, message):
      nat_stage.check_config(Experiment(small_config(**changes), 'unused'))


if __name__ == '__main__':
  absltest.main()

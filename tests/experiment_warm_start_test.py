"""Trainings that go on from a checkpoint: what they take over, and when."""

import contextlib
import io
import pathlib
import shutil
import types
from typing import Any
from unittest import mock

from absl.testing import absltest
from flax import struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from adanat_jax.data.examples import ArrayExamples
from adanat_jax.errors import UserError
from adanat_jax.experiment import (
  config as config_lib,
  networks,
  warm_start,
  workdir as workdir_lib,
)
from adanat_jax.experiment.experiment import Experiment
from adanat_jax.runtime import checkpoint, journal, leaves, loop
from adanat_jax.stages import (
  nat as nat_stage,
  policy as policy_stage,
  tokenizer as tokenizer_stage,
)
from support import configs, random_weights, small_weights


@struct.dataclass
class TwoState:
  """A state of two networks."""

  params: Any
  opt_state: Any
  adversary: Any = None
  average: Any = None


def rate(count):
  return 0.1 / (1 + count)


OPTIMIZER = optax.adam(rate)
FIELDS = {
  'policy': {
    'params/actor': ('params/actor',),
    'params/critic': ('params/critic',),
    'opt_state': ('opt_state',),
    'average': ('average', 'params'),
    'adversary/params': ('adversary/params',),
  },
  'policy.discriminator': {'adversary/params': ('adversary/params', 'params')},
}


def state_of(number, width=3, **changes):
  """A state whose every leaf is made of numbers of its own."""
  params = {
    'actor': {
      'kernel': jnp.arange(2.0 * width).reshape(2, width) + number,
      'bias': jnp.full(2, -number),
    },
    'critic': {'kernel': jnp.ones(4) * number},
  }
  opt_state = OPTIMIZER.init(params)
  _, opt_state = OPTIMIZER.update(params, opt_state)
  adversary = TwoState({'head': jnp.full(2, 9.0 * number)}, ())
  return TwoState(params, opt_state, adversary, **changes)


class WarmStartTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.create_tempdir().full_path)

  def save(self, name, **fields):
    return small_weights.save(self.root / name, **fields)

  def begin(self, state, policy='', discriminator='', fields=None):
    """What training begins with, and the line that is said."""
    given = {'policy': policy, 'policy.discriminator': discriminator}
    experiment = types.SimpleNamespace(begins_with=given.get)
    said = io.StringIO()
    begin = warm_start.make(experiment, 'policy/x', fields or FIELDS)
    with contextlib.redirect_stdout(said):
      return begin(state), said.getvalue()

  def assert_same(self, found, expected):
    found, expected = leaves.by_name(found), leaves.by_name(expected)
    self.assertEqual(found.keys(), expected.keys())
    for name, leaf in found.items():
      np.testing.assert_array_equal(leaf, expected[name], name)
      self.assertEqual(leaf.dtype, expected[name].dtype)

  def test_all_is_taken_over_but_the_count_of_rates(self):
    there = state_of(5.0)
    path = self.save('a', **vars(there))
    found, said = self.begin(state_of(1.0), path)
    adam, falling = there.opt_state
    self.assertEqual((int(adam.count), int(falling.count)), (1, 1))
    # The rate counts the steps of this training: 1 is what it had.
    expected = state_of(1.0).opt_state[1]._replace(count=jnp.int32(1))
    self.assert_same(found, there.replace(opt_state=(adam, expected)))
    fresh = state_of(1.0).replace(opt_state=OPTIMIZER.init(there.params))
    found, _ = self.begin(fresh, path)
    self.assertEqual(int(found.opt_state[1].count), 0)
    self.assert_same(found.opt_state[0], adam)
    self.assertEqual(
      said,
      f'policy/x: goes on from {path}; taken over: actor, critic, optimizer,'
      ' discriminator/params; begun anew: nothing\n',
    )

  def test_what_has_another_shape_begins_anew(self):
    there = state_of(5.0, width=4)
    ours = state_of(1.0)
    found, said = self.begin(ours, self.save('a', **vars(there)))
    actor, critic = found.params['actor'], found.params['critic']
    self.assert_same(actor['kernel'], ours.params['actor']['kernel'])
    self.assert_same(actor['bias'], there.params['actor']['bias'])
    self.assert_same(critic, there.params['critic'])
    # A part of Adam's averages would be of no use.
    self.assert_same(found.opt_state, ours.opt_state)
    self.assertIn(
      'taken over: actor, critic, discriminator/params; begun anew:'
      ' actor/kernel (float32[2,4] there, float32[2,3] here),'
      ' optimizer (of other parameters or another kind)\n',
      said,
    )

  def test_what_is_not_there_begins_anew(self):
    params = {'actor': state_of(5.0).params['actor']}
    ours = state_of(1.0)
    found, said = self.begin(ours, self.save('a', params=params))
    self.assert_same(found, ours.replace(params={**ours.params, **params}))
    self.assertIn(
      'taken over: actor; begun anew: critic (not there), optimizer (not'
      ' there), discriminator/params (not there)',
      said,
    )

  def test_an_average_begins_with_the_parameters(self):
    there = state_of(5.0)
    kept = jax.tree.map(jnp.zeros_like, there.params)
    found, _ = self.begin(
      state_of(1.0, average=kept), self.save('a', **vars(there))
    )
    self.assert_same(found.average, there.params)
    # Both are donated: they must not be the same buffers.
    ours = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(found)]
    self.assertLen(set(ours), len(ours))

  def test_a_discriminator_of_its_own(self):
    heads = {'head': jnp.full(2, 3.0)}
    other = self.save('b', params=heads, spectral={'u': jnp.zeros(2)})
    path = self.save('a', **vars(state_of(5.0)))
    found, said = self.begin(state_of(1.0), path, other)
    self.assert_same(found.adversary.params, heads)
    self.assert_same(found.params, state_of(5.0).params)
    self.assertIn(f'{path} and {other}; taken over', said)
    # Another reward has no discriminator.
    plain = state_of(1.0).replace(adversary=None)
    found, said = self.begin(plain, '', other)
    self.assert_same(found, plain)
    self.assertEqual(said, '')
    # With a new policy; and out of the checkpoint of another one.
    found, _ = self.begin(state_of(1.0), '', other)
    self.assert_same(found.params, state_of(1.0).params)
    self.assert_same(found.adversary.params, heads)
    found, _ = self.begin(state_of(1.0), '', path)
    self.assert_same(found.adversary.params, state_of(5.0).adversary.params)

  def test_nothing_that_fits_is_an_error(self):
    path = self.save('a', params={'encoder': {'kernel': jnp.ones(3)}})
    with self.assertRaisesRegex(
      UserError, r'config\.policy\.init_from=.*/a: nothing there fits .*actor'
    ):
      self.begin(state_of(1.0), path)

  def test_a_resumed_training_does_not_begin_again(self):
    path = self.save('a', **vars(state_of(5.0)))
    experiment = types.SimpleNamespace(begins_with={'policy': path}.get)
    step = jax.jit(
      lambda state, batch, index: (
        state.replace(params=jax.tree.map(lambda x: x + index, state.params)),
        {'loss': jnp.float32(0)},
      ),
      donate_argnums=0,
    )

    def train(num_steps):
      return loop.run_loop(
        state_of(1.0),
        step,
        lambda step: (),
        num_steps=num_steps,
        directory=self.root / 'run',
        name='run',
        log_every=1,
        save_every=1,
        tensorboard=False,
        begin=warm_start.make(experiment, 'run', {'policy': FIELDS['policy']}),
      )

    first = train(1)
    self.assert_same(first.params, state_of(5.0).params)
    shutil.rmtree(path)
    second = train(3)
    self.assert_same(
      second.params, jax.tree.map(lambda x: x + 3, state_of(5.0).params)
    )
    # From the start again, it would have to read what is gone.
    shutil.rmtree(self.root / 'run')
    with self.assertRaisesRegex(UserError, 'no finished training here'):
      train(3)


class StagesTest(absltest.TestCase):
  """What the stages hand over."""

  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.create_tempdir().full_path)
    self.enter_context(contextlib.redirect_stdout(io.StringIO()))

  def begun(self, stage, config, **fields):
    """The states before and after the start from a checkpoint of `fields`."""
    name = stage.__name__.rpartition('.')[-1]
    there = small_weights.save(self.root / 'there', **fields)
    config[name].update(init_from=there, fine_tune=True)
    experiment = Experiment(config, self.root / 'run')
    self.assertFalse(experiment.is_converted(name))
    fit = self.enter_context(mock.patch.object(stage.fit, 'fit'))
    stage.run(experiment)
    arguments = fit.call_args.kwargs
    state = jax.jit(arguments['initial'])({})
    return state, arguments['begin'](state)

  def test_a_converted_nat(self):
    config = configs.load('digits.py:tiny', nat__width=16, nat__depth=0)
    module = nat_stage.networks.nat_module(config)
    inputs = np.zeros((1, 16), np.int32), np.zeros(1, np.int32)
    ema = random_weights.random_variables(module, *inputs)['params']
    rows = {'tokens': np.zeros((40, 16), np.int32), 'condition': np.zeros(40)}
    self.enter_context(
      mock.patch.object(
        nat_stage, '_splits', lambda _: {'train': ArrayExamples(rows)}
      )
    )
    before, after = self.begun(nat_stage, config, ema=ema)
    jax.tree.map(np.testing.assert_array_equal, after.params, ema)
    jax.tree.map(np.testing.assert_array_equal, after.ema, ema)
    jax.tree.map(
      np.testing.assert_array_equal, after.opt_state, before.opt_state
    )

  def test_a_converted_tokenizer(self):
    config = configs.load(
      'digits.py:tiny', tokenizer__width_multipliers=(1, 1, 1)
    )
    module = tokenizer_stage.networks.tokenizer_module(config)
    image = np.zeros((1, 16, 16, 1), np.float32)
    params = random_weights.random_variables(module, image)['params']
    make = self.enter_context(
      mock.patch.object(tokenizer_stage.vq, 'make_train_step')
    )
    _, after = self.begun(tokenizer_stage, config, params=params)
    jax.tree.map(np.testing.assert_array_equal, after.params, params)
    # No code is thrown away: each has its even share, and stays where it is.
    np.testing.assert_array_equal(after.code_counts, 32 * 16 / 128)
    np.testing.assert_allclose(
      after.code_sums / after.code_counts[:, None],
      params['codebook'],
      rtol=1e-6,
    )
    self.assertEqual(make.call_args.kwargs['warmup_steps'], 0)

  def test_a_discriminator_for_no_reward_is_refused(self):
    config = configs.load('digits.py:tiny')
    config.policy.discriminator.init_from = 'weights'
    policy_stage.check_config(Experiment(config, self.root))
    config.policy.rewards = ('pretrained',)
    with self.assertRaisesRegex(UserError, 'init_from=weights is for config'):
      policy_stage.check_config(Experiment(config, self.root))

  def test_a_grid_of_another_shape_is_refused(self):
    # Four by four tokens, and two by eight.
    square = configs.load('digits.py:tiny')
    weights = self.root / 'weights'
    with checkpoint.Checkpointer(weights) as checkpointer:
      told = {'config': config_lib.to_dict(square)}
      checkpointer.save(1, {'params': {'x': jnp.zeros(1)}}, told)
    journal.mark_complete(weights, 1, {})
    config = configs.load('image_folder.py:tiny')
    config.tokenizer.width_multipliers = (1, 1, 1)
    config.data.update(image_size=8, image_width=32)
    problems = lambda: [*networks.problems_of_grids(Experiment(config, ''))]
    self.assertEqual(networks.grid(config), (2, 8))
    self.assertEmpty(problems())
    config.nat.init_from = str(weights)
    (problem,) = problems()
    self.assertIn('was trained on 4x4 tokens, and', problem)
    self.assertIn('have 2x8', problem)
    # What has other shapes is told where it is read.
    config.data.image_width = 0
    self.assertEmpty(problems())

  def test_what_is_wrong_is_said(self):
    config = configs.load('digits.py:tiny', nat__fine_tune=True)
    problems = [*workdir_lib.problems(Experiment(config, self.root))]
    self.assertEqual(
      problems,
      [
        'config.nat.fine_tune is true and config.nat.init_from is empty; give'
        ' the directory to go on from'
      ],
    )
    config.nat.init_from = str(self.root / 'gone')
    (problem,) = workdir_lib.problems(Experiment(config, self.root))
    self.assertIn('no checkpoint is there', problem)
    # What has begun does not need it any more.
    with checkpoint.Checkpointer(self.root / 'nat') as checkpointer:
      checkpointer.save(1, {'x': jnp.zeros(1)}, {})
    self.assertEmpty([*workdir_lib.problems(Experiment(config, self.root))])


if __name__ == '__main__':
  absltest.main()

"""The estimate of hours: its formulas, and what it leaves out when told to."""

import pathlib
import sys
from unittest import mock

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp

from adanat_jax.models import operations
from adanat_jax.models.vqgan import VQGAN
from support import configs

sys.path.append(str(pathlib.Path(__file__).parents[1] / 'benchmarks'))

import hours


def load(name, changes=None):
  return configs.load(name, changes)


class EncoderTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('published', VQGAN(1024, 256), 256),
    ('digits', VQGAN(128, 8, 16, (1, 2, 4), 1, 8, 1), 16),
  )
  def test_agrees_with_xla(self, module, num_tokens):
    side = int(num_tokens**0.5) * module.downsampling
    image = jax.ShapeDtypeStruct(
      (1, side, side, module.image_channels), jnp.float32
    )
    params = jax.eval_shape(module.init, jax.random.key(0), image)
    encode = lambda params, x: module.apply(params, x, method='encode')
    xla = jax.jit(encode).lower(params, image).cost_analysis()['flops']
    formula = operations.encoder_operations(module, num_tokens)
    self.assertBetween(xla / formula, 1.0, 1.03)


class HoursTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.config = load('image_folder.py:tiny')
    cls.stages = hours.stages(cls.config, 100)

  def test_prepare_encodes_each_image_twice(self):
    cost = hours.Costs(self.config)
    self.assertEqual(self.stages['prepare'], 200 * cost.encoder)
    nat = self.config.nat
    self.assertEqual(
      self.stages['nat'], 3 * nat.num_steps * nat.batch_size * cost.nat
    )

  def test_judges_learn_from_all_images_of_their_steps(self):
    section = self.config.judges
    measure = hours.networks.module_and_inputs(self.config, 'measure')
    forwards = {
      'measure': hours._counted(measure[0], *measure[1]),
      'reward': hours.Costs(self.config).reward,
    }
    expected = sum(
      section[name].num_steps * section[name].batch_size * forward
      for name, forward in forwards.items()
    )
    # A gradient is two forwards more; a folder of one class learns by views.
    self.assertEqual(self.stages['judges'], 2 * 3 * expected)

  def test_enat_makes_a_cache_in_half_of_the_steps(self):
    config = load('in256_enat.py:tiny')
    cost = hours.Costs(config)
    module = hours.networks.nat_module(config)
    self.assertEqual(cost.nat, operations.enat_operations(module))
    with mock.patch.object(hours, 'Costs', lambda config: cost):
      stages = hours.stages(config, 100)
    nat = config.nat
    self.assertEqual(
      stages['nat'], 3.5 * nat.num_steps * nat.batch_size * cost.nat
    )

  def test_converted_networks_cost_nothing(self):
    changes = {
      f'{name}.init_from': 'weights' for name in ('tokenizer', 'nat', 'policy')
    }
    stages = hours.stages(load('image_folder.py:tiny', changes), 100)
    self.assertEqual(set(stages), {'judges', 'prepare', 'evaluate, a policy'})
    for name, count in stages.items():
      self.assertEqual(count, self.stages[name])

  def test_text_states_are_made_once_or_in_every_step(self):
    config = load('cc3m256.py:mini')
    cost = hours.Costs(config)
    with mock.patch.object(hours, 'Costs', lambda config: cost):
      store = hours.stages(config, 100, 2)
      config.data.text_embeddings = 'compute'
      compute = hours.stages(config, 100, 2)
    self.assertEqual(store['prepare'] - compute['prepare'], 200 * cost.text)
    nat = config.nat
    self.assertEqual(
      compute['nat'] - store['nat'], nat.num_steps * nat.batch_size * cost.text
    )
    self.assertLess(store['policy'], compute['policy'])

  def test_table(self):
    # 7.2e15 operations at 1e12 a second are two hours.
    text = hours.table({'nat': 7.2e15}, {'one': 1e12, 'eight': 8e12})
    self.assertEqual(
      text.splitlines()[-1].split(), '| nat | 7.2 | 2 | 0.25 |'.split()
    )


if __name__ == '__main__':
  absltest.main()

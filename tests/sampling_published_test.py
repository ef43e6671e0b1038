"""From a torch file to images: convert, load, sample, at a shrunken size."""

import pathlib
from unittest import mock

from absl.testing import absltest, parameterized
from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from adanat_jax.convert import (
  __main__ as cli,
  clip,
  enat,
  nat,
  policy,
  vqgan,
)
from adanat_jax.errors import UserError
from adanat_jax.experiment import (
  config as config_lib,
  datasets,
  networks,
)
from adanat_jax.experiment.experiment import Experiment
from adanat_jax.models.enat import ENAT, SIZES
from adanat_jax.models.nat import NAT
from adanat_jax.models.policy import PolicyNetwork
from adanat_jax.models.vqgan import VQGAN
from adanat_jax.sampling.generator import Generator
from adanat_jax.stages import sample
from adanat_jax.types import Observation
from support import configs, torch_files

NAMES = (
  *('in256', 'in256_s', 'in512', 'cc3m256', 'coco256'),
  *('in256_enat', 'in512_enat'),
)

try:
  import ftfy  # noqa: F401
  import instant_clip_tokenizer  # noqa: F401

  HAS_TOKENIZER = True
except ImportError:
  HAS_TOKENIZER = False

# The published layouts, narrow: 8x8 pixels, 4x4 tokens.
SHRUNKEN = {
  'data.image_size': 8,
  'tokenizer.codebook_size': 12,
  'tokenizer.code_width': 6,
  'tokenizer.base_width': 8,
  'tokenizer.width_multipliers': (1, 2),
  'tokenizer.num_res_blocks': 1,
  'tokenizer.num_groups': 4,
  'nat.width': 32,
  'nat.depth': 2,
  'nat.num_heads': 4,
  'policy.network.hidden_size': 16,
  'policy.network.conv_width': 8,
  'policy.network.mlp_widths': (24, 16),
  'evaluate.batch_size': 3,
  'sample.images_per_class': 1,
}
TEXT = {
  'text.width': 16,
  'text.depth': 1,
  'text.num_heads': 2,
  'text.mlp_width': 32,
  'text.projection_width': 8,
}


def random_params(module, *inputs):
  """Parameters that are nowhere zero."""
  shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)['params']
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda s: 0.3 * rng.standard_normal(s.shape).astype(np.float32), shapes
  )


class PublishedSamplingTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)

  def converted(self, kind, held):
    path = self.folder / f'{kind}.pth'
    torch_files.save_zip(path, held)
    cli.convert(kind, [str(path)], str(self.folder / kind))
    return str(self.folder / kind)

  def load_config(self, name, **more):
    return configs.load(f'{name}.py', {**SHRUNKEN, **more})

  def weights(self, config, condition):
    """Converts a tokenizer and a network; returns overrides and parameters."""
    tokenizer = networks.tokenizer_module(config)
    module = networks.nat_module(config)
    images = jnp.zeros((1, 8, 8, 3))
    tokenizer_params = random_params(tokenizer, images)
    params = random_params(module, jnp.zeros((1, 16), jnp.int32), condition)
    family = {'nat': nat, 'enat': enat}[config.nat.network]
    overrides = {
      'tokenizer.init_from': self.converted(
        'vqgan', {'state_dict': vqgan.FAMILY.to_theirs(tokenizer_params)}
      ),
      'nat.init_from': self.converted(
        config.nat.network, family.FAMILY.to_theirs(params)
      ),
    }
    return overrides, params

  def policy_file(self):
    networks = {}
    for name, outputs in (('actor', 4), ('critic', 1)):
      network = PolicyNetwork(outputs, 4, 16, 8, (24, 16))
      params = random_params(network, jnp.zeros((1, 16, 32)), jnp.zeros(1, int))
      for key, value in policy.FAMILY.to_theirs(params).items():
        for copy in ('policy', 'policy_old'):
          networks[f'{copy}.{name}.{key}'] = value
    return {
      'model': networks,
      'args': torch_files.namespace(gen_steps=8),
      'global_step': 1000,
    }

  def test_classes(self):
    overrides, params = self.weights(
      self.load_config('in256'), jnp.zeros(1, jnp.int32)
    )
    overrides['policy.init_from'] = self.converted('policy', self.policy_file())
    config = self.load_config(
      'in256', **overrides, **{'sample.classes': (3, 999, 3)}
    )
    experiment = Experiment(config, self.folder)
    sample.run(experiment)
    written = sorted(p.name for p in (self.folder / 'sample').iterdir())
    self.assertEqual(
      written,
      [
        '00000-class3.png',
        '00001-class999.png',
        '00002-class3.png',
        'grid.png',
      ],
    )
    generator = experiment.generator()
    jax.tree.map(np.testing.assert_array_equal, generator.nat_params, params)
    images = [
      np.asarray(Image.open(self.folder / 'sample' / name), np.int32)
      for name in written[:3]
    ]
    self.assertEqual(images[0].shape, (8, 8, 3))
    self.assertGreater(np.abs(images[0] - images[1]).max(), 3)
    # The actor acts: its first action is that of the converted network.
    agent = generator.agents[8]
    features = np.ones((2, 16, 32), np.float32)

    @jax.jit
    def act(features):
      seen = Observation(features, None, None, None)
      return agent.policy()(0, seen, None, ())[0].mask_ratio

    network = PolicyNetwork(4, 4, 16, 8, (24, 16))
    action = jax.jit(network.apply)(
      {'params': agent.params['actor']}, features, np.zeros(2, np.int32)
    )
    np.testing.assert_allclose(
      act(features), 1 / (1 + np.exp(-action[:, 0])), rtol=1e-5
    )

  def test_enat_with_its_schedule(self):
    small = {'nat.encoder_depth': 1, 'sample.classes': (1, 7)}
    small['sample.num_steps'] = 2
    config = self.load_config('in512_enat', **small)
    overrides, params = self.weights(config, jnp.zeros(1, jnp.int32))
    config = self.load_config('in512_enat', **small, **overrides)
    self.assertEqual(config.sample.policy, 'enat_512')
    experiment = Experiment(config, self.folder)
    sample.run(experiment)
    images = [
      np.asarray(Image.open(self.folder / 'sample' / name), np.int32)
      for name in ('00000-class1.png', '00001-class7.png')
    ]
    self.assertGreater(np.abs(images[0] - images[1]).max(), 3)
    _, loaded = experiment.network('nat')
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    config.nat.decoder_depth = 1
    with self.assertRaisesRegex(UserError, r'config\.nat\.init_from'):
      Experiment(config, self.folder).network('nat')

  def test_enat_with_a_policy_within_buckets(self):
    small = {'nat.encoder_depth': 1, 'nat.decoder_depth': 1}
    small |= {'sample.classes': (1, 7), 'sample.policy': 'learned'}
    small['sample.num_buckets'] = 2
    config = self.load_config('in256_enat', **small)
    small |= self.weights(config, jnp.zeros(1, jnp.int32))[0]
    small['policy.init_from'] = self.converted('policy', self.policy_file())
    generators = []

    def watched(*args, with_buckets=Generator.with_buckets, **kwargs):
      generators.append(with_buckets(*args, **kwargs))
      return generators[-1]

    # That they change no token is in `sampling_enat_test`.
    with mock.patch.object(Generator, 'with_buckets', watched):
      sample.run(
        Experiment(self.load_config('in256_enat', **small), self.folder)
      )
    self.assertNotEmpty(generators[0].buckets[8])
    written = sorted((self.folder / 'sample').iterdir())
    self.assertLen(written, 3)
    first, second, _ = (np.asarray(Image.open(p), np.int32) for p in written)
    self.assertGreater(np.abs(first - second).max(), 3)

  @absltest.skipUnless(HAS_TOKENIZER, "needs the extra 'text'")
  def test_captions(self):
    config = self.load_config('cc3m256', **TEXT)
    overrides, _ = self.weights(config, jnp.zeros((1, 77, 16)))
    tower = networks.text_module(config)
    overrides['text.init_from'] = self.converted(
      'clip_text',
      clip.TEXT.to_theirs(random_params(tower, jnp.zeros((1, 77), jnp.int32))),
    )
    config = self.load_config(
      'cc3m256',
      **TEXT,
      **overrides,
      **{'sample.captions': ('a cat', 'a dog'), 'sample.policy': 'adagen'},
    )
    experiment = Experiment(config, self.folder)
    sample.run(experiment)
    written = sorted(p.name for p in (self.folder / 'sample').iterdir())
    self.assertEqual(
      written, ['00000-text0.png', '00001-text1.png', 'grid.png']
    )
    generator = experiment.generator()
    states = generator.encode_captions(['a cat', 'a dog'])
    self.assertEqual(states.shape, (2, 77, 16))
    self.assertGreater(np.ptp(states[0] - states[1]), 0.01)
    # As a library: captions are as good as their states.
    decode = lambda texts: generator.generate(texts, 2, 0, 'adagen').tokens
    np.testing.assert_array_equal(decode(['a cat', 'a dog']), decode(states))
    with self.assertRaisesRegex(UserError, r'int64\[1\]; give a list of capt'):
      decode([1])

  def test_mistakes_are_named(self):
    with self.assertRaisesRegex(UserError, r'config\.nat\.init_from'):
      sample.run(Experiment(self.load_config('in256'), self.folder))
    overrides, _ = self.weights(
      self.load_config('in256'), jnp.zeros(1, jnp.int32)
    )
    config = self.load_config('in256', **overrides)
    config.policy.init_from = config.nat.init_from
    config.policy.num_steps = (4, 8)
    with self.assertRaisesRegex(UserError, r'policy\.num_steps.* 1 element'):
      sample.run(Experiment(config, self.folder))
    config.policy.num_steps = (4,)
    config.policy.init_from = ''
    config.sample.policy = 'learned'
    with self.assertRaisesRegex(UserError, 'no policy was learned'):
      sample.run(Experiment(config, self.folder))
    config.nat.width = 48
    with self.assertRaisesRegex(UserError, 'is expected'):
      sample.run(Experiment(config, self.folder))
    config.nat.init_from = str(self.folder / 'nowhere')
    with self.assertRaisesRegex(UserError, r'config\.nat\.init_from.*nowhere'):
      sample.run(Experiment(config, self.folder))


class ConfigsTest(parameterized.TestCase):
  @parameterized.parameters(*NAMES)
  def test_tiny_has_the_fields_of_the_digits(self, name):
    digits = configs.load('digits.py:tiny')
    tiny = configs.load(f'{name}.py:tiny')
    fields = [
      set(traverse_util.flatten_dict(config_lib.to_dict(config), sep='.'))
      for config in (tiny, digits)
    ]
    self.assertEqual(*fields)
    self.assertEqual(tuple(tiny.policy.num_steps), (8,))

  def test_published_size(self):
    config = configs.load('in256_s.py')
    module, inputs = networks.module_and_inputs(config, 'nat')
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    sizes = [int(np.prod(x.shape)) for x in jax.tree.leaves(shapes)]
    self.assertEqual(sum(sizes), 45_546_497)

  # The sizes of these networks are in `convert_layout_test`.
  @parameterized.parameters(
    ('in256', NAT(1024, 256, 768, 24, 8, num_classes=1000)),
    ('cc3m256', NAT(1024, 256, 1152, 28, 16, text_width=1280)),
  )
  def test_published_networks(self, name, module):
    found = networks.nat_module(configs.load(f'{name}.py'))
    self.assertEqual(found, module.clone(attention='auto'))

  # And of these in `models_enat_test`.
  @parameterized.parameters(
    ('in256_enat.py', 'L', 256),
    ('in256_enat.py:base', 'B', 256),
    ('in256_enat.py:small', 'S', 256),
    ('in512_enat.py', 'L', 1024),
  )
  def test_published_networks_of_enat(self, name, size, num_tokens):
    found = networks.nat_module(configs.load(name))
    module = ENAT(1024, num_tokens, num_classes=1000, **SIZES[size])
    self.assertEqual(found, module.clone(attention='auto'))

  def test_published_recipe_of_enat(self):
    published = dict(
      num_steps=500_000,
      batch_size=2048,
      learning_rate=4e-4,
      learning_rate_schedule='constant',
      warmup_steps=5000,
      betas=(0.99, 0.99),
      weight_decay=0.03,
      ema_decay=0.9999,
      label_smoothing=0.1,
      dropout_rate=0.1,
      mask_ratio='beta',
      beta=(12.0, 3.0),
      mask_ratio_per='batch',
      reuse_probability=0.5,
    )
    at_512 = dict(published, batch_size=512, learning_rate=1e-4)
    for name, recipe in (('in256_enat', published), ('in512_enat', at_512)):
      nat_section = configs.load(f'{name}.py').nat
      given = {field: nat_section[field] for field in recipe}
      self.assertEqual(given, recipe)

  @parameterized.parameters(('in256', 16), ('cc3m256', 16), ('in512', 32))
  def test_published_networks_beside_the_nat(self, name, side):
    # Their sizes are in `convert_layout_test` too.
    config = configs.load(f'{name}.py')
    self.assertEqual(networks.tokenizer_module(config), VQGAN(1024, 256))
    self.assertEqual(networks.nat_module(config).num_tokens, side**2)
    actor, _ = networks.policy_modules(config)
    self.assertEqual(actor, PolicyNetwork(4, side))
    trunk = config.judges.reward
    self.assertEqual(
      (trunk.patch_size, trunk.width, trunk.depth, trunk.num_heads),
      (16, 384, 12, 6),
    )

  @parameterized.product(name=NAMES, preset=('default', 'mini'))
  def test_real_images_go_through_every_stage(self, name, preset):
    config = configs.load(f'{name}.py:{preset}')
    self.assertEqual(config.mode, 'all')
    with self.assertRaisesRegex(UserError, r'config\.data\.path is empty'):
      Experiment(config, 'unused').check(datasets.problems)


if __name__ == '__main__':
  absltest.main()

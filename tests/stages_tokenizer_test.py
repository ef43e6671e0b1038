"""Tokenizers: the adversarial loss, a train step, the stage on real images."""

import functools
import json
import pathlib
import shutil
import tempfile

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax
from PIL import Image

from adanat_jax.errors import UserError
from adanat_jax.experiment import config as config_lib
from adanat_jax.experiment.experiment import Experiment
from adanat_jax.learning import discriminator, patch_gan, vq
from adanat_jax.models.patch_discriminator import PatchDiscriminator
from adanat_jax.models.vqgan import VQGAN
from adanat_jax.runtime import metric_writer
from adanat_jax.stages import tokenizer
from support import compiling, raw_files, raw_pictures

ROOT = pathlib.Path(__file__).parents[1]
# Small programs, each run a few times: compiling takes the time.
FAST = {'xla_backend_optimization_level': 0}


def fast(function):
  return jax.jit(function, compiler_options=FAST)


def adversarial_loss(optimizer, **options):
  module = PatchDiscriminator(base_width=4, num_levels=1, num_groups=2)
  return patch_gan.AdversarialLoss(
    init=lambda key: module.init(key, jnp.zeros((1, 8, 8, 3)))['params'],
    logits=lambda params, images: module.apply({'params': params}, images),
    optimizer=optimizer,
    adaptive=True,
    **options,
  )


def pictures(count, side=8):
  cut = [raw_pictures.picture(i, side, side) for i in range(count)]
  return np.stack(cut).astype(np.float32) / 255


class PatchDiscriminatorTest(absltest.TestCase):
  def test_judges_patches_of_each_image_by_itself(self):
    module = PatchDiscriminator(base_width=4, num_levels=2, num_groups=2)
    images = jnp.asarray(pictures(3, 15))
    params = fast(module.init)(jax.random.key(0), images)
    apply = fast(module.apply)
    logits = apply(params, images)
    # 15 pixels are halved twice, rounded up: 8, then 4.
    self.assertEqual(logits.shape, (3, 4, 4))
    others = images.at[1:].set(0.0)
    np.testing.assert_allclose(logits[0], apply(params, others)[0], atol=1e-6)
    self.assertGreater(float(np.abs(logits[0] - logits[1]).max()), 1e-4)


class AdversarialLossTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.images = jnp.asarray(pictures(4))
    cls.rebuilt = jnp.full_like(cls.images, 0.5)
    cls.towards = 0.01 * (cls.rebuilt - cls.images)
    cls.adversarial = adversarial_loss(
      optax.adam(0.02), weight=0.5, trains_from=3, used_from=5
    )
    cls.state = fast(cls.adversarial.initial_state)(jax.random.key(1))

    @fast
    def step(state, number):
      return cls.adversarial.step(
        state, cls.images, cls.rebuilt, cls.towards, optax.tree.norm, number
      )

    cls.step = staticmethod(step)

  def test_hinge_loss(self):
    # Real: 1 - 2 < 0 counts 0, 1 - 0.5; fake: 1 + 0, 1 - 3 < 0 counts 0.
    real, fake = jnp.float32([2, 0.5]), jnp.float32([0, -3])
    loss = discriminator.hinge_loss(real, fake)
    self.assertAlmostEqual(float(loss), (0 + 0.5) / 2 + (1 + 0) / 2)

  def test_first_it_is_skipped_then_learns_then_is_used(self):
    state, push, metrics = self.step(self.state, 2)
    jax.tree.map(np.testing.assert_array_equal, state, self.state)
    self.assertEqual(np.abs(push).max(), 0)
    self.assertEqual({float(x) for x in metrics.values()}, {0.0})

    state, push, metrics = self.step(self.state, 4)
    self.assertEqual(np.abs(push).max(), 0)
    self.assertEqual(float(metrics['adversarial_weight']), 0)
    self.assertGreater(float(metrics['discriminator_loss']), 0)
    moved = jax.tree.map(
      lambda a, b: np.abs(np.subtract(a, b)).max(),
      state.params,
      self.state.params,
    )
    self.assertGreater(max(jax.tree.leaves(moved)), 1e-3)

    _, push, metrics = self.step(self.state, 5)
    self.assertGreater(np.abs(push).max(), 0)
    self.assertGreater(float(metrics['adversarial_weight']), 0)

  def test_the_adaptive_push_has_its_share_of_the_errors_length(self):
    _, push, _ = self.step(self.state, 5)
    length = optax.tree.norm(push) / optax.tree.norm(self.towards)
    # What keeps the ratio finite makes it a little less than the weight.
    self.assertBetween(float(length), 0.4, 0.5)

  def test_the_push_leads_to_what_looks_real(self):
    _, push, _ = self.step(self.state, 5)
    logits = fast(self.adversarial.logits)
    logit = lambda x: np.mean(logits(self.state.params, x))
    self.assertGreater(logit(self.rebuilt - push), logit(self.rebuilt))

  def test_learns_to_tell_images_from_reconstructions(self):
    state, losses = self.state, []
    for number in range(3, 28):
      state, _, metrics = self.step(state, number)
      losses.append(float(metrics['discriminator_loss']))
    self.assertGreater(losses[0], 0.8)
    self.assertLess(losses[-1], 0.4)


class TrainStepTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.module = VQGAN(
      8,
      4,
      base_width=4,
      width_multipliers=(1, 2),
      num_res_blocks=1,
      num_groups=2,
    )
    cls.images = jnp.asarray(pictures(4))
    adversarial = adversarial_loss(
      optax.sgd(0.1), weight=0.7, trains_from=1, used_from=2
    )
    cls.network = tokenizer.make_autoencoder(cls.module, (8, 8, 3))
    optimizer = optax.sgd(1.0)
    make = fast(
      lambda: vq.initial_state(
        cls.network, optimizer, jax.random.key(1), adversarial
      )
    )
    cls.before = make()
    alone = cls.before.replace(adversary=None)
    plain = cls.train_step(optimizer, None, alone)
    used = cls.train_step(optimizer, adversarial, cls.before)
    cls.operations = [step.cost_analysis()['flops'] for step in (plain, used)]
    one, two = jnp.int32(1), jnp.int32(2)
    cls.after = {
      'plain': plain(alone, cls.images, one),
      'waiting': used(cls.before, cls.images, one),
      'used': used(cls.before, cls.images, two),
    }

  @classmethod
  def train_step(cls, optimizer, adversarial, state):
    step = fast(
      vq.make_train_step(
        cls.network,
        optimizer,
        key=jax.random.key(0),
        warmup_steps=0,
        commitment=0.25,
        codebook_decay=0.9,
        max_shift=0,
        error='absolute',
        adversarial=adversarial,
      )
    )
    return step.lower(state, cls.images, jnp.int32(0)).compile()

  def gradient(self, name):
    state, _ = self.after[name]
    return jax.tree.map(np.subtract, self.before.params, state.params)

  def test_until_it_is_used_the_gradient_is_the_plain_one(self):
    plain, waiting = self.gradient('plain'), self.gradient('waiting')
    for half in ('encoder', 'decoder'):
      jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
        plain[half],
        waiting[half],
      )
    self.assertIsNone(self.after['plain'][0].adversary)

  def test_at_the_last_layer_it_has_its_share_of_the_gradient(self):
    # The two differ by the adversarial gradient alone. There it is 0.7 times as
    # long as the reconstruction error's, which is all of the plain one: the
    # commitment ends at the encoder.
    last = lambda name: self.gradient(name)['decoder']['conv_out']['kernel']
    plain = last('plain')
    adversarial = last('used') - plain
    share = optax.tree.norm(adversarial) / optax.tree.norm(plain)
    self.assertAlmostEqual(float(share), 0.7, delta=0.01)

  def test_it_reaches_the_encoder(self):
    first = lambda name: self.gradient(name)['encoder']['conv_in']['kernel']
    change = optax.tree.norm(first('used') - first('plain'))
    self.assertGreater(float(change), 1e-3)

  def test_its_share_costs_no_second_gradient(self):
    plain, used = self.operations
    # One more gradient of the tokenizer would be two thirds more.
    self.assertBetween(used / plain, 1.01, 1.4)

  def test_error_and_loss(self):
    _, metrics = self.after['used']
    rebuild = fast(lambda params, x: self.module.apply({'params': params}, x))
    rebuilt = rebuild(self.before.params, self.images)
    error = float(np.abs(rebuilt - self.images).mean())
    self.assertAlmostEqual(float(metrics['error']), error, 5)
    loss = error + 0.25 * float(metrics['commitment'])
    self.assertAlmostEqual(float(metrics['loss']), loss, 5)


class StageTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    directory = pathlib.Path(
      cls.enterClassContext(tempfile.TemporaryDirectory())
    )
    # What goes on is the same program: it is compiled once.
    cls.enterClassContext(compiling.compiled_once(directory / 'cache'))
    folder = raw_files.image_folder(directory / 'pictures', 2, 8, corrupt=True)
    cls.changes = {
      'data.path': str(folder.path),
      'data.num_classes': 2,
      'data.image_size': 16,
      'tokenizer.width_multipliers': (1, 2),
      'tokenizer.base_width': 4,
      'tokenizer.adversarial.start_fraction': 0.3,
      'tokenizer.batch_size': 8,
      'keep_every': 4,
      'tensorboard': False,
    }
    cls.config = cls.load({})
    cls.workdir = directory / 'run'
    tokenizer.run(Experiment(cls.config, cls.workdir))

  @classmethod
  def load(cls, changes):
    source = f'{ROOT / "configs/image_folder.py"}:tiny'
    return config_lib.load(source, cls.changes | changes)

  def read(self, name, workdir=None):
    return json.loads(
      (workdir or self.workdir).joinpath('tokenizer', name).read_text()
    )

  def rows(self):
    rows = metric_writer.read_metrics(self.workdir / 'tokenizer')
    drop = lambda row: {k: v for k, v in row.items() if 'time' not in k}
    return [drop(row) for row in rows]

  def test_trains_on_a_folder_and_measures_both_splits(self):
    figures = self.read('complete.json')['figures']
    for split in ('train', 'test'):
      self.assertBetween(figures[f'{split}_error'], 1e-4, 0.3)
      self.assertBetween(figures[f'{split}_codes_used'], 1, 32)
    evaluated = [row for row in self.rows() if 'eval/error' in row]
    self.assertEqual([row['step'] for row in evaluated], [4, 8])
    self.assertEqual(evaluated[-1]['eval/error'], figures['test_error'])
    last = self.rows()[-1]
    self.assertGreater(last['adversarial_weight'], 0)

  def test_blurs_and_collapsed_codebooks_are_told(self):
    # After eight steps it is one, and says so.
    (blur,) = self.read('complete.json')['warnings']
    self.assertIn('reconstructions are blurred', blur)
    experiment = Experiment(self.config, self.workdir)
    splits = {'train': range(100), 'test': range(5)}
    warnings = functools.partial(tokenizer._warnings, experiment, splits)
    good = {
      'test_error': 1.0,
      'test_error_of_variance': 0.2,
      'train_codes_used': 0.2 * self.config.tokenizer.codebook_size,
    }
    self.assertEmpty(warnings(good))
    self.assertEmpty(warnings({'error': 1.0, 'error_of_variance': 0.9}))
    (collapsed,) = warnings({**good, 'train_codes_used': 3})
    self.assertIn('the codebook has collapsed: 3 of', collapsed)
    # Two pictures have no tokens for more codes.
    splits['train'] = range(1)
    used = 0.2 * experiment.num_tokens
    self.assertEmpty(warnings({**good, 'train_codes_used': used}))

  def test_draws_held_out_images_above_their_reconstructions(self):
    path = self.workdir / 'tokenizer' / 'reconstructions.png'
    pixels = np.asarray(Image.open(path).convert('RGB'), int)
    coloured = np.ptp(pixels, -1).max(1) > 30
    # Two rows of 16 pixels, three times as large.
    self.assertBetween(coloured.sum(), 80, 96)

  def test_goes_on_where_it_was_bit_for_bit(self):
    _, params = Experiment(self.config, self.workdir).network('tokenizer')
    rows = self.rows()
    directory = self.workdir / 'tokenizer'
    shutil.rmtree(directory / 'checkpoints/8')
    (directory / 'complete.json').unlink()
    tokenizer.run(Experiment(self.config, self.workdir))
    _, again = Experiment(self.config, self.workdir).network('tokenizer')
    jax.tree.map(np.testing.assert_array_equal, params, again)
    self.assertEqual(rows, self.rows())

  def test_a_converted_tokenizer_is_measured(self):
    workdir = self.workdir.with_name('converted')
    there = str(self.workdir / 'tokenizer')
    tokenizer.run(
      Experiment(self.load({'tokenizer.init_from': there}), workdir)
    )
    self.assertEqual(self.read('complete.json', workdir)['step'], 0)
    figures = lambda *where: self.read('complete.json', *where)['figures']
    self.assertEqual(figures(workdir), figures())
    names = [path.name for path in (workdir / 'tokenizer').iterdir()]
    self.assertCountEqual(names, ['complete.json', 'reconstructions.png'])

  @parameterized.parameters(
    (
      'tokenizer.adversarial.num_groups',
      3,
      'num_groups is 3; .*which is 8',
    ),
    ('data.image_size', 17, 'multiple of 2'),
    ('data.path', '', 'config.data.path is empty'),
  )
  def test_mistakes(self, name, value, message):
    with self.assertRaisesRegex(UserError, message):
      tokenizer.check_config(Experiment(self.load({name: value}), 'unused'))

  def test_captions_alone_are_nothing_to_measure_on(self):
    root = self.workdir.parent
    source = f'{ROOT / "configs/cc3m256.py"}:mini'
    config = config_lib.load(
      source,
      {
        'data.path': str(raw_files.cc3m_tsv(root / 'table').path),
        'data.validation_path': str(raw_files.cc3m_prompts(root / 'list').path),
      },
    )
    splits = tokenizer.splits_of(Experiment(config, self.workdir))
    self.assertEqual(set(splits), {'train'})
    # Six images, both ways round.
    self.assertLen(splits['train'], 12)

  def test_without_images_to_measure_on_it_does_not_begin(self):
    workdir = self.workdir.with_name('nothing')
    with self.assertRaisesRegex(UserError, 'data.held_out'):
      tokenizer.run(Experiment(self.load({'data.held_out': 0}), workdir))
    self.assertFalse((workdir / 'tokenizer').exists())


if __name__ == '__main__':
  absltest.main()

"""Stage `policy` on real images: classes and captions, tiny networks."""

import contextlib
import io
import pathlib
import shutil
from unittest import mock

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np

from adanat_jax.data.examples import ArrayExamples
from adanat_jax.data.images import to_unit
from adanat_jax.errors import UserError
from adanat_jax.experiment import (
  adversarial_reward,
  datasets,
  networks,
  policies,
  reward_network,
  rewards,
  texts,
)
from adanat_jax.experiment.experiment import Experiment
from adanat_jax.learning import policy as policy_lib
from adanat_jax.models import vit
from adanat_jax.models.discriminator import prepare_images
from adanat_jax.runtime import checkpoint_format, leaves, metric_writer
from adanat_jax.runtime.journal import read_complete
from adanat_jax.stages import policy
from support import compiling, configs, random_weights, raw_files, small_weights

TINY = {
  'policy.iterations': 3,
  'policy.save_every': 1,
  'policy.evaluate_every': 2,
  'policy.discriminator.updates': 1,
  'policy.discriminator.fresh_rollouts': False,
  'policy.ppo.learning_rate': 0.1,
  # Smaller still: compiling is what takes the time.
  'data.image_size': 16,
  'tokenizer.width_multipliers': (1, 1, 1),
  'nat.depth': 0,
  'judges.reward.image_size': 8,
  'judges.reward.patch_size': 4,
  'judges.reward.depth': 1,
  'judges.reward.hooks': (0,),
  'evaluate.network': 'pixels',
  'log_every': 1,
  'tensorboard': False,
}


def tokenize(config, captions, keys=()):
  """Letters as token ids; the end has the largest, as CLIP's has."""
  del config
  ids = np.zeros((len(captions), 77), np.int32)
  for row, caption in zip(ids, captions, strict=True):
    letters = [ord(letter) for letter in caption[:75]]
    row[: len(letters) + 2] = [49406, *letters, 49407]
  return ids


def save_networks(config, folder):
  """Random networks of a config's sizes, as converted weights."""
  tokenizer, nat = (
    networks.tokenizer_module(config),
    networks.nat_module(config),
  )
  image = jnp.zeros((1, config.data.image_size, config.data.image_size, 3))
  tokens = jnp.zeros((1, nat.num_tokens), jnp.int32)
  condition = jnp.zeros(1, jnp.int32)
  if nat.num_classes is None:
    condition = jnp.zeros((1, 77, config.text.width))
    config.text.init_from = small_weights.text(config, folder)
  params = lambda *inputs: random_weights.random_variables(*inputs)['params']
  config.tokenizer.init_from = small_weights.save(
    folder / 'tokenizer', params=params(tokenizer, image)
  )
  config.nat.init_from = small_weights.save(
    folder / 'nat', ema=params(nat, tokens, condition)
  )
  config.judges.reward.init_from = small_weights.reward(config, folder)


class StageTest(parameterized.TestCase):
  """The stage as it is run, from raw files to checkpoints."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.root = pathlib.Path(cls().create_tempdir('policy').full_path)
    # What goes on after a kill is the same program: it is compiled once.
    cls.enterClassContext(compiling.compiled_once(cls.root / 'cache'))
    found = raw_files.image_folder(cls.root / 'raw', per_class=6, corrupt=True)
    cls.classes = configs.load(
      'in256.py:mini',
      {
        **TINY,
        'policy.discriminator.mapping_layers': 1,
        'data.path': str(found.path),
        'data.held_out': 8,
        'data.max_corrupt_share': 0.5,
      },
    )
    save_networks(cls.classes, cls.root / 'classes')
    train, validation = (
      raw_files.coco(cls.root / 'coco', split) for split in ('train', 'val')
    )
    cls.captions = configs.load(
      'cc3m256.py:mini',
      {
        **TINY,
        'data.source': 'coco',
        'data.path': str(train.path),
        'data.annotations': str(train.annotations),
        'data.validation_path': str(validation.path),
        'data.validation_annotations': str(validation.annotations),
        'data.text_embeddings': 'compute',
        'policy.evaluate_every': 0,
        'policy.kinds': ('shared',),
        'policy.num_steps': (3,),
        'policy.drawn_num_steps': (2, 4),
        'policy.iterate': 'average',
        'policy.ema_decay': 0.9,
        'policy.dial': 'frechet',
        'policy.discriminator.groupings': 2,
        'policy.rollout_features': 'recompute',
        'policy.rollout_size': 8,
        'policy.discriminator.reconstruct_real': True,
      },
    )
    save_networks(cls.captions, cls.root / 'captions')

  def setUp(self):
    super().setUp()
    prompts = [f'a picture of number {i}' for i in range(40)]
    self.enter_context(mock.patch.object(texts, 'tokenize', tokenize))
    # Prepared sets have tests of their own.
    self.enter_context(
      mock.patch.object(
        datasets,
        '_prepared',
        lambda *_, **__: ArrayExamples({'ids': tokenize(None, prompts)}),
      )
    )

  def rows(self, directory):
    return [
      {k: v for k, v in row.items() if not k.startswith('time/')}
      for row in metric_writer.read_metrics(directory)
    ]

  def sums(self, directory, step, field=''):
    meta = checkpoint_format.read(directory / 'checkpoints' / str(step))
    return checkpoint_format.checksums(meta, field)

  def test_features_that_do_not_fit_are_computed_again(self):
    # 8 steps, 4,096 trajectories, 1,024 tokens of 768 numbers: 48 GiB in
    # bfloat16.
    def kept(source, gib, count, **changes):
      config = configs.load(
        source,
        {
          'nat.dtype': 'bfloat16',
          'policy.rollout_features': 'auto',
          **changes,
        },
      )
      memory = gib and gib * 2**30
      return policies.rollout_features(Experiment(config, ''), memory, count)

    self.assertEqual(kept('in512.py', None, 1), 'store')
    self.assertEqual(kept('in512.py', 95, 1), 'recompute')
    self.assertEqual(kept('in512.py', 96, 1), 'store')
    self.assertEqual(kept('in512.py', 16, 4), 'recompute')
    self.assertEqual(kept('in512.py', 16, 6), 'store')
    float32 = {'nat.dtype': 'float32'}
    self.assertEqual(kept('in512.py', 96, 1, **float32), 'recompute')
    named = {'policy.rollout_features': 'recompute'}
    self.assertEqual(kept('in512.py', 96, 1, **named), 'recompute')
    self.assertEqual(kept('in512_enat.py', 1, 1), 'store')

  def test_classes(self):
    config, workdir = self.classes, self.root / 'run-classes'
    policy.check_config(Experiment(config, 'unused'))
    policy.run(Experiment(config, workdir))
    # Published configs train the adaptive policy alone.
    (which,) = policies.trainings(Experiment(config, 'unused'))
    directory = workdir / 'policy' / which.name
    rows = self.rows(directory)
    self.assertLen(rows, 3)
    name = 'eval/frechet_pixels_16'
    self.assertEqual([name in row for row in rows], [False, True, True])
    for row in rows:
      for accuracy in ('train', 'held_out', 'generated'):
        self.assertBetween(row[f'accuracy_{accuracy}'], 0, 1)
    # Actor, critic and discriminator have learned.
    for field in ('params/actor', 'params/critic', 'adversary/params'):
      last = self.sums(directory, 3, field)
      same = last.items() & self.sums(directory, 2, field).items()
      self.assertLess(len(same), 0.2 * len(last), field)
    # What comes after takes the best.
    best = read_complete(directory)['best']
    step = min((2, 3), key=lambda step: (rows[step - 1][name], -step))
    self.assertEqual((best['step'], best['metric']), (step, name))
    found = {}
    for iterate in ('best', 'last'):
      config.policy.iterate = iterate
      found[iterate] = policies.load_agent(
        Experiment(config, workdir), which
      ).params
    for iterate, at in (('best', step), ('last', 3)):
      path = directory / 'checkpoints' / str(at)
      jax.tree.map(
        np.testing.assert_array_equal,
        found[iterate],
        checkpoint_format.read_state(path, field='params')[0],
      )
    config.policy.iterate = 'average'
    with self.assertRaisesRegex(UserError, "no field 'average'"):
      policies.load_agent(Experiment(config, workdir), which)
    config.policy.iterate = 'best'

  def test_goes_on_from_a_policy(self):
    """A policy of T = 2 begins one of T = 3: networks, optimizers, all."""
    source = self.root / 'source'
    workdir = self.root / 'run-classes'
    policy.run(Experiment(self.classes, workdir))
    (which,) = policies.trainings(Experiment(self.classes, 'unused'))
    shutil.copytree(workdir / 'policy' / which.name, source)
    config = self.classes.copy_and_resolve_references()
    config.policy.update(init_from=str(source), fine_tune=True)
    config.policy.num_steps = (3,)
    config.policy.update(evaluate_every=0, iterate='last')
    fit = self.enter_context(mock.patch.object(policy.fit, 'fit'))
    policy.run(Experiment(config, self.root / 'longer'))
    (which,) = policies.trainings(Experiment(config, 'unused'))
    self.assertEqual(which.num_steps, 3)
    given = fit.call_args.kwargs
    state = jax.jit(given['initial'])(given['frozen'])
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
      begun = given['begin'](state)
    self.assertIn('begun anew: nothing\n', said.getvalue())
    found = {x: leaf.checksum for x, leaf in leaves.examine(begun).items()}
    self.assertEqual(found, self.sums(source, 3))
    # Both optimizers count on: there were 5 epochs an iteration, and an update.
    counts = begun.opt_state[0].count, begun.adversary.opt_state[0].count
    self.assertEqual(jax.device_get(counts), (15, 3))

  def test_captions_resume_to_the_bit(self):
    config, workdir = self.captions, self.root / 'run-captions'
    policy.run(Experiment(config, workdir))
    (which,) = policies.trainings(Experiment(config, 'unused'))
    directory = workdir / 'policy' / which.name
    again = self.root / 'again' / 'policy' / which.name
    shutil.copytree(directory, again)
    (again / 'complete.json').unlink()
    shutil.rmtree(again / 'checkpoints' / '3')
    policy.run(Experiment(config, self.root / 'again'))
    self.assertEqual(self.sums(again, 3), self.sums(directory, 3))
    self.assertEqual(self.rows(again), self.rows(directory))
    self.assertNotEqual(self.sums(again, 2), self.sums(again, 3))
    self.assertIn('accuracy_train', self.rows(again)[0])
    # One policy: its T is drawn, each as often as the others.
    drawn = [row['num_steps'] for row in self.rows(again)]
    self.assertCountEqual(set(drawn[:2]), (2, 4))
    for row in self.rows(again):
      self.assertLen(row['mask_ratio'], row['num_steps'])
    # It serves all between, in a program that is told how many they are.
    agents = policies.agents(Experiment(config, self.root / 'again'))
    self.assertEqual(
      (which.name, *agents), ('adversarial-shared-T2to4-0', 2, 3, 4)
    )
    self.assertNotIn(5, agents)
    self.assertEqual(agents[3].num_steps, 3)
    self.assertEqual(agents[3].actor_critic.num_steps, 3)
    self.assertIs(agents[3].params, agents[2].params)
    # It has learned to read its dial, which stands at its own reward.
    self.assertEqual(float(agents[3].dial), 0)
    learned = agents[3].params['actor']['dial_fc']['kernel']
    self.assertGreater(float(jnp.abs(learned).max()), 0)
    for row in self.rows(again):
      self.assertTrue(np.isfinite(row['second_reward']))
    # What comes after takes the average; of the first two little is left.
    read = lambda step, field: checkpoint_format.read_state(
      again / 'checkpoints' / str(step), field=field
    )[0]
    jax.tree.map(
      lambda *x: np.testing.assert_allclose(
        x[0], x[1] / 4 + 3 * x[2] / 4, rtol=1e-5, atol=1e-7
      ),
      policies.load_agent(
        Experiment(config, self.root / 'again'), which
      ).params,
      read(2, 'average'),
      read(3, 'params'),
    )
    apart = self.sums(again, 3, 'average').items()
    same = apart & self.sums(again, 3, 'params').items()
    self.assertLess(len(same), 0.2 * len(apart))

  @parameterized.parameters(
    ('last', 'params'), ('best', 'params'), ('average', 'average')
  )
  def test_measures_what_is_used(self, iterate, field):
    config = self.classes.copy_and_resolve_references()
    config.policy.update(iterate=iterate, ema_decay=0.5)
    fit = self.enter_context(mock.patch.object(policy.fit, 'fit'))
    scorer = mock.Mock()
    self.enter_context(
      mock.patch.object(policy.scores, 'Scorer', lambda *_: scorer)
    )
    policy.train(
      Experiment(config, self.root / 'nothing'),
      policies.trainings(Experiment(config, 'unused'))[0],
    )
    state = policy_lib.PolicyState('params', None, average='average')
    fit.call_args.kwargs['evaluate'](state, 1)
    self.assertEqual(scorer.call_args.args[1].policy.params, field)
    self.assertEqual(fit.call_args.kwargs['keep_best'], iterate == 'best')
    # The best of an adversarial reward is that of the weakest discriminator.
    config.policy.update(evaluate_every=0, iterate='last')
    policy.train(
      Experiment(config, self.root / 'nothing'),
      policies.trainings(Experiment(config, 'unused'))[0],
    )
    self.assertIsNone(fit.call_args.kwargs['best_of'])

  def test_a_workdir_of_an_older_version(self):
    config = self.classes.copy_and_resolve_references()
    with config.unlocked():
      del config.policy.iterate, config.policy.ema_decay
    self.assertEqual(
      policies.iterate_field(Experiment(config, 'unused')), 'params'
    )

  def test_batches_are_a_function_of_the_step(self):
    config = self.captions.copy_and_resolve_references()
    config.policy.discriminator.fresh_rollouts = True
    size = config.policy.batch_size
    read = lambda: policy.make_batches(
      Experiment(config, self.root), 'policy/x', has_discriminator=True
    )
    batches = read()
    seen = {k: [part(step) for step in range(3)] for k, part in batches.items()}
    again = {k: part(2) for k, part in read().items()}
    jax.tree.map(
      np.testing.assert_array_equal, {k: x[2] for k, x in seen.items()}, again
    )
    self.assertEqual(seen['real'][0]['images'].shape, (1, 16, 16, 16, 3))
    self.assertEqual(seen['fresh'][0]['ids'].shape, (1, 16, 77))
    self.assertEqual(seen['rollouts'][0]['ids'].shape, (size, 77))
    # Every prompt comes once before one comes twice; updates have their own.
    ids = np.concatenate([batch['ids'] for batch in seen['rollouts']])[:40]
    self.assertLen({row.tobytes() for row in ids}, 40)
    fresh = np.concatenate([batch['ids'][0] for batch in seen['fresh']])
    self.assertFalse(np.array_equal(fresh[:40], ids))
    for part in batches.values():
      part.close()

  def test_discriminator_reads_captions(self):
    # The same images on both sides, but only real ones show what is said:
    # nothing else tells them apart.
    config = self.captions.copy_and_resolve_references()
    config.policy.discriminator.learning_rate = 0.02
    config.policy.discriminator.reconstruct_real = False
    text = Experiment(config, 'unused').network('text')
    spec = adversarial_reward.make_spec(Experiment(config, self.root), 1)
    random = np.random.default_rng(0)
    images = np.where(np.arange(16)[:, None, None, None] % 2, 0.9, 0.1)
    images = images + 0.05 * random.random((16, 16, 16, 3))
    shown = np.arange(16) % 2
    ids = tokenize(None, np.array(['dark', 'bright'])[shown])
    real = {'images': images.astype(np.float32)[None], 'ids': ids[None]}
    wrong = tokenize(None, np.array(['bright', 'dark'])[shown])
    wrong = texts.conditions(*text, {'ids': wrong})[1]

    @jax.jit
    def learn(frozen):
      model = spec.build(frozen)
      fakes = real['images'][0], wrong
      return jax.lax.scan(
        lambda state, key: model.learn(state, real, fakes, None, key),
        spec.initial(frozen, jax.random.key(0)),
        jax.random.split(jax.random.key(1), 60),
      )[1]

    metrics = learn(spec.frozen)
    loss = metrics['discriminator_loss']
    self.assertGreater(float(loss[0]), 1.8 * np.log(2))
    self.assertLess(float(loss[-1]), 1.2 * np.log(2))
    self.assertEqual(metrics['accuracy_train'][-1], 1)
    self.assertEqual(metrics['accuracy_generated'][-1], 1)

  def test_the_frechet_reward_compares_with_these_images(self):
    experiment = Experiment(self.classes, self.root)
    spec = rewards.REWARDS['frechet'].make(experiment, 1)
    examples = experiment.examples('train', 'images')
    rows = examples.take(np.arange(len(examples)))
    module, params = experiment.network('reward')
    images = reward_network.inputs(experiment, to_unit(rows['images']))
    found = module.apply({'params': params}, images).cls
    np.testing.assert_allclose(
      spec.frozen['mean'], found.mean(0), rtol=1e-3, atol=1e-5
    )

  @parameterized.parameters(
    ('classes', 'judges.reward.init_from', '', '--kind=dino'),
    ('captions', 'text.init_from', '', '--kind=clip_text'),
    ('classes', 'policy.rewards', ('pretrained',), 'trained here to tell'),
    ('classes', 'policy.dial', 'pretrained', 'trained here to tell'),
    ('captions', 'policy.kinds', ('shared', 'constant'), 'see the image'),
    (
      'captions',
      'policy.dial',
      'adversarial',
      "dial='adversarial' is not allowed",
    ),
    ('captions', 'policy.rewards', ('frechet',), 'from one reward to another'),
    ('captions', 'policy.ppo.shuffle_groups', 2, 'groups of 8 from 2 parts'),
    ('classes', 'policy.evaluate_every', 0, 'iterate=best needs'),
    ('classes', 'evaluate.network', 'inception', 'while the policy trains'),
    ('classes', 'policy.iterate', 'average', 'needs an average; set'),
    ('classes', 'policy.learned', ('mask_ratio',), 'residual, which is none'),
    (
      'classes',
      'policy.drawn_num_steps',
      (2, 4),
      'give config.policy.kinds=sh',
    ),
    ('captions', 'policy.num_steps', (2, 5), 'holds 5, and a shared policy'),
    ('classes', 'judges.reward.hooks', (0, 1), 'give blocks from 0 to 0'),
    ('classes', 'judges.reward.patch_size', 3, 'must divide the 8 pixels'),
    ('classes', 'judges.reward.width', 64, 'Give the sizes of that network'),
    ('classes', 'judges.reward.normalisation', 'centred', 'stay as they are'),
    ('classes', 'policy.discriminator.held_out', 12, 'multiple of 8'),
  )
  def test_refuses(self, name, field, value, words):
    config = getattr(self, name).copy_and_resolve_references()
    config.update_from_flattened_dict({field: value})
    with self.assertRaises(UserError) as caught:
      policy.check_config(Experiment(config, 'unused'))
    self.assertIn(words, str(caught.exception))
    self.assertNotIn('\n', str(caught.exception))

  def test_a_converted_policy_needs_no_reward(self):
    config = self.classes.copy_and_resolve_references()
    config.policy.init_from, config.judges.reward.init_from = 'somewhere', ''
    policy.check_config(Experiment(config, 'unused'))
    policy.run(Experiment(config, self.root / 'nothing'))
    self.assertFalse((self.root / 'nothing').exists())

  def test_more_held_out_images_than_there_are(self):
    config = self.classes.copy_and_resolve_references()
    config.policy.discriminator.held_out = 16
    with self.assertRaisesRegex(UserError, 'held_out is 16; there are only 8'):
      adversarial_reward.make_spec(Experiment(config, self.root), 1)


class RewardInputsTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.config = configs.load('in256.py:mini')
    random = np.random.default_rng(0)
    self.images = jnp.float32(random.random((8, 32, 32, 3)))
    mean, std = np.float32(vit.IMAGENET_MEAN), np.float32(vit.IMAGENET_STD)
    self.normalised = (np.asarray(self.images) - mean) / std
    self.inputs = jax.jit(
      lambda images, key: reward_network.inputs(
        Experiment(self.config, 'unused'), images, key
      )
    )

  def window_of(self, seen):
    """Top and left of the window of the images that was cut out, or None."""
    for top in range(9):
      for left in range(9):
        window = self.normalised[:, top : top + 24, left : left + 24]
        if np.allclose(seen, window, atol=1e-5):
          return top, left
    return None

  def test_half_of_the_batches_are_cropped(self):
    averaged = prepare_images(
      self.images, 24, vit.IMAGENET_MEAN, vit.IMAGENET_STD
    )
    windows = []
    for i in range(24):
      seen = self.inputs(self.images, jax.random.key(i))
      window = self.window_of(seen)
      if window is None:
        np.testing.assert_allclose(seen, averaged, atol=1e-5)
      windows.append(window)
    self.assertBetween(windows.count(None), 5, 19)
    self.assertGreater(len(set(windows)), 4)

  def test_crops_reach_all_of_a_wide_image(self):
    # The last column alone is red.
    wide = jnp.zeros((8, 24, 30, 3)).at[:, :, -1, 0].set(1.0)
    seen = [self.inputs(wide, jax.random.key(i)) for i in range(40)]
    rightmost = [np.asarray(x)[0, 0, -1, 0] for x in seen]
    # Averaged, it is a fifth of the last column at most.
    red = (1 - vit.IMAGENET_MEAN[0]) / vit.IMAGENET_STD[0]
    self.assertGreater(np.isclose(rightmost, red, atol=1e-4).sum(), 0)

  def test_without_a_key_or_larger_images_nothing_is_cropped(self):
    seen = reward_network.inputs(Experiment(self.config, 'unused'), self.images)
    self.assertIsNone(self.window_of(seen))
    small = self.images[:, :24, :24]
    np.testing.assert_allclose(
      reward_network.inputs(
        Experiment(self.config, 'unused'), small, jax.random.key(0)
      ),
      self.normalised[:, :24, :24],
      atol=1e-5,
    )

  def test_digits_are_centred(self):
    config = configs.load('digits.py')
    seen = reward_network.inputs(
      Experiment(config, 'unused'), self.images, jax.random.key(0)
    )
    np.testing.assert_array_equal(seen, 2 * self.images - 1)


if __name__ == '__main__':
  absltest.main()

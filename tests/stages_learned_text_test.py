"""Captions without CLIP: a text network that is trained with the NAT.

Pictures of coloured shapes, named by words, go through `prepare` and `nat` to
samples of free text and to a folder to share. That words are learned is seen
where tokens follow from them.
"""

import functools
import io
import itertools
import pathlib
from unittest import mock

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

import adanat_jax
from adanat_jax.data import byte_tokens, prepared
from adanat_jax.decoding import tables
from adanat_jax.errors import UserError
from adanat_jax.experiment import texts, workdir
from adanat_jax.experiment.experiment import Experiment
from adanat_jax.learning import contrast, masked_tokens
from adanat_jax.measuring import scores, text_match
from adanat_jax.models.captions import CaptionedDenoiser, CaptionTransformer
from adanat_jax.models.enat import ENAT
from adanat_jax.models.nat import NAT
from adanat_jax.runtime import checkpoint, files, journal
from adanat_jax.stages import (
  evaluate_published,
  export,
  judges,
  nat,
  prepare,
  report,
  sample,
)
from support import configs
from support.preparing import write_tokenizer

_COLOURS = {'red': (220, 30, 30), 'green': (20, 160, 60), 'blue': (30, 50, 230)}
_SHAPES = {'square': np.s_[2:14, 2:14], 'stripe': np.s_[6:10, :]}
_CAPTIONS = [*map(' '.join, itertools.product(_COLOURS, _SHAPES))]


def _picture(caption):
  """16 pixels of white paper with a shape, as a PNG file."""
  colour, shape = caption.split()
  pixels = np.full((16, 16, 3), 250, np.uint8)
  pixels[_SHAPES[shape]] = _COLOURS[colour]
  stream = io.BytesIO()
  Image.fromarray(pixels).save(stream, 'PNG')
  return stream.getvalue()


class BytesTest(absltest.TestCase):
  def test_words_have_rows(self):
    ids = byte_tokens.tokenize(['', 'A  cat!', 'a' * 18], 4).reshape(3, 4, -1)
    self.assertEqual(ids.shape, (3, 4, byte_tokens.ROW))
    expected = np.zeros((3, 4, byte_tokens.ROW), int)
    expected[:, 0, 0] = 1
    expected[1, 1, 0] = ord('a') + 2
    expected[1, 2, :3] = np.add([*b'cat'], 2)
    expected[1, 3, 0] = ord('!') + 2
    # A long word takes two rows.
    expected[2, 1:3] = ord('a') + 2
    expected[2, 2, 2:] = 0
    np.testing.assert_array_equal(ids, expected)

  def test_what_is_cut_and_what_are_words(self):
    self.assertFalse(byte_tokens.is_cut('a cat!', 4))
    self.assertTrue(byte_tokens.is_cut('a cat! b', 4))
    found = byte_tokens.words(['A Cafe\u0301, no. 3', 'a \u732b'])
    self.assertEqual(found, {'a', 'caf\xe9', 'no', '3', '\u732b'})
    # Vowel signs belong to their letters; Chinese has no spaces.
    hindi = '\u0939\u093f\u0928\u094d\u0926\u0940'
    found = byte_tokens.words([f'{hindi} {hindi}', '\u732b\u5728\u3002'])
    self.assertEqual(found, {hindi, '\u732b', '\u5728'})
    self.assertFalse(byte_tokens.is_cut(f'{hindi}!', 4))


class LearningTest(absltest.TestCase):
  def test_words_decide_tokens(self):
    """Each colour has a code at two places, each shape one at two others."""
    ids = jnp.asarray(byte_tokens.tokenize(['', *_CAPTIONS], 4))
    tokens = jnp.int32([[c, c, 3 + s, 6 + s] for c in range(3) for s in (0, 1)])
    sizes = dict(codebook_size=8, num_tokens=4, width=32, num_heads=2)
    sizes |= dict(text_width=32, dropout_rate=0.0)
    text = CaptionTransformer(
      32, 1, 2, 64, 4, byte_tokens.ROW, byte_tokens.VOCABULARY
    )
    optimizer = masked_tokens.make_optimizer(
      150, 5e-3, 10, 'cosine', 0.0, (0.9, 0.96)
    )

    def train(denoiser, key, num_steps, **recipe):
      module = CaptionedDenoiser(denoiser, text)
      step = masked_tokens.make_train_step(
        nat.make_network(module),
        optimizer,
        masked_tokens.Recipe(8, label_smoothing=0.0, ema_decay=0.9, **recipe),
        key=jax.random.key(1),
      )
      params = module.init(key, tokens, ids[1:])['params']
      state = masked_tokens.NatState(params, params, optimizer.init(params))
      batch = {'tokens': tokens, 'ids': ids[1:]}
      batch = {name: jnp.tile(x, (3, 1)) for name, x in batch.items()}

      def body(i, state):
        return step({'null': ids[0]}, state, batch, i)[0]

      return params, jax.lax.fori_loop(0, num_steps, body, state).ema

    denoiser = NAT(depth=0, **sizes)
    before, params = jax.jit(functools.partial(train, denoiser, num_steps=150))(
      jax.random.key(0)
    )
    apply = jax.jit(CaptionedDenoiser(denoiser, text).apply)
    logits = apply({'params': params}, np.full((7, 4), 8), ids)[1]
    np.testing.assert_array_equal(logits[1:].argmax(-1), tokens)
    # The empty caption is learned, too.
    start = before['text']['bytes'] - params['text']['bytes']
    self.assertGreater(np.abs(start[0, byte_tokens.START]).max(), 1e-3)
    # With a cache it is the same step.
    enat = ENAT(encoder_depth=1, decoder_depth=1, **sizes)
    jax.eval_shape(
      functools.partial(train, enat, num_steps=1, reuse_probability=0.5),
      jax.random.key(0),
    )


class StagesTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.root = root = pathlib.Path(cls().create_tempdir('words').full_path)
    (root / 'pictures').mkdir()
    for i, caption in enumerate(_CAPTIONS * 2):
      path = root / 'pictures' / f'{i:02d}.png'
      path.write_bytes(_picture(caption))
      more = ' on white, drawn by hand' if i == 0 else ''
      path.with_suffix('.txt').write_text(f'A {caption.title()}{more}\n')
    cls.config = configs.load(
      'image_folder.py:tiny',
      {
        'data.path': str(root / 'pictures'),
        'data.condition': 'text',
        'data.image_size': 16,
        'data.held_out': 3,
        'tokenizer.init_from': str(root / 'tokenizer'),
        'tokenizer.width_multipliers': (1, 1, 1),
        'nat.depth': 0,
        'nat.num_steps': 4,
        'nat.evaluate_every': 4,
        'nat.frechet_samples': 0,
        'judges.measure.num_steps': 1,
        'judges.measure.widths': (4, 8),
        'judges.reward.init_from': str(root / 'reward'),
        'sample.policy': 'maskgit',
        'sample.captions': ('red square', 'violet square'),
      },
    )
    write_tokenizer(root / 'tokenizer', cls.config)
    cls.experiment = Experiment(cls.config, root / 'run')
    with mock.patch('adanat_jax.runtime.processes.say') as said:
      judges.run(cls.experiment)
      prepare.run(cls.experiment)
      nat.run(cls.experiment)
    cls.said = '\n'.join(call.args[0] for call in said.mock_calls)

  def test_the_measuring_network_reads_captions(self):
    directory = self.root / 'run' / 'judges' / 'measure'
    self.assertIn('test_found', journal.read_complete(directory)['figures'])
    # Asked for by its name, it needs them.
    config = self.config.copy_and_resolve_references()
    config.judges.training = 'classes'
    with self.assertRaisesRegex(UserError, 'classes needs two classes or more'):
      judges.check_config(Experiment(config, self.root / 'no'))

  def test_images_are_matched_with_captions(self):
    conditions = scores.Conditions(self.experiment)
    chosen = conditions.of(4, 0)
    match = text_match.TextMatch(self.experiment, conditions, chosen)
    images = jax.random.uniform(jax.random.key(0), (4, 16, 16, 3))
    inputs = match.inputs(np.arange(4))
    found = jax.jit(match.measure)(match.params, images, inputs)
    # By hand: each image with each distinct caption.
    captions = conditions.captions(chosen)
    distinct = list(dict.fromkeys(captions))
    own = np.array([distinct.index(caption) for caption in captions])
    read, params = texts.judging_module(self.experiment), match.params['text']
    ids = jnp.asarray(texts.judged_ids([*distinct, 'another']))
    module, measure = self.experiment.network('measure')
    table = jax.jit(
      lambda: contrast.cosines(
        module.apply({'params': measure}, images)[1],
        read.apply({'params': params}, ids).pooled,
      )
    )()
    np.testing.assert_allclose(
      found['text_cosine_measure_4'], table[np.arange(4), own], atol=1e-5
    )
    np.testing.assert_array_equal(
      found['text_found_measure_4'], table[:, :-1].argmax(1) == own
    )
    # Each image has as many rivals, here one: to a caption that is not among
    # those compared the last is none.
    few = {**match.params, 'others': ids[jnp.array([0, -1])]}
    found = jax.jit(match.measure)(few, images, inputs)
    self.assertIn(1, own)
    rivals = np.where(own == 0, -1, 0)
    np.testing.assert_array_equal(
      found['text_found_measure_4'],
      table[np.arange(4), own] > table[np.arange(4), rivals],
    )
    alone = {**match.params, 'others': ids[:1]}
    found = jax.eval_shape(match.measure, alone, images, inputs)
    self.assertEqual([*found], ['text_cosine_measure_4'])

  def test_prepared(self):
    directory = self.root / 'run' / 'prepare'
    layout = prepared.read_manifest(directory)['layout']
    self.assertEqual(layout['text_length'], 8 * byte_tokens.ROW)
    self.assertEqual(layout['state_width'], 0)
    words = (directory / 'words.txt').read_text().split('\n')
    self.assertContainsSubset(['a', 'red', 'stripe'], words)
    self.assertIn('1 captions have more than 7 words', self.said)

  def test_both_networks_are_of_one_checkpoint(self):
    for name, part in (('nat', 'denoiser'), ('text', 'text')):
      _, params = self.experiment.network(name)
      saved = checkpoint.load_params(
        self.root / 'run' / 'nat', f'ema/{part}', params
      )
      jax.tree.map(np.testing.assert_array_equal, params, saved)
    # Another workdir takes them as they are.
    other = self.config.copy_and_resolve_references()
    other.nat.init_from = str(self.root / 'run' / 'nat')
    _, params = Experiment(other, self.root / 'other').network('text')
    jax.tree.map(
      np.testing.assert_array_equal, params, self.experiment.network('text')[1]
    )

  def test_free_text_in_a_folder_to_share(self):
    generator = self.experiment.generator()
    generator.save(self.root / 'shared')
    copy = adanat_jax.load(self.root / 'shared')
    asked = ['a red square', 'Blue Stripe']
    options = dict(num_steps=2, policy='maskgit')
    with mock.patch('adanat_jax.runtime.processes.say') as said:
      expected = generator.sample(asked, **options)
      samples = copy.sample(asked, **options)
    said.assert_not_called()
    np.testing.assert_array_equal(samples.tokens, expected.tokens)
    with mock.patch('adanat_jax.runtime.processes.say') as said:
      copy.sample(['Ultra violet, red SQUARE'], **options)
    self.assertIn("has 'ultra', 'violet'", said.mock_calls[0].args[0])
    with mock.patch('adanat_jax.runtime.processes.say') as said:
      sample.run(self.experiment)
    self.assertIn("has 'violet'", said.mock_calls[0].args[0])
    (self.root / 'shared' / 'words.txt').write_text('violet')
    with self.assertRaisesRegex(UserError, 'words.txt: truncated or changed'):
      adanat_jax.load(self.root / 'shared')

  def test_fields_that_do_not_go_together(self):
    config = self.config.copy_and_resolve_references()
    config.text.init_from = str(self.root / 'tokenizer')
    with self.assertRaisesRegex(UserError, 'text.network=clip.*nat.init_from'):
      nat.check_config(Experiment(config, self.root / 'no'))
    config.text.init_from = ''
    config.text.num_heads = 3
    with self.assertRaisesRegex(UserError, 'text.num_heads is 3'):
      prepare.check_config(Experiment(config, self.root / 'no'))
    config = self.config.copy_and_resolve_references()
    config.sample.captions = ()
    with self.assertRaisesRegex(UserError, 'sample.captions is empty'):
      sample.check_config(Experiment(config, self.root / 'no'))
    config.evaluate.protocol = 'published'
    with self.assertRaisesRegex(UserError, 'evaluate/results.md'):
      report.check_config(Experiment(config, self.root / 'no'))

  def test_a_report(self):
    config = self.config.copy_and_resolve_references()
    config.policy.num_steps = (2,)
    evaluate = config.evaluate
    evaluate.update(policies=('residual',), num_samples=10, precision_recall=0)
    evaluate.update(density_coverage=0, kernel_distance=0)
    directory = self.root / 'run'
    workdir.write_config(directory, config)
    experiment = Experiment(config, directory)
    with mock.patch('adanat_jax.runtime.processes.say'):
      evaluate_published.run(experiment)
      report.run(experiment)
    (row,) = journal.read_results(directory / 'evaluate')['rows']
    self.assertEqual((row['num_steps'], row['passes']), (2, 4))
    self.assertBetween(row['figures']['text_found_measure_10'], 0, 1)
    text = (directory / 'report' / 'report.md').read_text()
    self.assertIn('text_found_measure_10', text)
    with Image.open(directory / 'report' / 'samples-4-passes.png') as sheet:
      self.assertEqual(sheet.mode, 'RGB')
    self.assertIn('- text match:', text)
    # Whoever finds the generator reads what was measured.
    export.run(experiment)
    card = (directory / 'export' / 'README.md').read_text()
    self.assertIn('| 2 |', card.partition('text_found_measure_10')[2])
    page = (directory / 'report' / 'page.html').read_text()
    self.assertIn(scores.Conditions(experiment).captions(np.arange(1))[0], page)

  def test_equal_passes(self):
    config = self.config.copy_and_resolve_references()
    config.policy.num_steps = (2, 4)
    config.evaluate.policies = ('maskgit',)
    evaluation = mock.Mock(experiment=Experiment(config, self.root / 'run'))
    found = evaluate_published.schedules(evaluation)
    # What is not guided at twice the steps, too.
    self.assertCountEqual(
      [(schedule.name, schedule.num_steps) for schedule in found],
      [*(('maskgit', n) for n in (2, 4, 8)), ('residual', 2), ('residual', 4)],
    )
    # A table in a file has no other number of steps.
    path = self.root / 'table.json'
    files.write_json(path, {**tables.hand_made(4).by_name(), 'guided': False})
    config.policy.num_steps = (4,)
    config.evaluate.policies = (str(path),)
    evaluate_published.check_config(evaluation.experiment)
    found = evaluate_published.schedules(evaluation)
    self.assertEqual([schedule.num_steps for schedule in found], [4, 4])
    config.policy.num_steps = (2, 4)
    config.evaluate.policies = ('maskgit',)
    config.evaluate.protocol = 'published'
    self.assertLen(evaluate_published.schedules(evaluation), 2)


if __name__ == '__main__':
  absltest.main()

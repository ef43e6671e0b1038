"""Captions by the vectors that somebody's encoder made of them.

Pictures of coloured shapes go through `prepare` and `nat` with vectors from a
file, to samples of its captions, of other vectors, and to a folder to share.
"""

import pathlib
from unittest import mock

from absl.testing import absltest
import numpy as np
from PIL import Image
import safetensors.numpy

import adanat_jax
from adanat_jax.data import prepared
from adanat_jax.errors import UserError
from adanat_jax.experiment import adversarial_reward, texts, workdir
from adanat_jax.experiment.experiment import Experiment
from adanat_jax.stages import nat, policy, prepare, sample
from support import configs
from support.preparing import write_tokenizer

_COLOURS = {'red': (220, 30, 30), 'green': (20, 160, 60), 'blue': (30, 50, 230)}
_CAPTIONS = [f'a {colour} square' for colour in _COLOURS]
_RANDOM = np.random.default_rng(0)
_VECTORS = _RANDOM.normal(size=(3, 6)).astype(np.float32)
_OPTIONS = dict(num_steps=2, policy='maskgit')


class GivenTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.root = root = pathlib.Path(cls().create_tempdir('given').full_path)
    (root / 'pictures').mkdir()
    for i in range(12):
      pixels = np.full((16, 16, 3), 250, np.uint8)
      pixels[2:14, 2:14] = list(_COLOURS.values())[i % 3]
      path = root / 'pictures' / f'{i:02d}.png'
      Image.fromarray(pixels).save(path)
      path.with_suffix('.txt').write_text(_CAPTIONS[i % 3])
    np.savez(root / 'vectors.npz', captions=_CAPTIONS, vectors=_VECTORS)
    cls.config = configs.load(
      'image_folder.py:tiny',
      {
        'data.path': str(root / 'pictures'),
        'data.condition': 'text',
        'data.image_size': 16,
        'data.held_out': 3,
        'text.network': 'given',
        'text.vectors': str(root / 'vectors.npz'),
        'tokenizer.init_from': str(root / 'tokenizer'),
        'tokenizer.width_multipliers': (1, 1, 1),
        'nat.depth': 0,
        'nat.num_steps': 2,
        'nat.evaluate_every': 2,
        'nat.frechet_samples': 0,
        'sample.policy': 'maskgit',
        'sample.captions': ('a red square',),
      },
    )
    write_tokenizer(root / 'tokenizer', cls.config)
    counted = workdir.counted(Experiment(cls.config, root / 'run'))
    assert counted == {'text.width': 6, 'text.num_positions': 1}
    cls.config.update_from_flattened_dict(counted)
    workdir.claim(root / 'run', cls.config, {})
    cls.experiment = Experiment(cls.config, root / 'run')
    prepare.run(cls.experiment)
    nat.run(cls.experiment)

  def other(self, **changes):
    config = self.config.copy_and_resolve_references()
    given = {name.replace('__', '.'): x for name, x in changes.items()}
    config.update_from_flattened_dict(given)
    return Experiment(config, self.root / 'run')

  def test_prepared_by_the_rows_of_a_table(self):
    directory = self.root / 'run' / 'prepare'
    found = prepared.PreparedExamples(directory, 'train')
    self.assertEqual(found.layout.text_length, 1)
    self.assertEqual(found.layout.state_width, 0)
    index = np.arange(len(found))
    places = [_CAPTIONS.index(text) for text in found.captions(index)]
    np.testing.assert_array_equal(
      found.take(index)['ids'][:, 0], np.add(places, 1)
    )

  def test_what_the_networks_read(self):
    module, params = self.experiment.network('text')
    ids = texts.tokenize(self.experiment, ['', _CAPTIONS[1]])
    states, pooled = texts.conditions(module, params, {'ids': ids})
    scale = np.sqrt(np.square(_VECTORS[1]).mean())
    expected = np.stack([np.zeros(6), _VECTORS[1] / scale])
    np.testing.assert_allclose(states[:, 0], expected, rtol=1e-6)
    np.testing.assert_allclose(pooled, expected, rtol=1e-6)
    null = texts.null_states(self.experiment)
    np.testing.assert_array_equal(null, np.zeros((1, 6)))
    # A discriminator reads the same.
    real = adversarial_reward.real_examples(self.experiment, 'train')
    self.assertEqual(real.take(np.arange(2))['ids'].shape, (2, 1))
    policy.check_config(self.experiment)

  def test_captions_and_vectors_in_a_folder_to_share(self):
    generator = adanat_jax.load(self.root / 'run')
    generator.save(self.root / 'shared')
    copy = adanat_jax.load(self.root / 'shared')
    tokens = generator.sample(_CAPTIONS, **_OPTIONS).tokens
    for one in (generator, copy):
      # By the captions of the file, by vectors of any length, by sequences.
      for labels in (_CAPTIONS, 3 * _VECTORS, _VECTORS[:, None]):
        found = one.sample(labels, **_OPTIONS).tokens
        np.testing.assert_array_equal(found, tokens)
      with self.assertRaisesRegex(
        UserError,
        "no vector for 'a violet square'; there are 3 captions, such as 'a red"
        r" square'.*floats \[B, 6\]",
      ):
        one.sample(['a violet square'], **_OPTIONS)
      with self.assertRaisesRegex(UserError, r'float32\[3, 5\]; give captions'):
        one.sample(_VECTORS[:, :5], **_OPTIONS)
      with self.assertRaisesRegex(UserError, 'not finite'):
        one.sample(np.nan * _VECTORS, **_OPTIONS)
    file = self.root / 'shared' / 'captions.json'
    file.write_text(file.read_text().replace('red', 'violet'))
    with self.assertRaisesRegex(UserError, 'captions.json: truncated or chang'):
      adanat_jax.load(self.root / 'shared')

  def test_other_files_for_samples_alone(self):
    more = {
      'a violet square': _VECTORS[0],
      **dict(zip(_CAPTIONS, _VECTORS, strict=True)),
    }
    path = self.root / 'more.safetensors'
    safetensors.numpy.save_file(more, path)
    other = self.other(text__vectors=str(path))
    with self.assertRaisesRegex(UserError, 'text.vectors is .* there and'):
      other.examples('train')
    found = other.generator().sample(['a violet square'], **_OPTIONS)
    expected = self.experiment.generator().sample([_CAPTIONS[0]], **_OPTIONS)
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    # Without the file the copy beside the tokens serves.
    gone = self.other(text__vectors=str(self.root / 'gone.npz'))
    with mock.patch('adanat_jax.runtime.processes.say') as said:
      gone.examples('train')
      sample.run(gone)
    lines = [call.args[0] for call in said.mock_calls]
    (line,) = (line for line in lines if 'gone.npz is not there' in line)
    self.assertIn('prepare/vectors serves', line)
    self.other(text__vectors='').examples('train')
    # An encoder is known by captions that both files have.
    same, other = self.root / 'same.npz', self.root / 'other.npz'
    halves = _VECTORS.astype(np.float16)
    np.savez(same, captions=[*_CAPTIONS[:2], 'x'], vectors=halves)
    self.assertIn(
      'x', texts.vectors(self.other(text__vectors=str(same))).places
    )
    for captions, message in (
      (
        _CAPTIONS,
        "'a red square' has another vector than it has in .*/vectors",
      ),
      (['x', 'y', 'z'], 'no caption of those in .*leave text.vectors out'),
    ):
      np.savez(other, captions=captions, vectors=_VECTORS[::-1])
      with self.assertRaisesRegex(UserError, message):
        texts.vectors(self.other(text__vectors=str(other)))
    wide = self.root / 'wide.npz'
    np.savez(wide, captions=_CAPTIONS, vectors=np.ones((3, 7)))
    with self.assertRaisesRegex(UserError, 'vectors of 7 numbers.* 1 of 6'):
      texts.vectors(self.other(text__vectors=str(wide)))

  def test_a_workdir_keeps_its_vectors(self):
    path = self.root / 'vectors.npz'
    before = path.read_bytes()
    self.addCleanup(path.write_bytes, before)
    kept = texts.vectors(self.experiment).table
    for vectors in (_VECTORS[::-1], np.ones((3, 7))):
      np.savez(path, captions=_CAPTIONS, vectors=vectors)
      loaded = Experiment.of_workdir(self.root / 'run')
      np.testing.assert_array_equal(texts.vectors(loaded).table, kept)

  def test_the_copy_is_what_was_prepared(self):
    new = Experiment(self.config, self.root / 'changed')
    copy = self.root / 'changed' / 'prepare' / 'vectors'
    copy.parent.mkdir(parents=True)
    with self.assertRaisesRegex(UserError, 'changed while its captions were'):
      texts.keep_vectors(new, 'another')
    self.assertFalse(copy.exists())
    texts.keep_vectors(new, texts.vectors(new).digest())
    self.assertTrue(copy.exists())

  def test_captions_that_only_prepare_reads(self):
    source = mock.Mock(captions=None)
    new = Experiment(self.config, self.root / 'tars')
    with (
      mock.patch.object(new, 'raw_source', return_value=source),
      mock.patch('adanat_jax.runtime.processes.say') as said,
    ):
      self.assertEqual([*texts.problems_of_captions(new)], [])
    self.assertIn('only while stage prepare reads', said.mock_calls[0].args[0])

  def test_mistakes_before_anything_is_trained(self):
    few = self.root / 'few.npz'
    np.savez(few, captions=_CAPTIONS[:2], vectors=_VECTORS[:2])
    cases = {
      '': 'text.vectors is empty; text.network=given needs',
      str(self.root / 'none.npz'): 'none.npz: No such file',
      str(self.root / 'pictures' / '00.png'): '00.png: it is a PNG picture',
      str(few): "no vector for 4 of 12 captions, such as 'a blue square'; it"
      " has 2, such as 'a red square', 'a green square'",
    }
    for path, message in cases.items():
      new = Experiment(self.other(text__vectors=path).config, self.root / 'new')
      with self.assertRaisesRegex(UserError, message):
        prepare.check_config(new)
    given = self.other(text__init_from=str(self.root / 'tokenizer'))
    with self.assertRaisesRegex(UserError, 'given by config.text.vectors'):
      nat.check_config(given)


class WorkdirTest(absltest.TestCase):
  def test_the_workdir_keeps_the_sizes(self):
    root = pathlib.Path(self.create_tempdir().full_path)
    np.savez(root / 'v.npz', captions=['a', 'b'], vectors=np.ones((2, 3, 5)))
    config = configs.load(
      'image_folder.py:tiny',
      {
        'data.condition': 'text',
        'text.network': 'given',
        'text.vectors': str(root / 'v.npz'),
      },
    )
    experiment = Experiment(config, root / 'run')
    counted = workdir.counted(experiment)
    self.assertEqual(counted, {'text.width': 5, 'text.num_positions': 3})
    config.update_from_flattened_dict(counted)
    workdir.claim(root / 'run', config, {})
    (root / 'v.npz').unlink()
    config.text.width = 32
    self.assertEqual(workdir.counted(experiment), counted)


if __name__ == '__main__':
  absltest.main()

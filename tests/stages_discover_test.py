"""Mode discover, from pictures and words to the table; what it refuses."""

import contextlib
import io
import json
import pathlib
from unittest import mock

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from adanat_jax import main
from adanat_jax.errors import UserError
from adanat_jax.experiment import networks
from adanat_jax.experiment.experiment import Experiment
from adanat_jax.models import clip
from adanat_jax.report import discovery as report
from adanat_jax.runtime import files
from adanat_jax.stages import discover, discover_features, judges
from support import configs, preparing, random_weights, small_weights

_CLASSES = {
  'fruit': ((220, 30, 30), 'sweet ripe fruit'),
  'boat': ((30, 60, 220), 'boat on water'),
  'tree': ((20, 160, 60), 'tall green tree'),
  'sun': ((250, 200, 40), 'bright sun sky'),
}
_ITEMS = 'one two three four five six'.split()


def _write(root):
  """Four classes of six items; each item has two pictures and one text."""
  rows = []
  for number, (name, (colour, words)) in enumerate(_CLASSES.items()):
    for item, word in enumerate(_ITEMS):
      for copy in (0, 1):
        path = root / name / f'{item}-{copy}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng([number, item, copy])
        pixels = noise.integers(-25, 25, (16, 16, 3)) + colour
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
        file_name = path.relative_to(root).as_posix()
        rows.append({'file_name': file_name, 'text': f'{words} {word}'})
  return rows


class DiscoverTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.create_tempdir().full_path)
    self.rows = _write(self.root / 'pictures')
    self.config = configs.load(
      'emoji_gcd.py:tiny',
      {
        'data.path': str(self.root / 'pictures'),
        'data.label_column': '',
        'data.num_classes': 4,
        'discover.least_items': 1,
        'tensorboard': False,
      },
    )
    self.experiment = Experiment(self.config, self.root / 'run')

  def write_table(self):
    lines = map(json.dumps, self.rows)
    (self.root / 'pictures' / 'metadata.jsonl').write_text('\n'.join(lines))

  def run_stage(self):
    with contextlib.redirect_stdout(io.StringIO()) as said:
      discover.run(Experiment(self.config, self.root / 'run'))
    return said.getvalue()

  def test_a_killed_run_goes_on_and_the_table_says_all(self):
    self.write_table()
    section = self.config.discover
    section.update(num_epochs=30, most_classes=6)
    section.methods = (
      *('kmeans_image', 'semi_kmeans_text', 'multimodal', 'late_fusion'),
    )
    module = networks.measuring_module(self.config)
    params = random_weights.random_variables(
      module, jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
    )['params']
    small_weights.save(
      self.root / 'run' / 'judges/measure',
      params=jax.tree.map(jnp.asarray, params),
    )
    figures = discover._Study.figures
    probabilities = discover._Study._probabilities
    done = []

    def trained(study, name):
      if name == 'multimodal':
        return probabilities(study, name)
      # Each of two models sees through one modality: new classes have other
      # numbers in the other one.
      order = [0, 1, 3, 2] if name == 'simgcd_text' else [0, 1, 2, 3]
      return np.eye(4)[study._split.targets][:, order]

    def until(study, name):
      if name == 'multimodal' and 'multimodal' not in done:
        done.append(name)
        raise KeyboardInterrupt
      done.append(name)
      return figures(study, name)

    with (
      mock.patch.object(discover._Study, 'figures', until),
      mock.patch.object(discover._Study, '_probabilities', trained),
    ):
      with self.assertRaises(KeyboardInterrupt):
        self.run_stage()
      said = self.run_stage()
    # The second run did what was missing.
    first = section.methods[:3]
    self.assertEqual(done, [*first, 'multimodal', 'late_fusion'])
    directory = self.root / 'run' / 'discover'
    results = files.read_json(directory / 'results.json')
    self.assertEqual((results['pairs'], results['items']), (48, 24))
    self.assertEqual((results['classes'], results['known']), (4, 2))
    self.assertBetween(results['estimates'][0], 2, 6)
    rows = {row['method']: row for row in results['rows']}
    # Each class has words of its own.
    self.assertEqual(rows['semi_kmeans_text']['all'], 1.0)
    self.assertGreater(rows['multimodal']['all'], 0.6)
    self.assertEqual(rows['late_fusion']['all'], 1.0)
    for row in rows.values():
      self.assertBetween(row['new'], 0.25, 1.0)
    self.assertIn('| semi-supervised k-means, texts | 100.0 | 100.0 |', said)
    self.assertIn('![clusters', (directory / 'discovery.md').read_text())
    for cluster in results['clusters']:
      self.assertIn(cluster['name'], _CLASSES)
    with Image.open(directory / 'clusters.png') as picture:
      self.assertGreater(picture.width, 300)
    # K may be estimated later, and up to another number.
    section.methods = ('multimodal_estimated', *first)
    names = rows['multimodal'].keys() - {'method', 'split', 'seed'}
    same = dict.fromkeys(names, 0.5)
    with mock.patch.object(discover._Study, 'figures', lambda *_: same):
      for most in (3, 2):
        section.most_classes = most
        self.run_stage()
    lines = (directory / 'ledger.jsonl').read_text().splitlines()
    names = [json.loads(line)['name'] for line in lines]
    estimated = [f'split0/seed0/multimodal_estimated-{i}' for i in (3, 2)]
    self.assertContainsSubset(estimated, names)
    results = files.read_json(directory / 'results.json')
    self.assertEqual(results['estimates'], [2])
    self.assertEqual(results['rows'][3]['all'], rows['multimodal']['all'])
    # What a kill, or a disk, has left of the features.
    features = directory / 'image.npz'
    features.write_bytes(features.read_bytes()[:-100])
    with self.assertRaisesRegex(UserError, 'image.npz: damaged .*delete it'):
      self.run_stage()
    # Another text is another list, whose features are not these.
    self.rows[0]['text'] = 'changed'
    self.write_table()
    with self.assertRaisesRegex(UserError, 'was begun with other pairs'):
      self.run_stage()
    # Other settings are another discovery.
    section.cross_weight = 0.7
    with self.assertRaisesRegex(UserError, 'with config.discover.cross_weight'):
      self.run_stage()

  def test_no_training_sees_which_classes_share_a_text(self):
    for row in self.rows:
      if row['file_name'].startswith(('fruit/0', 'boat/0')):
        row['text'] = 'round thing'
    self.write_table()
    pairs = discover_features.list_pairs(self.experiment)
    numbers = pairs.text_numbers
    self.assertLen({*pairs.items}, 24)
    self.assertLen({*numbers}, 23)
    shared = [text == ('round thing',) for text in pairs.texts]
    self.assertEqual(sum(shared), 4)
    self.assertLen({*numbers[shared]}, 1)
    features = dict.fromkeys(('image', 'text'), np.zeros((48, 3, 2)))
    study = discover._Study(self.experiment, pairs, features, 0, 0, mock.Mock())
    with mock.patch.object(discover.fit, 'fit', side_effect=ZeroDivisionError):
      with self.assertRaises(ZeroDivisionError):
        study._train('multimodal')
      frozen = discover.fit.fit.call_args.kwargs['frozen']
    np.testing.assert_array_equal(frozen['items'], numbers)
    # They swap their text together.
    self.assertLen({*study._permuted[shared]}, 1)

  def assert_refused(self, message):
    with self.assertRaises(UserError) as caught:
      discover.check_config(self.experiment)
    (problem,) = caught.exception.problems
    self.assertIn(message, problem)
    self.assertNotIn('\n', problem)

  def test_an_item_without_a_text(self):
    self.rows[3]['text'] = ' '
    self.write_table()
    self.assert_refused('line 4: fruit/1-1.png has no text')

  def test_a_class_without_enough_items(self):
    self.rows = [
      row
      for row in self.rows
      if 'sun' not in row['file_name'] or '/0-' in row['file_name']
    ]
    self.write_table()
    self.assert_refused("the class 'sun' of config.data.path has one item")
    self.config.discover.least_items = 2
    discover.check_config(Experiment(self.config, self.root / 'run'))
    self.config.discover.least_items = 7
    self.assert_refused('no class has so many items; the largest of 4 has 6')

  @parameterized.parameters(
    ({'num_classes': 1, 'num_known': 2}, 'num_classes is 1, fewer than the 2'),
    ({'num_known': 4}, 'num_known is 4; give 1 to 3'),
    ({'methods': ('multimodal_estimated',)}, 'most_classes is 0; give'),
    ({'text.network': 'vectors'}, 'discover.text.vectors is empty'),
    ({'text.network': 'vectors', 'text.vectors': 'no.npz'}, 'No such file'),
    ({'image.network': 'clip'}, 'evaluate.clip.image.init_from is empty'),
  )
  def test_fields_that_do_not_fit(self, changes, message):
    self.write_table()
    self.config.update_from_flattened_dict(
      {f'discover.{name}': value for name, value in changes.items()}
    )
    self.assert_refused(message)

  @parameterized.parameters('auto', 'classes')
  def test_the_encoder_must_not_see_classes(self, training):
    self.write_table()
    self.config.judges.training = training
    self.assert_refused(f'config.judges.training={training} would show')
    # Where no encoder is trained it does not matter.
    self.config.discover.image.network = 'clip'
    self.config.evaluate.clip.image.init_from = str(self.root)
    discover.check_config(self.experiment)

  def test_some_pairs_without_a_class(self):
    """Unlabelled ones here; to a NAT they would be the null condition."""
    for row in self.rows:
      row['label'] = row['file_name'].partition('/')[0]
    self.rows[5]['label'] = None
    self.write_table()
    pairs = discover_features.list_pairs(self.experiment)
    self.assertEqual(pairs.labels.tolist().count(-1), 1)
    self.config.mode = 'nat'
    with self.assertRaisesRegex(UserError, '1 of 48 images .* fruit/2-1.png'):
      self.experiment.raw_source('train')

  def test_only_pairs(self):
    self.config.data.source = 'image_folder'
    self.assert_refused('is not allowed in mode discover: give pairs')

  def test_what_is_trained_before(self):
    self.assertEqual(main._names_of_stages(self.config), ('judges', 'discover'))
    self.assertEqual(judges.trained(self.experiment), ('measure',))
    self.config.discover.image.network = 'clip'
    self.assertEqual(judges.trained(self.experiment), ())
    self.config.discover.image.network = 'reward'
    self.assertEqual(judges.trained(self.experiment), ('reward',))


class EncodersTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.create_tempdir().full_path)
    self.config = configs.load('food101_gcd.py')

  def test_clips_towers(self):
    towers = (
      clip.CLIPText(8, 1, 2, 16, 4, 'gelu', 49408, 77),
      clip.CLIPImage(16, 8, 8, 1, 2, 16, 4, 'gelu'),
    )
    self.config.evaluate.clip.tower = 'ViT-B/32'
    self.config.discover.views = 1
    for name, tower, shape in (
      ('text', towers[0], jax.ShapeDtypeStruct((1, 77), jnp.int32)),
      ('image', towers[1], jnp.zeros((1, 16, 16, 3))),
    ):
      self.config.evaluate.clip[name].init_from = small_weights.save(
        self.root / name,
        params=random_weights.random_variables(tower, shape)['params'],
      )
    experiment = Experiment(self.config, self.root / 'run')
    tokenize = lambda texts, num_positions, vocabulary: preparing.tokenize(
      None, texts
    )
    with (
      mock.patch.dict(clip.TOWERS, {'ViT-B/32': towers}),
      mock.patch.object(discover_features.clip_tokens, 'tokenize', tokenize),
    ):
      encode, params = discover_features._picture_encoder(experiment)
      texts = [('a pie',), ('a pie', 'a cake'), ('a pie',)]
      found = discover_features._text_features(experiment, texts)
    images = jnp.zeros((5, 32, 32, 3))
    self.assertEqual(jax.eval_shape(encode, params, images).shape, (5, 4))
    self.assertEqual(found.shape, (3, 2, 4))
    np.testing.assert_allclose(found[0, 0], found[2, 0], rtol=1e-5)
    self.assertGreater(np.abs(found[0, 0] - found[1, 0]).max(), 1e-3)

  def test_dino(self):
    self.config.discover.image.network = 'reward'
    self.config.judges.reward.update(width=8, depth=1, num_heads=2, hooks=(0,))
    directory = small_weights.reward(self.config, self.root)
    self.config.judges.reward.init_from = directory
    experiment = Experiment(self.config, self.root / 'run')
    self.assertEqual(judges.trained(experiment), ())
    encode, params = discover_features._picture_encoder(experiment)
    images = jnp.zeros((5, 224, 224, 3))
    self.assertEqual(jax.eval_shape(encode, params, images).shape, (5, 8))

  def test_given_vectors(self):
    path = self.root / 'vectors.npz'
    table = np.float32([[1, 0], [0, 1], [3, 4]])
    np.savez(path, captions=[*'abc'], vectors=table)
    texts = [('a', 'b'), ('c',)]
    found = discover_features.given_vectors(str(path), texts)
    reduced = discover_features._reduced(found, 0)
    # The mean first, then each text; a single one comes again.
    root = np.sqrt(0.5)
    np.testing.assert_allclose(
      reduced, [[[root, root], [1, 0], [0, 1]], [[0.6, 0.8]] * 3], rtol=1e-6
    )
    with self.assertRaisesRegex(UserError, "no vector for 1 texts.* as 'd'"):
      discover_features.given_vectors(str(path), [('a', 'd')])
    np.savez(path, captions=[*'abc'], vectors=table * np.nan)
    with self.assertRaisesRegex(
      UserError, "discover.text.vectors=.*vector of 'a' is not finite"
    ):
      discover_features.given_vectors(str(path), texts)

  def test_principal_components_keep_what_differs(self):
    random = np.random.default_rng(0).normal(size=(40, 3))
    plain = random * [5.0, 1.0, 0.01] + 7
    views = np.stack([plain, plain + 0.1], 1).astype(np.float32)
    found = discover_features._reduced(views, 2)
    self.assertEqual(found.shape, (40, 2, 2))
    centred = (plain - plain.mean(0))[:, :2]
    lengths = np.linalg.norm(centred, axis=1, keepdims=True)
    cosines = (centred / lengths) @ (centred / lengths).T
    np.testing.assert_allclose(found[:, 0] @ found[:, 0].T, cosines, atol=0.2)


class ReportTest(absltest.TestCase):
  def test_differences_are_of_splits(self):
    """Two splits, two seeds: +2 and +4 points are 3 with an error of 1."""
    rows = []
    for name, values in (
      ('multimodal', [0.5, 0.6, 0.7, 0.7]),
      ('late_fusion', [0.5, 0.56, 0.66, 0.66]),
      ('simgcd_both', [0.6, 0.7, 0.8, 0.8]),
    ):
      for i, value in enumerate(values):
        shares = dict.fromkeys(('all', 'old', 'new'), value)
        more = {f'{key}_v1': value for key in shares} | {'nmi': 0, 'ari': 0}
        place = {'method': name, 'split': i // 2, 'seed': i % 2}
        rows.append({**place, **shares, **more})
    names = dict.fromkeys(row['method'] for row in rows)
    results = {'rows': rows, 'labels': {name: name for name in names}}
    found = report.differences(results)
    self.assertIn('late_fusion: All +3.0 ± 1.0 (above)', found[0])
    self.assertIn('simgcd_both: All -10.0 ± 0.0 (below)', found[1])
    # 0.5, 0.6, 0.7, 0.7: mean 0.625, deviation 0.0957.
    self.assertIn(
      '| multimodal | 62.5 ± 9.6 | 62.5 ± 9.6 |', report.table(results)
    )


if __name__ == '__main__':
  absltest.main()

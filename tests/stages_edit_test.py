"""Mode `edit`: files of pictures in, files of pictures out."""

import pathlib
from unittest import mock

from absl.testing import absltest, parameterized
import numpy as np
from PIL import Image

from adanat_jax.data import digits
from adanat_jax.decoding import halton
from adanat_jax.errors import UserError
from adanat_jax.experiment.experiment import Experiment
from adanat_jax.stages import edit, sample
from support import configs


class EditTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    levels = np.rint(digits.load().test_images[0, ..., 0] * 255)
    cls.picture = Image.fromarray(levels.astype(np.uint8))
    right = np.zeros((16, 16), np.uint8)
    right[:, 8:] = 255
    cls.mask = Image.fromarray(right)

  def setUp(self):
    super().setUp()
    self.directory = pathlib.Path(self.create_tempdir().full_path)
    self.picture.save(self.directory / 'photo.png')
    self.mask.save(self.directory / 'mask.png')

  def experiment(self, **fields):
    """With the generator of the package; files are in the test's directory."""
    changes = {'generator': 'digits', 'sample.images_per_class': 2}
    for name, value in fields.items():
      if name in ('image', 'mask'):
        value = str(self.directory / value)
      where = name if '.' in name else f'edit.{name}'
      changes['generator' if name == 'draws' else where] = value
    config = configs.load('digits.py', changes)
    return Experiment(config, self.directory / 'runs')

  def run_edit(self, **fields):
    edit.run(self.experiment(image='photo.png', **fields))
    place = self.directory / 'runs/edit'
    images = [
      np.asarray(Image.open(path)) for path in sorted(place.glob('0*.png'))
    ]
    # The last result is the last of the grid, enlarged, in a margin of 12.
    grid = np.asarray(Image.open(place / 'grid.png'))[..., 0]
    last = images[-1].repeat(4, 0).repeat(4, 1)
    np.testing.assert_array_equal(grid[-76:-12, -76:-12], last)
    return [path.name for path in sorted(place.glob('0*.png'))], images

  def test_the_right_half_as_two_labels(self):
    names, images = self.run_edit(mask='mask.png', labels=('even,odd',))
    self.assertEqual(
      names,
      ['00000-even.png', '00001-even.png', '00002-odd.png', '00003-odd.png'],
    )
    for image in images:
      # Half a cell is soft.
      kept = np.asarray(self.picture)[:, :6]
      np.testing.assert_array_equal(image[:, :6], kept)
    self.assertTrue((images[0] != images[2]).any())

  def test_the_other_ways(self):
    _, boxed = self.run_edit(box=(0, 8, 16, 16), labels=(1,), border=0.0)
    _, masked = self.run_edit(mask='mask.png', labels=(1,), border=0.0)
    np.testing.assert_array_equal(boxed, masked)
    _, moved = self.run_edit(sides=(0, 0, 4, 0), labels=(1,), border=0.0)
    picture = np.asarray(self.picture)
    np.testing.assert_array_equal(moved[1][:12], picture[4:])
    _, varied = self.run_edit(strength=1.0, labels=(1,))
    self.assertTrue((varied[0] != varied[1]).any())

  def test_other_pictures_are_made_to_fit(self):
    for name in ('photo.png', 'mask.png'):
      path = self.directory / name
      large = Image.open(path).convert('RGB').resize((48, 32))
      large.save(path)
    with self.assertRaisesRegex(
      UserError, r'photo.png: .* RGB and 48x32 .* L and 16x16 .*fit=True'
    ):
      self.run_edit(mask='mask.png', labels=(0,))
    _, images = self.run_edit(mask='mask.png', labels=(0,), fit=True)
    self.assertEqual(images[0].shape, (16, 16))
    wide = mock.Mock(image_shape=(16, 24, 1))
    found = edit._open(
      self.experiment(image='photo.png', fit=True), 'image', wide
    )
    self.assertEqual(found.size, (24, 16))

  @parameterized.parameters(
    ({}, 'edit.image is empty'),
    ({'image': 'photo.png'}, 'edit.labels is empty'),
    ({'labels': (0,)}, 'one of config.edit.mask, .* given are none'),
    ({'box': (0, 0, 4, 4), 'strength': 0.5}, 'edit.box and config.edit.stren'),
    ({'box': (0, 4)}, 'config.edit.box=.*4 elements'),
    ({'labels': (-1,)}, 'config.edit.labels=.*class id or name'),
    ({'sample.policy': 'nobody'}, "config.sample.policy='nobody' is"),
  )
  def test_mistakes_that_show_before_anything_runs(self, fields, message):
    with self.assertRaisesRegex(UserError, message) as caught:
      edit.check_config(self.experiment(**fields))
    for line in caught.exception.problems:
      self.assertNotIn('\n', line)

  @parameterized.parameters(
    ({'image': 'none.png'}, 'none.png: no such file'),
    ({'image': 'broken.png'}, 'edit.image=.*broken.png: '),
    ({'mask': 'black.png'}, 'edit.mask=.*black.png: .*nowhere white'),
    ({'mask': 'alpha.png'}, 'edit.mask=.*mode RGBA; give one of'),
    ({'mask': 'large.png'}, r'edit.mask=.*bool\[20, 20\]; give bool'),
    ({'labels': ('blue',)}, "labels hold 'blue'; classes are .*even, odd"),
    ({'labels': (7,)}, r'labels hold \[7\]; classes are 0 to 1'),
    ({'sample.num_steps': 5}, 'no policy was learned for num_steps=5'),
    ({'draws': 'nowhere'}, 'config.generator=nowhere: nowhere is no'),
    ({'output': __file__}, 'a file is in the way'),
  )
  def test_mistakes_in_what_is_there(self, fields, message):
    whole = (self.directory / 'photo.png').read_bytes()
    (self.directory / 'broken.png').write_bytes(whole[:60])
    Image.new('L', (16, 16)).save(self.directory / 'black.png')
    self.mask.convert('RGBA').save(self.directory / 'alpha.png')
    self.mask.resize((20, 20)).save(self.directory / 'large.png')
    given = {'image': 'photo.png', 'mask': 'mask.png', 'labels': (0,)}
    experiment = self.experiment(**(given | fields))
    with self.assertRaisesRegex(UserError, message) as caught:
      edit.run(experiment)
    self.assertNotIn('\n', str(caught.exception))


class SampleTest(absltest.TestCase):
  def test_mode_sample_draws_with_another_generator(self):
    directory = pathlib.Path(self.create_tempdir().full_path)
    config = configs.load(
      'digits.py',
      {'generator': 'digits', 'sample.classes': (1,), 'sample.num_steps': 2},
    )
    sample.run(Experiment(config, directory))
    self.assertLen([*(directory / 'sample').glob('*-class1.png')], 16)
    config.sample.classes = (2,)
    with self.assertRaisesRegex(UserError, r'\[2\]; classes are 0 to 1'):
      sample.run(Experiment(config, directory))

  def test_a_schedule_is_made_for_the_generator_that_draws(self):
    config = configs.load('digits.py', {'sample.policy': 'halton'})
    other = mock.Mock()
    other.nat.num_tokens, other.tokenizer.columns = 64, 16
    found = sample.policy_of(Experiment(config, 'unused'), other)
    np.testing.assert_array_equal(found.priority, halton.priority(4, 16))


if __name__ == '__main__':
  absltest.main()

"""A generator in one folder: saved, moved, loaded; damaged, refused."""

import dataclasses
import hashlib
import json
import pathlib
import shutil
import tarfile
from unittest import mock

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

import adanat_jax
from adanat_jax.decoding import step, tables
from adanat_jax.decoding.schedules import Schedule
from adanat_jax.errors import UserError
from adanat_jax.experiment import config as config_lib
from adanat_jax.experiment.experiment import Experiment
from adanat_jax.learning.agent import Agent
from adanat_jax.models.captions import VectorTable
from adanat_jax.models.clip import CLIPText
from adanat_jax.models.policy import PolicyNetwork, PolicyNetworks
from adanat_jax.runtime import files
from adanat_jax.sampling import folder
from adanat_jax.sampling.captions import CaptionEncoder, VectorEncoder
from adanat_jax.stages import export
from support import configs, evaluating, random_weights

_ROOT = pathlib.Path(__file__).parents[1]
SEALS = ('format', 'checksum')
FILES = (
  *('README.md', 'config.json', 'nat.safetensors', 'policy-T3.safetensors'),
  *('policy-T4.safetensors', 'tokenizer.safetensors'),
)


def make_generator():
  generator = evaluating.random_generator(evaluating.tiny_config())
  actor = PolicyNetwork(4, 8, 16, 8, (16, 16), reads_dial=True)
  features = jnp.zeros((1, 64, generator.nat.width))
  variables = random_weights.random_variables(actor, features, 0, 1, 0.0)
  params = variables['params']
  residual = jnp.arange(12.0).reshape(3, 4) / 7
  learned = ('mask_ratio', 'sampling_temperature')
  agent = Agent(
    *({'actor': params}, residual, PolicyNetworks(actor), 0.25),
    learned=learned,
    dial=jnp.float32(0.25),
  )
  told = dataclasses.replace(actor, reads_budget=True, reads_dial=False)
  params = random_weights.random_variables(told, features, 0, 1)['params']
  shared = {
    T: Agent({'actor': params}, jnp.ones((T, 4)), PolicyNetworks(told, None, T))
    for T in (4, 5, 6)
  }
  mine = Schedule(
    'mine',
    tables.hand_made(2, guidance_scale=1.0),
    (False, True),
    step.MASKGIT,
    'my table',
    'a note',
  )
  return dataclasses.replace(
    generator,
    agents={3: agent, **shared},
    class_names=('even', 'odd'),
    schedules={'mine': mine},
  )


class FolderTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.generator = make_generator()

  def setUp(self):
    super().setUp()
    self.home = pathlib.Path(self.create_tempdir().full_path)
    self.path = self.home / 'saved'

  def load(self):
    return adanat_jax.load(self.path, compile_cache=False)

  def test_what_is_loaded_samples_the_same(self):
    self.generator.save(self.path, about='Made *here*.')
    self.assertCountEqual((p.name for p in self.path.iterdir()), FILES)
    self.assertIn('Made *here*.', (self.path / 'README.md').read_text())
    self.path = self.path.rename(self.home / 'moved')
    loaded = self.load()
    self.assertEqual(repr(loaded), repr(self.generator))
    self.assertIn('learned for num_steps: 3 to 6,', repr(loaded))
    # One for several T is there once.
    self.assertIs(loaded.agents[4].params, loaded.agents[6].params)
    for policy, num_steps in (
      *(('learned', 3), ('learned(dial=1.0)', 3), ('learned', 5), ('mine', 2)),
    ):
      expected = self.generator.sample([0, 1, 1], num_steps, 5, policy)
      samples = loaded.sample(['even', 'odd', 'odd'], num_steps, 5, policy)
      jax.tree.map(np.testing.assert_array_equal, samples, expected)
    np.testing.assert_array_equal(
      loaded.encode(samples.images), self.generator.encode(samples.images)
    )
    at = lambda name: loaded.sample([0, 1, 1], 3, 5, name).tokens
    np.testing.assert_array_equal(at('learned'), at('learned(dial=0.25)'))
    self.assertTrue((at('learned') != at('learned(dial=1)')).any())
    for name, num_steps, message in (
      ('learned(dial=0.5)', 5, 'num_steps=5 has no dial, which config.policy'),
      ('learned(dial=1.5)', 3, 'the dial is 1.5; give 0 to 1'),
      ('learned(dial=2e)', 3, 'cannot be read; write learned, or learned'),
      (
        'learned(bound=1)',
        3,
        "parameters: dial=0.0, candidates=1, chosen_by='",
      ),
    ):
      with self.assertRaisesRegex(UserError, message):
        loaded.sample([0], num_steps, 0, name)
    ours, theirs = loaded.schedules['mine'], self.generator.schedules['mine']
    for name in ('name', 'guided', 'options', 'label', 'note'):
      self.assertEqual(getattr(ours, name), getattr(theirs, name))

  @parameterized.parameters('bfloat16', 'float16')
  def test_narrower_numbers(self, dtype):
    self.generator.save(self.path, dtype=dtype)
    arrays = dict(
      safetensors.deserialize((self.path / 'nat.safetensors').read_bytes())
    )
    self.assertLen({entry['dtype'] for entry in arrays.values()}, 1)
    jax.tree.map(
      lambda x, y: np.testing.assert_array_equal(
        x, np.asarray(y).astype(jnp.dtype(dtype)).astype(np.float32)
      ),
      self.load().nat_params,
      self.generator.nat_params,
    )
    with self.assertRaisesRegex(UserError, "dtype is 'int8'; give one of"):
      self.generator.save(self.path, dtype='int8')
    large = jax.tree.map(lambda x: x * 1e30, self.generator.nat_params)
    if dtype == 'float16':
      with self.assertRaisesRegex(UserError, 'nat: .* not finite in float16'):
        dataclasses.replace(self.generator, nat_params=large).save(
          self.path, dtype=dtype
        )

  def test_only_a_generator_is_replaced(self):
    self.path.mkdir()
    (self.path / 'thesis.tex').touch()
    with self.assertRaisesRegex(UserError, 'saved is there and no saved gen'):
      self.generator.save(self.path)
    with self.assertRaisesRegex(UserError, 'tex is there and no saved gen'):
      self.generator.save(self.path / 'thesis.tex')
    (self.path / 'thesis.tex').unlink()
    self.generator.save(self.path)
    other = dataclasses.replace(self.generator, class_names=())
    # What is there stays until all is written.
    with (
      mock.patch.object(files, 'publish_directory', side_effect=OSError),
      self.assertRaises(OSError),
    ):
      other.save(self.path)
    self.assertEqual(self.load().class_names, ('even', 'odd'))
    other.save(self.path)
    self.assertEqual(self.load().class_names, ())
    self.assertEqual([p.name for p in self.home.iterdir()], ['saved'])

  def test_functions_are_not_saved(self):
    agent = dataclasses.replace(
      self.generator.agents[3], actor_critic=lambda *_: None
    )
    for changes, message in (
      ({'agents': {3: agent}}, 'policy of num_steps=3 is a function'),
      ({'schedules': {'a': Schedule('a', agent)}}, 'schedule a is no table'),
      ({'encode_captions': len}, '`encode_captions` is a function'),
    ):
      with self.assertRaisesRegex(UserError, message):
        dataclasses.replace(self.generator, **changes).save(self.path)
    self.assertEmpty(list(self.home.iterdir()))

  @parameterized.parameters(
    ('version', 2, 'version is 2, and 1 is read here'),
    ('version', 'one', 'version must be an integer'),
    ('batch_size', 0, 'batch_size is 0'),
    ('batch_size', None, 'batch_size must be'),
    ('class_names', ['a'], 'do not fit together'),
    ('networks.nat', None, 'networks.nat must be'),
    ('networks.nat.class', 'os.system', 'networks.nat is no NAT or ENAT'),
    ('networks.nat.sha256', '0' * 64, 'truncated or changed'),
    ('networks.nat.arguments.depth', 10**9, 'depth cannot be 1000000000'),
    ('networks.nat.arguments.depth', 2, "'.*' is absent there and"),
    ('networks.nat.arguments.depth', 1, 'must be even'),
    ('networks.nat.arguments.width', 16, 'there and .* by config.json'),
    ('networks.nat.arguments.width', '16', "width cannot be '16'"),
    ('networks.nat.arguments.num_heads', 0, 'networks.nat: '),
    ('networks.nat.arguments.dtype', 'int8', "dtype cannot be 'int8'"),
    ('networks.nat.arguments.parent', None, 'parent cannot be None'),
    ('networks.nat.arguments.evil\x1b', 1, r'evil\\x1b cannot be 1'),
    ('networks.tokenizer.arguments.width_multipliers', [1] * 17, 'cannot be'),
    ('policies.3.residual', [[0.0] * 4] * 2, 'policies.3 must be 3 x 4'),
    ('policies.3.residual', [[0.0] * 3] * 3, 'policies.3 must be 3 x 4'),
    ('policies.3.network', 'nat', 'policies.3 has no network of this folder'),
    (
      'policies.../x',
      {'residual': [], 'smoothing': 0, 'guided': True},
      'is no PolicyNetwork',
    ),
    ('schedules.mine.table.mask_ratio', [2, 0], 'mask_ratio holds 2.0'),
    ('schedules.mine.guided', [True], 'guided is .* a list of 2'),
    ('policies.3.guided', [True, False], 'guided is .* a list of 3'),
    ('schedules.mine.options.clamp', 'hard', "clamp cannot be 'hard'"),
  )
  def test_changed_configs(self, place, value, message):
    self.generator.save(self.path)
    path = self.path / 'config.json'
    config = json.loads(path.read_text())
    del config['format'], config['checksum']
    if place.startswith('policies.'):
      node, last = config['policies'], place.removeprefix('policies.')
      if last.startswith('3.'):
        node, last = node['3'], last.removeprefix('3.')
    else:
      *groups, last = place.split('.')
      node = config
      for group in groups:
        node = node[group]
    node[last] = value
    path.write_text(json.dumps(config))
    self.assert_refused(message)

  def assert_refused(self, message):
    with self.assertRaisesRegex(UserError, message) as caught:
      self.load()
    self.assertLen(str(caught.exception).splitlines(), 1)
    self.assertTrue(str(caught.exception).isprintable())

  def test_damaged_files(self):
    self.generator.save(self.path)
    whole = {name: (self.path / name).read_bytes() for name in FILES}
    for name in (name for name in FILES if name != 'README.md'):
      path, data = self.path / name, whole[name]
      changed = bytearray(data)
      changed[len(data) // 2] ^= 1
      for damaged in (data[:-2], data + b'\0', bytes(changed), b''):
        with self.subTest(name, size=len(damaged)):
          path.write_bytes(damaged)
          self.assert_refused('truncated or changed|not valid|damaged|not what')
      path.unlink()
      with self.subTest(name):
        self.assert_refused('no such file|no workdir')
      path.write_bytes(data)
    self.load()

  def test_arrays_that_are_not_parameters(self):
    self.generator.save(self.path)
    arrays = safetensors.numpy.load_file(self.path / 'nat.safetensors')
    first = next(iter(arrays))
    for changes, message in (
      ({first: arrays[first] * np.nan}, 'is not finite'),
      ({first: arrays[first].astype(np.float64)}, 'is of F64; F32, BF16'),
      ({first: arrays[first][:-1]}, 'there and .* by config.json'),
      ({'more': np.zeros(1, np.float32)}, r"'more' is \[1\] there and absent"),
    ):
      config = json.loads((self.path / 'config.json').read_text())
      data = safetensors.numpy.save({**arrays, **changes})
      (self.path / 'nat.safetensors').write_bytes(data)
      config = {k: v for k, v in config.items() if k not in SEALS}
      config['networks']['nat']['sha256'] = folder.hashlib.sha256(
        data
      ).hexdigest()
      (self.path / 'config.json').write_text(json.dumps(config))
      self.assert_refused(message)

  def test_captions(self):
    tower = CLIPText(8, 1, 2, 16, 4, 'gelu')
    ids = jnp.zeros((1, 77), jnp.int32)
    params = random_weights.random_variables(tower, ids)['params']
    vocabulary = self.home / 'words.json'
    vocabulary.write_text('{"a": 1}')
    encoder = CaptionEncoder(tower, params, str(vocabulary))
    generator = dataclasses.replace(self.generator, encode_captions=encoder)
    generator.save(self.path)
    (self.path / 'config.json').touch()
    reader = folder._FolderReader(
      self.path, files.read_json(self.path / 'config.json')
    )
    again = reader.caption_encoder(8)
    self.assertEqual(again.module, tower)
    self.assertEqual(again.vocabulary, str(self.path / 'vocabulary.json'))
    jax.tree.map(np.testing.assert_array_equal, again.params, params)
    (self.path / 'vocabulary.json').write_text('{"a": 2}')
    with self.assertRaisesRegex(UserError, 'vocabulary.json: truncated or ch'):
      reader.caption_encoder(8)

  def test_vectors_of_strangers(self):
    table = np.float32([[0, 0], [1, 2], [3, 4]])
    places = {'a': (1, 1), 'b': (2, 1)}
    module = VectorTable(2, 1, 3)

    def reader(module=module, table=table, captions=()):
      encoder = VectorEncoder(module, {'vectors': table}, places)
      dataclasses.replace(self.generator, encode_captions=encoder).save(
        self.path
      )
      config = files.read_json(self.path / 'config.json')
      if captions:
        data = json.dumps(
          {'captions': [dict(text=t, first=1, count=1) for t in captions]}
        ).encode()
        (self.path / 'captions.json').write_bytes(data)
        config['captions'] = hashlib.sha256(data).hexdigest()
      return folder._FolderReader(self.path, config)

    self.assertEqual(reader().caption_encoder(2).places, places)
    for change, width, message in (
      ({}, 3, 'networks.text is of width 2, and networks.nat reads 3'),
      # 8 gigabytes of zeros would be the null condition.
      ({'module': VectorTable(2, 2**30, 3)}, 2, 'num_positions is 1073741824'),
      ({'table': table + 1}, 2, 'text.safetensors: the first .* zeros'),
      ({'captions': ['a', '']}, 2, "captions.json: there cannot be .*''"),
      ({'captions': ['a', 'a']}, 2, "captions.json: there cannot be .*'a'"),
      ({'captions': ['a  b']}, 2, "captions.json: there cannot be .*'a  b'"),
    ):
      with self.assertRaisesRegex(UserError, message):
        reader(**change).caption_encoder(width)


class ExportTest(absltest.TestCase):
  def test_a_finished_workdir(self):
    workdir = pathlib.Path(self.create_tempdir().full_path)
    with tarfile.open(_ROOT / 'tests/data/workdir-0.1.0.tar.xz') as archive:
      archive.extractall(workdir, filter='data')
    overrides = {
      name: tuple(value) if isinstance(value, list) else value
      for name, value in config_lib.read_record(workdir)['overrides'].items()
    }
    table = workdir / 'searched.json'
    files.write_json(table, tables.hand_made(2).by_name())
    config = configs.load('digits.py:tiny', overrides)
    config.export.tables = (str(table),)
    export.run(Experiment(config, workdir))
    saved = workdir / 'export'
    self.assertIn('config `', (saved / 'README.md').read_text())
    ours = adanat_jax.load(saved, compile_cache=False)
    self.assertEqual(list(ours.schedules), ['searched'])
    shutil.move(saved, workdir.with_suffix('.moved'))
    expected = adanat_jax.load(workdir, compile_cache=False)
    samples = ours.sample(['even', 'odd'], 2, 3)
    np.testing.assert_array_equal(
      samples.tokens, expected.sample([0, 1], 2, 3).tokens
    )
    config.export.program = str(workdir / 'sampler.stablehlo')
    config.sample.num_steps = 5
    with self.assertRaisesRegex(UserError, 'no policy was learned for num_st'):
      export.run(Experiment(config, workdir))
    self.assertFalse(saved.exists())
    config.export.tables = ('nowhere.json',)
    with self.assertRaisesRegex(UserError, 'export.tables=nowhere.json: no su'):
      export.check_config(Experiment(config, workdir))


if __name__ == '__main__':
  absltest.main()

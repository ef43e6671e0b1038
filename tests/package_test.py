"""What `import adanat_jax` offers, and what it leaves alone."""

import json
import os
import pathlib
import runpy
import subprocess
import sys
import tarfile
from unittest import mock

from absl.testing import absltest

import adanat_jax
from adanat_jax import schedules, types
from adanat_jax.decoding import schedules as where_schedules_are
from adanat_jax.experiment import config as config_lib

_ROOT = pathlib.Path(__file__).parents[1]
_DATA = _ROOT / 'tests' / 'data'
# Loads a workdir in a process of its own, and lists what that imported.
_CHILD = """
import json, sys
import adanat_jax
import jax
cached = lambda: jax.config.jax_compilation_cache_dir
ours = lambda: [x for x in sys.modules if x.startswith('adanat_jax')]
adanat_jax.load('digits', compile_cache=False)
of_folder = ours()
generator = adanat_jax.load(sys.argv[1], compile_cache=False)
assert list(generator.agents) == [2]
assert not cached()
modules = sorted(sys.modules)
adanat_jax.load(sys.argv[1])
assert cached().startswith(sys.argv[1] + '/.cache/adanat_jax/'), cached()
jax.config.update('jax_compilation_cache_dir', '/elsewhere')
adanat_jax.load(sys.argv[1])
assert cached() == '/elsewhere'
print(json.dumps([of_folder, modules]))
"""


class PackageTest(absltest.TestCase):
  def test_every_public_name_is_there(self):
    for name in adanat_jax.__all__:
      with self.subTest(name):
        self.assertIsNotNone(getattr(adanat_jax, name))
    self.assertEqual(dir(adanat_jax), sorted(adanat_jax.__all__))
    self.assertIs(schedules, where_schedules_are)
    self.assertIs(adanat_jax.Schedule, schedules.Schedule)
    self.assertIs(adanat_jax.PolicyValues, types.PolicyValues)

  def test_setup_takes_the_version_and_the_configs_from_where_they_are(self):
    with mock.patch('setuptools.setup') as setup:
      runpy.run_path(str(_ROOT / 'setup.py'))
    given = setup.call_args.kwargs
    self.assertEqual(given['version'], adanat_jax.__version__)
    folder = _ROOT / given['package_dir']['adanat_jax.configs']
    self.assertTrue(
      (folder / 'digits.py').samefile(config_lib.find('digits')[0])
    )
    self.assertContainsSubset(
      ['adanat_jax.configs', 'adanat_jax.stages'], given['packages']
    )

  def test_config_files_of_earlier_versions_import_their_loader(self):
    from adanat_jax import config  # As their files say it.

    self.assertIs(config, config_lib)

  def test_another_name_is_an_attribute_error(self):
    with self.assertRaisesRegex(AttributeError, "no attribute 'laod'"):
      adanat_jax.laod  # noqa: B018

  def test_loading_imports_no_stage_and_no_training(self):
    workdir = pathlib.Path(self.create_tempdir().full_path)
    with tarfile.open(_DATA / 'workdir-0.1.0.tar.xz') as archive:
      archive.extractall(workdir, filter='data')
    result = subprocess.run(
      [sys.executable, '-c', _CHILD, str(workdir)],
      capture_output=True,
      env={
        **os.environ,
        'HOME': str(workdir),
        'JAX_COMPILATION_CACHE_DIR': '',
      },
      text=True,
      check=False,
    )
    self.assertEqual(result.returncode, 0, result.stderr)
    of_folder, modules = json.loads(result.stdout.splitlines()[-1])
    self.assertLessEqual(len(of_folder), 35)
    ours = [name for name in modules if name.startswith('adanat_jax')]
    self.assertLessEqual(len(ours), 46)
    unwanted = ('stages', 'data.sources', 'learning.ppo', 'report', 'measuring')
    for name in unwanted:
      self.assertNotIn(f'adanat_jax.{name}', modules)
    self.assertNoCommonElements(
      modules, ['sklearn', 'tensorflow_datasets', 'matplotlib', 'tensorflow']
    )


if __name__ == '__main__':
  absltest.main()

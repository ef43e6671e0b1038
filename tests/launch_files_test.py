"""The files of launch/: shellcheck, help, pins, and what its README says."""

import json
import os
import pathlib
import re
import shlex
import shutil
import sys

from absl.testing import absltest, parameterized

from support import fake_gcloud, launching

_SCRIPTS = sorted(
  path.name for path in (launching.ROOT / 'launch').glob('*.sh')
)


def _blocks():
  """The commands of the README, as blocks of lines."""
  text = (launching.ROOT / 'launch' / 'README.md').read_text()
  return re.findall(r'^```bash\n(.*?)^```', text, re.M | re.S)


class FilesTest(parameterized.TestCase):
  def test_shellcheck(self):
    bin = pathlib.Path(sys.executable).parent
    found = shutil.which('shellcheck', path=f'{bin}:{os.environ["PATH"]}')
    if not found:
      self.skipTest("shellcheck is not installed; pip install -e '.[test]'")
    scripts = [f'launch/{name}' for name in _SCRIPTS]
    process = launching.shell(
      found, '--external-sources', *scripts, cwd=launching.ROOT
    )
    self.assertEqual(process.stdout, '')
    self.assertEqual(process.returncode, 0)

  @parameterized.parameters(*_SCRIPTS)
  def test_script(self, name):
    path = launching.ROOT / 'launch' / name
    text = path.read_text()
    sourced = name in ('env.sh', 'lib.sh')
    self.assertEqual(
      os.access(path, os.X_OK), not sourced and name != 'worker.sh'
    )
    if name != 'env.sh':
      self.assertRegex(text, r'set -euo pipefail|/lib\.sh"')
    self.assertNotRegex(text, r'chmod 777|gcloud (alpha|beta)')
    if '/lib.sh"' in text:
      env = {'PATH': os.environ['PATH'], 'HOME': '/'}
      shown = launching.shell(str(path), '--help', env=env).stdout
      self.assertIn(f'\n  launch/{name}', shown)
      self.assertLess(len(shown.splitlines()), 15)

  def test_pins_are_what_setup_asks_for(self):
    pins = dict(
      line.split('==')
      for line in (launching.ROOT / 'launch' / 'constraints.txt')
      .read_text()
      .split('\n')
      if line and not line.startswith('#')
    )
    setup = (launching.ROOT / 'setup.py').read_text()
    asked = re.search(r'install_requires=\[(.*?)\]', setup, re.S)[1]
    for name in re.findall(r"'([\w-]+)", asked):
      self.assertIn(name.lower().replace('_', '-'), pins)
    self.assertRegex(pins['jax'], r'0\.1[012]\.')
    self.assertIn('libtpu', pins)

  def test_flags_come_with_their_source(self):
    table = json.loads(
      (launching.ROOT / 'tests/data/gcloud_flags.json').read_text()
    )
    self.assertRegex(table['source'], r'Cloud CLI [\d.]+ \(\d{4}-\d\d-\d\d\)')


class ReadmeTest(launching.LaunchTest):
  def test_flags_of_the_readme_s_gcloud_are_real(self):
    text = '\n'.join(_blocks()).replace('\\\n', ' ')
    found = re.findall(r'\b(gcloud [^|#\n]*)', text)
    self.assertGreater(len(found), 7)
    for line in found:
      fake_gcloud.parse(shlex.split(line)[1:])

  def test_blocks_of_the_readme(self):
    """Those that call our scripts and nothing else run as they stand."""
    ours = [
      block
      for block in _blocks()
      if re.fullmatch(r'((launch/|export ).*\n)+', block)
    ]
    self.assertLen(ours, 4)
    for block in ours:
      process = launching.shell(
        *('bash', '-euc', block), cwd=self.tree, env=self.env | {'DRY_RUN': '1'}
      )
      self.assertEqual(process.returncode, 0, process.stderr)
    self.assertEmpty(self.calls())


if __name__ == '__main__':
  absltest.main()

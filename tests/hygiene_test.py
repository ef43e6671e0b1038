"""What the repository promises about itself, where a tool does not look."""

import ast
import pathlib
import re

from absl.testing import absltest

_ROOT = pathlib.Path(__file__).parents[1]
_ROOMS = ('adanat_jax', 'configs', 'tests', 'benchmarks', 'launch', 'docs')
_MAX_LINES = 600
# Built up, so that this file does not hold what it looks for.
_PATHS_OF_A_MACHINE = re.compile(
  '|'.join(['/' + 'root/', '/' + 'home/' + r'\w'])
)


def _files(*suffixes):
  tops = [path for path in _ROOT.iterdir() if path.is_file()]
  inside = [path for room in _ROOMS for path in (_ROOT / room).rglob('*')]
  return [path for path in tops + inside if path.suffix in suffixes]


class HygieneTest(absltest.TestCase):
  def test_looks_at_something(self):
    names = {path.name for path in _files('.py')}
    self.assertContainsSubset({'setup.py', 'main.py', 'hygiene_test.py'}, names)

  def test_no_source_file_is_long(self):
    long = {
      str(path.relative_to(_ROOT)): lines
      for path in _files('.py', '.sh')
      if (lines := len(path.read_text().splitlines())) > _MAX_LINES
    }
    self.assertEmpty(long)

  def test_no_utils(self):
    self.assertEmpty([p for p in _files('.py') if p.stem in ('utils', 'util')])

  def test_public_things_of_the_package_have_docstrings(self):
    bare = []
    for path in _files('.py'):
      if _ROOT / 'adanat_jax' not in path.parents:
        continue
      tree = ast.parse(path.read_text())
      for node in [tree, *tree.body]:
        name = getattr(node, 'name', path.stem)
        kinds = (ast.Module, ast.FunctionDef, ast.ClassDef)
        if not isinstance(node, kinds) or name.startswith('_'):
          continue
        if not ast.get_docstring(node) and path.read_text().strip():
          bare.append(f'{path.relative_to(_ROOT)}: {name}')
    self.assertEmpty(bare)

  def test_no_path_of_one_machine(self):
    found = [
      f'{path.relative_to(_ROOT)}: {match.group()}'
      for path in _files('.py', '.sh', '.md', '.toml', '.json', '.txt')
      if (match := _PATHS_OF_A_MACHINE.search(path.read_text()))
    ]
    self.assertEmpty(found)

  def test_pure_rooms_import_neither_networks_nor_configs(self):
    banned = re.compile(
      r'^\s*(from|import) (adanat_jax\.(models|stages|experiment|runtime.files)'
      r'|ml_collections|flax\.linen)',
      re.MULTILINE,
    )
    found = [
      str(path.relative_to(_ROOT))
      for room in ('decoding', 'learning')
      for path in (_ROOT / 'adanat_jax' / room).glob('*.py')
      if banned.search(path.read_text())
    ]
    self.assertEmpty(found)


if __name__ == '__main__':
  absltest.main()

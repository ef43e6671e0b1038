"""What the repository promises about itself, where a tool does not look."""

import ast
import collections
import pathlib
import re

from absl.testing import absltest

_ROOT = pathlib.Path(__file__).parents[1]
_ROOMS = (
  *('adanat_jax', 'configs', 'tests', 'benchmarks', 'launch'),
  *('docs', 'examples'),
)
_MAX_LINES = 600
# Built up, so that this file does not hold what it looks for.
_PATHS_OF_A_MACHINE = re.compile(
  '|'.join(['/' + 'root/', '/' + 'home/' + r'\w'])
)


_PACKAGE = _ROOT / 'adanat_jax'
_PURE = {'types', 'errors', 'decoding', 'models', 'metrics', 'learning'}
_MIDDLE = {'runtime', 'data', 'convert', 'sampling', 'report'}
# What each room of the package may import, besides itself.
_MAY_IMPORT = {
  'types': set(),
  'errors': set(),
  'runtime': {'types', 'errors'},
  'decoding': {'types', 'errors'},
  'metrics': {'errors'},
  'models': {'types', 'errors', 'runtime', 'decoding'},
  'learning': {'types', 'errors', 'runtime', 'decoding'},
  'data': {'types', 'errors', 'runtime'},
  'convert': {'errors', 'runtime', 'models', 'metrics'},
  'report': {'errors', 'runtime'},
  'laboratory': {'types', 'errors', 'decoding'},
  'discovery': {'types', 'errors', 'metrics'},
  # Samples draw themselves, but import `report` only then; captions are read
  # by the tokenizer in `data`.
  'sampling': {
    *('types', 'errors', 'runtime', 'decoding', 'models', 'learning'),
    *('report', 'data'),
  },
  'problems': {
    *('types', 'errors', 'runtime', 'decoding', 'models', 'learning'),
    'sampling',
  },
  'experiment': _PURE | _MIDDLE,
  'measuring': _PURE | _MIDDLE | {'experiment'},
  'stages': (
    _PURE | _MIDDLE | {'experiment', 'measuring', 'laboratory', 'discovery'}
  ),
  'demo': {
    *('errors', 'data', 'decoding', 'report', 'sampling', 'experiment'),
  },
  'main': {'errors', 'runtime', 'data', 'experiment', 'stages'},
}
_ROOMS_OF_PACKAGE = set(_MAY_IMPORT)
# Where these libraries may be imported.
_LIBRARIES = {
  'flax.linen': {'models', 'convert'},
  'ml_collections': {'experiment', 'stages', 'main'},
  'orbax': {'runtime'},
  'gradio': {'demo'},
  'matplotlib': {'report'},
  'sklearn': {'data', 'metrics'},
  'tensorflow_datasets': {'data'},
}
# Modules with a single importer that are a concept of their own.
_WITH_ONE_IMPORTER = {
  'a family of weights': (
    *('convert.clip', 'convert.discriminator', 'convert.enat'),
    *('convert.halton', 'convert.inception', 'convert.llamagen'),
    *('convert.maskgit', 'convert.nat', 'convert.policy', 'convert.vit'),
  ),
  'a layer of reading foreign files': (
    *('convert.kinds', 'convert.pickled_numpy', 'convert.torch_reader'),
    'data.image_metadata',
  ),
  'a function that the package offers': (
    *('problems.decode', 'sampling.calibration'),
  ),
  'a way to schedule': ('decoding.halton',),
  'what is known exactly': ('laboratory.exact',),
  'a part of discovery that is a concept': (
    *('discovery.kmeans', 'discovery.losses', 'discovery.methods'),
    *('discovery.splits', 'data.word_vectors', 'models.prototypes'),
  ),
  'imported when it is first asked for': ('demo.app', 'sampling.stablehlo'),
  'a network': ('models.classifier', 'models.patch_discriminator'),
  'a measure': (
    *('metrics.inception_score', 'metrics.pixels', 'measuring.text_match'),
  ),
  'a train step': ('learning.views',),
  'a page or a kind of picture': (
    *('report.comparison', 'report.discovery', 'report.document'),
    *(
      'report.laboratory',
      'report.plots',
      'report.suite',
    ),
  ),
  'a mode, or a part of the one whose name it bears': (
    *('stages.nat_held_out', 'stages.policy'),
    *('stages.prepare_shards', 'stages.search'),
    *('stages.search_alternating', 'stages.tokenizer_reconstruction'),
    *('stages.compare_costs', 'stages.discover_features'),
    'stages.judges',
  ),
  'a concern of processes and their loops': (
    *('runtime.checkpoint_format', 'runtime.handshake'),
    'runtime.stopping',
  ),
  'a part of what a config becomes': (
    *('data.sources.registry', 'experiment.config_help'),
    'experiment.rewards',
  ),
}


def _imported(path):
  """Full names that a file imports, and the modules that it takes them from."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
      yield node.module
      yield from (f'{node.module}.{alias.name}' for alias in node.names)


def _modules():
  """The modules of the package that each of its modules imports."""
  paths = {
    '.'.join(path.relative_to(_ROOT).with_suffix('').parts): path
    for path in _PACKAGE.rglob('*.py')
    if path.name != '__init__.py'
  }
  return {
    name: {other for other in _imported(path) if other in paths}
    for name, path in paths.items()
  }


def _room(module):
  return module.split('.')[1]


def _is_all(target):
  return isinstance(target, ast.Name) and target.id == '__all__'


def _annotation(argument):
  text = ast.unparse(argument.annotation) if argument.annotation else ''
  return 'ConfigDict' if text == 'Config' else text


_IMPORTS = _modules()


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

  def test_the_root_holds_what_is_public(self):
    found = {path.stem for path in _PACKAGE.glob('*.py')}
    self.assertEqual(found, {'__init__', 'main', 'types', 'errors'})
    rooms = {path.parent.name for path in _PACKAGE.glob('*/__init__.py')}
    self.assertEqual(rooms, _MAY_IMPORT.keys() - {'main', 'types', 'errors'})

  def test_imports_go_down(self):
    upward = {
      f'{module} imports {other}'
      for module, names in _IMPORTS.items()
      for other in names
      if _room(module) != _room(other)
      and _room(other) not in _MAY_IMPORT.get(_room(module), _ROOMS_OF_PACKAGE)
    }
    self.assertEmpty(upward)

  def test_libraries_stay_in_their_rooms(self):
    found = []
    for path in _files('.py'):
      if _PACKAGE not in path.parents:
        continue
      room = path.relative_to(_PACKAGE).parts[0].removesuffix('.py')
      names = {name.split('.')[0] for name in _imported(path)}
      names |= {n for n in _imported(path) if n == 'flax.linen'}
      for library, rooms in _LIBRARIES.items():
        if library in names and room not in rooms:
          found.append(f'{path.relative_to(_ROOT)} imports {library}')
    self.assertEmpty(found)

  def test_a_module_with_one_importer_is_part_of_it(self):
    single = {
      module
      for module in _IMPORTS
      if len([1 for names in _IMPORTS.values() if module in names]) == 1
    }
    listed = {
      f'adanat_jax.{name}'
      for names in _WITH_ONE_IMPORTER.values()
      for name in names
    }
    self.assertEmpty(single - listed)
    self.assertEmpty(listed - single)

  def test_no_module_forwards_names(self):
    found = []
    for path in _PACKAGE.rglob('*.py'):
      if path == _PACKAGE / '__init__.py':
        continue
      tree = ast.parse(path.read_text())
      imported = {
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
      }
      for node in tree.body:
        if isinstance(node, ast.Assign) and _is_all(node.targets[0]):
          names = set(ast.literal_eval(node.value))
          found += [f'{path.stem}: {name}' for name in names & imported]
    self.assertEmpty(found)

  def test_no_class_name_twice(self):
    seen = collections.Counter(
      node.name
      for path in _PACKAGE.rglob('*.py')
      for node in ast.parse(path.read_text()).body
      if isinstance(node, ast.ClassDef)
    )
    self.assertEmpty([name for name, count in seen.items() if count > 1])

  def test_a_config_stops_in_experiment(self):
    """Few functions take a ConfigDict, and none below experiment/ does."""
    takers = []
    for path in _PACKAGE.rglob('*.py'):
      for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.FunctionDef):
          continue
        arguments = [*node.args.args, *node.args.kwonlyargs]
        if any('ConfigDict' in _annotation(a) for a in arguments):
          takers.append((path.relative_to(_PACKAGE).parts[0], node.name))
    self.assertLessEqual(len(takers), 40)
    outside = {room for room, _ in takers} - {'experiment', 'stages', 'main.py'}
    self.assertEmpty(outside)


if __name__ == '__main__':
  absltest.main()

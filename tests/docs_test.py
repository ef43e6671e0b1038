"""The documents: commands are understood, and links lead somewhere."""

import importlib
import inspect
import pathlib
import re
import runpy
import shlex

from absl import flags
from absl.testing import absltest
from PIL import Image

from adanat_jax.convert.kinds import KINDS
from adanat_jax.decoding import schedules
from adanat_jax.experiment import config as config_lib
from adanat_jax.experiment.experiment import Experiment
from adanat_jax.main import BENCHMARK, STAGES, STUDY

_ROOT = pathlib.Path(__file__).parents[1]
_PAGES = [
  _ROOT / 'README.md',
  *sorted((_ROOT / 'docs').glob('*.md')),
  *sorted((_ROOT / 'docs/results').rglob('README.md')),
  *sorted((_ROOT / 'configs').glob('*.py')),
]
# Flags that several commands share: `run=(--config=...)`, and `"${run[@]}"`.
_SHARED = re.compile(r'^ *run=\(([^)]*)\)', re.MULTILINE)
_EXPANDED = '"${run[@]}"'
# A command, after what it needs, and the lines that it goes on in.
_COMMAND = re.compile(
  r'^ *(?:pip install .*&& )?((?:python|adanat) (?:\\\n|.)*)', re.MULTILINE
)
_LINK = re.compile(r'\]\(([^)#\s]*)(#[^)\s]*)?\)')
_PROGRAMS = ('-m adanat_jax.main', 'adanat --config', 'benchmarks/hours.py')
# Of the programs, beside those of the config.
_FLAGS = ('workdir', 'images', 'captions', 'rate', 'distributed')


def commands(page):
  """The command lines of a page, as lists of words."""
  text = page.read_text()
  for match in _COMMAND.finditer(text):
    command = match.group(1).replace('\\\n', ' ')
    if _EXPANDED not in command:
      yield shlex.split(command)
      continue
    for flags_of_all in _SHARED.findall(text):
      yield shlex.split(command.replace(_EXPANDED, flags_of_all))


def parse(words):
  """Reads a command's flags as `adanat_jax.main` does; returns the config."""
  values = flags.FlagValues()
  config = config_lib.define_flag(values)
  for name in _FLAGS:
    flags.DEFINE_string(name, None, '', flag_values=values)
  values.set_gnu_getopt(True)
  known = tuple(f'--{name}' for name in ('config', *_FLAGS))
  config_lib.parse_flags(
    [words[0], *(word for word in words if word.startswith(known))], values
  )
  return config.value


def anchors(page):
  """What links to the headings of a page may be called."""
  headings = re.findall(r'^#+ (.*)$', page.read_text(), re.MULTILINE)
  plain = [re.sub(r'[^\w\- ]', '', heading.lower()) for heading in headings]
  return {heading.replace(' ', '-') for heading in plain}


def check_stages(config):
  """Refuses what a stage of the run that a config asks for would refuse."""
  if config.get('evaluate', {}).get('statistics'):
    # The reader's file; any that there is will do.
    config.evaluate.statistics = __file__
  if config.get('text', {}).get('vectors'):
    # The reader's, too: another network has the same flags.
    config.text.update(network='learned', vectors='')
  names = (config.mode,)
  if config.mode == 'all':
    names = STUDY if config.data.source == 'digits' else BENCHMARK
  for name in names:
    importlib.import_module(STAGES[name]).check_config(
      Experiment(config, 'unused')
    )


class DocsTest(absltest.TestCase):
  def test_commands_name_what_exists_and_stages_allow(self):
    count = 0
    for page in _PAGES:
      for words in commands(page):
        line = ' '.join(words)
        ours = any(program in line for program in _PROGRAMS)
        if not ours or '[' in line:  # What may be left out is in brackets.
          continue
        with self.subTest(page=page.name, command=line):
          config = parse(words)
          self.assertIn(config.mode, ('all', *STAGES))
          if _PROGRAMS[2] not in line:
            check_stages(config)
          count += 1
    self.assertGreater(count, 20)

  def test_conversions_are_of_kinds_that_exist(self):
    count = 0
    for page in _PAGES:
      for words in commands(page):
        for word in words:
          if word.startswith('--kind='):
            self.assertIn(word.partition('=')[2], KINDS, page.name)
            count += 1
    self.assertGreater(count, 5)

  def test_the_figure_of_the_relatives_can_be_drawn_again(self):
    script = runpy.run_path(str(_ROOT / 'docs/images/make_relatives.py'))
    path = pathlib.Path(self.create_tempdir().full_path) / 'again.png'
    script['draw'](path)
    with (
      Image.open(_ROOT / 'docs/images/relatives.png') as kept,
      Image.open(path) as again,
    ):
      self.assertEqual(again.size, kept.size)
    # ENAT's published counts: about a fifth of what all tokens cost.
    counts = script['counts_of'](script['tables'].enat_256(8))
    self.assertAlmostEqual(script['share'](counts), 0.195, places=3)

  def test_every_schedule_is_listed_with_its_parameters(self):
    page = (_ROOT / 'docs/schedules.md').read_text()
    table = page.partition('## The list')[2].partition('## ')[0]
    for name, factory in schedules.SCHEDULES.items():
      self.assertIn(f'`{name}`', table)
      for parameter in inspect.signature(factory).parameters.values():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
          self.assertRegex(table, f'`{parameter.name}[`=]', name)

  def test_links_lead_somewhere(self):
    for page in _PAGES:
      for target, anchor in _LINK.findall(page.read_text()):
        if '://' in target:
          continue
        with self.subTest(page=page.name, link=target + anchor):
          path = (page.parent / target) if target else page
          self.assertTrue(path.exists())
          if anchor and path.suffix == '.md':
            self.assertIn(anchor[1:], anchors(path))


if __name__ == '__main__':
  absltest.main()

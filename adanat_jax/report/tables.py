"""Markdown tables and sentences from results, nothing but what they say."""

from collections.abc import Mapping, Sequence
import math
from typing import Any

from adanat_jax.report import results as reading
from adanat_jax.report.results import Pooled, Results

_MEASURES = tuple(reading.MEASURE_TITLES)
_VALUES = (
  'mask_ratio',
  'sampling_temperature',
  'masking_temperature',
  'guidance_scale',
  'effective_temperature',
)
# A difference of means counts as one if it exceeds so many standard errors:
# Student's t for four seeds at 95 %.
CLEAR = 3.2


def markdown_table(
  header: Sequence[Any], rows: Sequence[Sequence[Any]], rule: str = '---:'
) -> str:
  """A Markdown table; `rule` aligns all columns but the first.

  '---:' aligns them right, '---' left.
  """
  lines = [header, ['---'] + [rule] * (len(header) - 1), *rows]
  return ''.join(
    f'| {" | ".join(str(cell).replace("|", "/") for cell in line)} |\n'
    for line in lines
  )


def warnings(sentences: Sequence[str]) -> list[str]:
  """A heading and a list of what makes figures doubtful; nothing if nothing."""
  return (
    ['## Warnings\n', ''.join(f'- {text}\n' for text in sentences)]
    if sentences
    else []
  )


def number(value: float, measure: str) -> str:
  """A measure as text: shares have three decimals, distances their own."""
  value = float(value)
  if not math.isfinite(value):
    return 'not finite'
  # A kernel distance may be of any size, its own deviation among them.
  formats = {'frechet': '.2f', 'kernel_distance': '.3g'}
  return format(value, formats.get(measure, '.3f'))


def ends(temperatures: Sequence[float]) -> str:
  """Effective temperatures of the first step and of the last that chooses."""
  if not temperatures:
    return ''
  # At the last step all that is left is kept, so nothing is chosen.
  first, last = (
    temperatures[0],
    temperatures[-2 if len(temperatures) > 1 else -1],
  )
  alike = abs(first - last) < 5e-3
  return f'{first:.2f}' if alike else f'{first:.2f} to {last:.2f}'


def method_table(results: Results, num_steps: int) -> str:
  """All methods at one T, one row a training; the best of a column is bold.

  Cells are mean ± standard deviation over sampling seeds, the deviation only
  where there are several.
  """
  entries = reading.select(results, num_steps=num_steps)
  shown = [m for m in _MEASURES if any(m in e['measures'] for e in entries)]
  several = any(entry['training'] for entry in entries)
  counted = any(entry.get('passes') for entry in entries)
  best = {measure: _best(entries, measure) for measure in shown}
  rows = []
  for entry in entries:
    row = [entry['label']]
    if several:
      training = entry['training']
      row.append('' if training is None else str(training + 1))
    if counted:
      # A schedule that is guided, or decides itself, takes another number.
      row.append(f'{entry.get("passes") or math.nan:.3g}')
    for measure in shown:
      numbers = entry['measures'].get(measure)
      if numbers is None:
        row.append('')
        continue
      text = number(numbers['mean'], measure)
      text = f'**{text}**' if text == best[measure] else text
      row.append(text + _plus_minus(numbers['std'], measure))
    rows.append(row)
  header = ['method'] + ['training'] * several + ['passes'] * counted
  return markdown_table(header + [reading.title_of(m) for m in shown], rows)


def floor_table(results: Results) -> str:
  """The floors, which no schedule can change: one row a kind of images."""
  columns = {m: reading.floors_of(results, m) for m in _MEASURES}
  shown = [measure for measure in _MEASURES if columns[measure]]
  rows = [
    [name]
    + [number(columns[m][name], m) if name in columns[m] else '' for m in shown]
    for name in results['floors']
  ]
  header = ['images'] + [reading.title_of(measure) for measure in shown]
  return markdown_table(header, rows)


def values_table(entries: Sequence[reading.MethodResult]) -> str:
  """The values at each step: mean ± standard deviation over samples.

  The effective temperature is that of the law that the kept tokens follow. One
  row a method and value, one column a step.
  """
  num_steps = max(int(entry['num_steps']) for entry in entries)
  rows = []
  for entry in entries:
    for key in _VALUES:
      numbers = entry['values_per_step'].get(key)
      if numbers is None:
        continue  # A file of an older version.
      cells = [
        f'{float(mean):.2f}' + (f' ± {float(std):.2f}' if float(std) else '')
        for mean, std in zip(numbers['mean'], numbers['std'], strict=True)
      ]
      cells += [''] * (num_steps - len(cells))
      rows.append([entry['label'], key.replace('_', ' '), *cells])
  steps = [f'step {step + 1}' for step in range(num_steps)]
  return markdown_table(['method', 'value', *steps], rows)


def grid_table(grid: Mapping[str, Any], count: int = 5) -> str:
  """The best `count` rows of a search for a hand-made schedule, best first.

  The rows of a grid hold settings and `frechet`.
  """
  rows = sorted(grid['rows'], key=lambda row: float(row['frechet']))[:count]
  settings = [key for key in rows[0] if key != 'frechet']
  header = [key.replace('_', ' ') for key in settings] + ['Fréchet distance']
  return markdown_table(
    header,
    [
      [_setting(row[key]) for key in settings]
      + [number(row['frechet'], 'frechet')]
      for row in rows
    ],
  )


def findings(results: Results) -> list[str]:
  """Puts the figures into sentences.

  At each T: which method is best in either distance, and every adaptive
  policy against all hand-made schedules, the tuned one, and, for the same
  reward, the policy learned without looking at the sample and itself with its
  adaptivity taken away; one that all T share also against that of this T.
  """
  sentences = []
  for num_steps in reading.all_num_steps(results):
    for measure in ('frechet', 'pixel_frechet'):
      pools = _pools(results, num_steps, measure)
      if pools:
        best = min(pools, key=lambda name: pools[name].mean)
        sentences.append(
          f'At T = {num_steps} the lowest {reading.title_of(measure)} is that '
          f'of {_italic(results, best)}: {spread(pools[best], measure)}.'
        )
    pools = _pools(results, num_steps, 'frechet')
    for name, ours in pools.items():
      rivals = _rivals(results, name, pools)
      if rivals:
        clauses = [
          difference(ours, pools[rival], _italic(results, rival))
          for rival in rivals
        ]
        sentences.append(
          f'{_italic(results, name)} at T = {num_steps} reaches '
          f'{spread(ours, "frechet")}: {"; ".join(clauses)}.'
        )
  return sentences


def difference(ours: Pooled, theirs: Pooled, name: str) -> str:
  """Compares a method's distance with that of a rival of this name.

  Returns:
    "12 % below NAME", or that the two are not told apart: they differ by at
    most `CLEAR` standard errors of the difference.
  """
  relative = 100.0 * (ours.mean / theirs.mean - 1.0)
  amount = f'{abs(relative):.0f} % {"below" if relative < 0 else "above"}'
  error = reading.error_of_difference(ours, theirs)
  if math.isnan(error):
    return f'{amount} {name} (one seed: no spread known)'
  if abs(ours.mean - theirs.mean) <= CLEAR * error:
    return f'not told apart from {name} by these seeds ({amount})'
  return f'{amount} {name}'


def _pools(results: Results, num_steps: int, measure: str) -> dict[str, Pooled]:
  """A measure at one T by method, trainings pooled."""
  pools = {
    name: reading.pool(
      reading.select(results, name=name, num_steps=num_steps), measure
    )
    for name in reading.names(results, num_steps)
  }
  return {name: pooled for name, pooled in pools.items() if pooled is not None}


def _rivals(
  results: Results, name: str, others: Sequence[str] | Mapping[str, Any]
) -> list[str]:
  """The methods that an adaptive policy is compared with, by their roles."""
  first = lambda name: reading.select(results, name=name)[0]
  ours = first(name)['role']
  if ours not in (reading.ADAPTIVE, reading.SHARED):
    return []
  any_reward = (reading.HAND_MADE, reading.TUNED)
  without_adaptivity = (reading.FROZEN, reading.SHUFFLED)

  def is_rival(other: str) -> bool:
    role = first(other)['role']
    if role in any_reward:
      return True
    if role in (ours, reading.SHARED):
      return False
    # Its own: the other kind of policy has a mean and shuffled actions, too.
    own = role not in without_adaptivity or other.startswith(name)
    return own and first(other)['reward'] == first(name)['reward']

  return [
    other
    for role in reading.ROLES
    for other in others
    if role == first(other)['role'] and is_rival(other)
  ]


def _italic(results: Results, name: str) -> str:
  # Labels may hold commas; set apart, they can stand in a list.
  return f'*{reading.label_of(results, name)}*'


def _best(entries: Sequence[reading.MethodResult], measure: str) -> str:
  """The best mean of a column, as it is printed."""
  means = [
    float(entry['measures'][measure]['mean'])
    for entry in entries
    if measure in entry['measures']
  ]
  pick = max if reading.better(measure) == 'higher' else min
  return number(pick(means), measure)


def spread(pooled: Pooled, measure: str) -> str:
  """Mean ± standard deviation; the latter only where there are several."""
  return number(pooled.mean, measure) + _plus_minus(pooled.std, measure)


def _plus_minus(std: Any, measure: str) -> str:
  """The spread behind a mean; a single seed has none."""
  known = math.isfinite(float(std))
  return f' ± {number(float(std), measure)}' if known else ''


def _setting(value: Any) -> str:
  return f'{value:g}' if isinstance(value, float) else str(value)

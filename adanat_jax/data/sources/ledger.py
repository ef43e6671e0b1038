"""What a source has read, and what not: counted, named, told in one line.

A reader must not take for data what it cannot interpret, and must not leave it
out in silence either. Each reader of `data/sources` keeps a `SourceLedger`:

* `read`: images, captions, classes ...;
* `faults`: what is wrong, by kind, with the first examples. More of one kind
  than `data.max_corrupt_share` of all ends the run;
* `passed_over`: what is not wrong but was not read: files by their suffix.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import json
import os
from typing import Any

import numpy as np

from adanat_jax.data.sources import text_files
from adanat_jax.errors import UserError

# The kinds of faults: what a message calls them, and of what they are a share.
FAULTS = {
  'unreadable': ('unreadable file(s)', 'images'),
  'missing': ('missing image(s)', 'images'),
  'duplicates': ('image(s) of a name that came before', 'images'),
  'broken_rows': ('broken row(s)', 'rows'),
  'bad_texts': ('unreadable caption(s)', 'captions'),
  'empty_captions': ('empty caption(s)', 'captions'),  # see `captions.tidy`
  'without_captions': ('image(s) without a caption', 'images'),
}
_SINGULAR = {'images': 'image', 'captions': 'caption', 'classes': 'class'}
# Those that mean nothing where captions are not asked for.
_OF_CAPTIONS = frozenset(('bad_texts', 'empty_captions', 'without_captions'))

# Image formats that are not read.
_OTHER_IMAGES = frozenset(
  '.arw .avif .avifs .cr2 .cr3 .dng .eps .exr .hdr .heic .heif .hif .ico .j2k'
  ' .jp2 .jpf .jpx .jxl .nef .pfm .psd .raw .svg .tga'.split()
)
_EXAMPLES = 3
_SUFFIXES_SHOWN = 6
_LONGEST_SUFFIX = 16


@dataclasses.dataclass
class Fault:
  """Things that are wrong in the same way."""

  count: int = 0
  # Names of the first ones, with the reason.
  examples: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class SourceLedger:
  """See the module."""

  # Among how many 'images', 'captions' and 'rows' `faults` were found.
  tried: dict[str, int] = dataclasses.field(default_factory=dict)
  # In the order in which it is told.
  read: dict[str, int] = dataclasses.field(default_factory=dict)
  # By the keys of `FAULTS`.
  faults: dict[str, Fault] = dataclasses.field(default_factory=dict)
  # By suffix, or in words.
  passed_over: dict[str, int] = dataclasses.field(default_factory=dict)

  def fault(self, kind: str, example: str) -> None:
    """Counts a fault of a kind of `FAULTS`; the example says what and why."""
    found = self.faults.setdefault(kind, Fault())
    found.count += 1
    if len(found.examples) < _EXAMPLES:
      found.examples.append(text_files.shown(example))

  def count(self, kind: str) -> int:
    """How many faults of a kind there are."""
    return self.faults[kind].count if kind in self.faults else 0

  def pass_over(self, kind: str, count: int = 1) -> None:
    """Counts what is not read, by its suffix or in words."""
    self.passed_over[kind] = self.passed_over.get(kind, 0) + count

  def pass_over_file(self, name: str) -> None:
    """Counts a file that is not read."""
    base = name.rpartition('/')[2]
    suffix = os.path.splitext(base)[1].lower()
    if base.startswith('.'):
      suffix = 'hidden'
    elif not suffix or len(suffix) > _LONGEST_SUFFIX:
      suffix = 'without a suffix'
    self.pass_over(text_files.shown(suffix))

  def count_classes(self, labels: np.ndarray) -> None:
    """Adds how many classes labels int[n] have, the fewest and most of one."""
    counts = np.unique(labels, return_counts=True)[1]
    self.read['classes'] = len(counts)
    if len(counts):
      self.read['fewest_of_a_class'] = int(counts.min())
      self.read['most_of_a_class'] = int(counts.max())

  def add(self, other: SourceLedger) -> None:
    """Adds what another part of the same source has counted."""
    for ours, theirs in ((self.tried, other.tried), (self.read, other.read)):
      for name, count in theirs.items():
        ours[name] = ours.get(name, 0) + count
    for kind, fault in other.faults.items():
      our = self.faults.setdefault(kind, Fault())
      our.count += fault.count
      our.examples = [*our.examples, *fault.examples][:_EXAMPLES]
    for kind, count in other.passed_over.items():
      self.pass_over(kind, count)

  def check(self, where: str, share: float, with_captions: bool) -> None:
    """Raises UserError if too much of one kind is wrong.

    Args:
      where: the field that leads to the source, for the message.
      share: `data.max_corrupt_share`.
      with_captions: whether captions are needed.
    """
    for kind, fault in self.faults.items():
      if kind in _OF_CAPTIONS and not with_captions:
        continue
      unit = FAULTS[kind][1]
      tried = self.tried.get(unit, 0)
      if fault.count > share * tried:
        raise UserError(
          f'{where}: {self._phrase(kind)} of {tried:,} {unit};'
          f' config.data.max_corrupt_share={share} allows fewer. Mend them, or'
          ' allow more'
        )

  def line(self, where: str, with_captions: bool) -> str:
    """Says all of it in one line; arguments as `check`."""
    parts = [
      f'{count:,} {_SINGULAR[name] if count == 1 else name}'
      for name, count in self.read.items()
      if count and not name.endswith('_of_a_class')
    ]
    if 'most_of_a_class' in self.read:
      fewest, most = (self.read[f'{n}_of_a_class'] for n in ('fewest', 'most'))
      many = f'{fewest:,}' if fewest == most else f'{fewest:,} to {most:,}'
      parts.append(f'{many} in a class')
    line = f'{where}: read {", ".join(parts)}'
    wrong = [
      self._phrase(kind)
      for kind in self.faults
      if with_captions or kind not in _OF_CAPTIONS
    ]
    if wrong:
      line += f'; left out {"; ".join(wrong)}'
    if self.passed_over:
      line += f'; passed over {self.seen()}'
    return line

  def seen(self) -> str:
    """What was passed over, in words; '' for nothing."""
    ordered = sorted(self.passed_over.items(), key=lambda item: -item[1])
    shown = [f'{count:,} {kind}' for kind, count in ordered]
    if len(shown) > _SUFFIXES_SHOWN:
      rest = sum(count for _, count in ordered[_SUFFIXES_SHOWN:])
      shown = [*shown[:_SUFFIXES_SHOWN], f'{rest:,} others']
    words = ', '.join(shown)
    if not _OTHER_IMAGES.isdisjoint(self.passed_over):
      formats = sorted(_OTHER_IMAGES & self.passed_over.keys())
      words += f' (convert {", ".join(formats)} to JPEG or PNG to use them)'
    return words

  def to_json(self) -> dict[str, Any]:
    """The ledger as JSON types."""
    return dataclasses.asdict(self)

  @classmethod
  def from_json(cls, tree: Mapping[str, Any]) -> SourceLedger:
    """The ledger that `to_json` made `tree` of."""
    faults = {kind: Fault(**fault) for kind, fault in tree['faults'].items()}
    return cls(**{**tree, 'faults': faults})

  def to_array(self) -> np.ndarray:
    """The ledger as an index file keeps it."""
    return np.array(json.dumps(self.to_json()))

  @classmethod
  def from_array(cls, array: np.ndarray) -> SourceLedger:
    """The ledger that `to_array` made `array` of."""
    return cls.from_json(json.loads(str(array)))

  def _phrase(self, kind: str) -> str:
    fault = self.faults[kind]
    examples = ', '.join(fault.examples)
    more = ', ...' if fault.count > len(fault.examples) else ''
    words = FAULTS[kind][0].replace('(s)', '' if fault.count == 1 else 's')
    return f'{fault.count:,} {words} ({examples}{more})'

"""Tars with bytes and headers changed, as WebDataset and as ImageNet."""

import io
import json
import pathlib
import tarfile

from absl.testing import absltest
import numpy as np

from support import fuzzed_sources, fuzzing, raw_pictures

_KINDS = (b'0', b'\0', b'1', b'2', b'5', b'x', b'L', b'K', b'g', b'S', b'3')
_SUFFIXES = ('jpg', 'JPG', 'png', 'txt', 'json', 'cls', 'seg.png', 'v1.jpg')
_TEXTS = (
  *(b'a dog', b'', b'0', b'1', b'\xff\xfea\0', b'a caf\xe9', b'9' * 5000),
  *(b'{"caption": "a dog"}', b'{"caption": "\\ud83d"}', b'[' * 5000, b'{}'),
)
# Where a header has its fields, and how long they are.
_HEADER = ((0, 100), (100, 8), (124, 12), (136, 12), (156, 1), (157, 100))
_NUMBERS = (
  *(b'77777777777\0', b'-0000000001\0', b'\x80' + bytes(10) + b'\1', b'\xff'),
  *(b'\x80' + b'\xff' * 11, b'00000000000\0', b'00000001000\0', b'x', b''),
)


def pick(random, options):
  return options[int(random.integers(len(options)))]


def members(random: np.random.Generator, is_deep=False):
  """Names and contents of files."""
  for _ in range(random.integers(1, 9)):
    stem = pick(random, ('0', '1', 'a/0', './2', '._0', 'a.b', '__MACOSX/0'))
    suffix = pick(random, _SUFFIXES)
    data = raw_pictures.encode(raw_pictures.picture(1, 2, 2), 'PNG')
    if suffix in ('txt', 'json', 'cls'):
      data = pick(random, _TEXTS)
    yield f'{stem}.{suffix}', data
  if is_deep:
    yield 'n01440764.tar', tar(random)


def tar(random: np.random.Generator, is_deep=False) -> bytes:
  """A tar that may hold links and another tar."""
  stream = io.BytesIO()
  how = pick(random, (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT))
  with tarfile.open(fileobj=stream, mode='w', format=how) as file:
    for name, data in members(random, is_deep):
      info = tarfile.TarInfo(name * (40 if random.random() < 0.05 else 1))
      info.size = len(data)
      if random.random() < 0.1:
        info.type = pick(random, (tarfile.LNKTYPE, tarfile.SYMTYPE))
        info.linkname = pick(random, ('0.jpg', 'a/0.jpg', name, '..', ''))
        info.size = 0
      if random.random() < 0.05:
        info.pax_headers = {'comment': 'é' * 100}
      file.addfile(info, io.BytesIO(data))
  return stream.getvalue()


def with_changed_header(random: np.random.Generator, data: bytes) -> bytes:
  """Changes a field of one header, whose checksum is right again."""
  result = bytearray(data)
  blocks = [
    i for i in range(0, len(data), 512) if data[i + 257 : i + 262] == b'ustar'
  ]
  if not blocks:
    return data
  begin = pick(random, blocks)
  place, size = pick(random, _HEADER)
  value = random.bytes(size)
  if size == 1:
    value = pick(random, _KINDS)
  elif size == 12:
    value = pick(random, _NUMBERS)
  result[begin + place : begin + place + size] = value[:size].ljust(size, b'\0')
  result[begin + 148 : begin + 156] = b' ' * 8
  total = sum(result[begin : begin + 512])
  result[begin + 148 : begin + 156] = b'%06o\0 ' % total
  return bytes(result)


def make(random: np.random.Generator) -> bytes:
  """A tar, often with something wrong in it."""
  data = tar(random, is_deep=random.random() < 0.2)
  for _ in range(random.integers(0, 4)):
    data = with_changed_header(random, data)
  if random.random() < 0.3:
    data = fuzzing.mutated(random, data)
  return data


class FuzzTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.path = pathlib.Path(self.create_tempdir().full_path) / 'a.tar'
    self.enterContext(fuzzed_sources.quiet())

  def check(self, tally):
    print(f'{tally.accepted} accepted, {tally.refused} refused')
    self.assertEmpty(tally.failures[:3])
    self.assertGreater(tally.accepted, 0.02 * tally.tried)
    self.assertGreater(tally.refused, 0.2 * tally.tried)

  def test_shards(self):
    self.check(
      fuzzing.fuzz(
        make,
        lambda data: fuzzed_sources.write_and_read(
          'webdataset', self.path, data
        ),
      )
    )

  def test_class_tars(self):
    self.check(
      fuzzing.fuzz(
        make,
        lambda data: fuzzed_sources.write_and_read(
          'imagenet_tar', self.path, data
        ),
        seed=1,
      )
    )

  def test_json_of_samples(self):
    picture = raw_pictures.encode(raw_pictures.picture(1, 2, 2), 'PNG')
    note = json.dumps({'url': 'http://x/1', 'caption': 'a "dog"', 'n': [1, 2]})

    def one(random):
      stream = io.BytesIO()
      text = fuzzing.mutated(random, note.encode())
      with tarfile.open(fileobj=stream, mode='w') as file:
        for name, data in (('0.png', picture), ('0.json', text)):
          info = tarfile.TarInfo(name)
          info.size = len(data)
          file.addfile(info, io.BytesIO(data))
      return stream.getvalue()

    tally = fuzzing.fuzz(
      one,
      lambda data: fuzzed_sources.write_and_read('webdataset', self.path, data),
      seed=2,
    )
    # Nothing is refused where as much as one may be wrong.
    print(f'{tally.accepted} accepted, {tally.refused} refused')
    self.assertEmpty(tally.failures[:3])


if __name__ == '__main__':
  absltest.main()

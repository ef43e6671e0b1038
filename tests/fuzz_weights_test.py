"""Whatever stands in a file of weights: right arrays, or one clear line.

Cheap by default; `FUZZ_TRIES=5000 python tests/fuzz_weights_test.py` searches
for longer.
"""

from __future__ import annotations

import io
import json
import pathlib
import struct
from typing import Any
from unittest import mock
import zipfile

from absl.testing import absltest, parameterized
from flax import serialization
import numpy as np
from safetensors.numpy import save

from adanat_jax.convert import entries, files, kinds, layout
from adanat_jax.errors import UserError
from support import fuzzing, torch_files
from support.converting import files_subset, weights_of

SMALL = {
  'a.weight': np.arange(6, dtype=np.float32).reshape(2, 3),
  'a.bias': np.ones(3, np.float64),
  'b': np.arange(4, dtype=np.int64),
}
HELD = {
  'model': SMALL,
  'model_ema': {'module.' + key: x * 2 for key, x in SMALL.items()},
  'step': 3,
  'loss': [0.5, None, True],
}
KEYS = (
  ('model', 'model_ema', 'state_dict', 'optimizer', 'x'),
  ('ema', 'ema_2', 'nnet', 'model', 'swa'),
  ('a.weight', 'a.bias', '_orig_mod.a', 'module.b', 'ema.a'),
  (0, 1, 2, -1, 1 << 33),
)
# Names that a pickle may mention, and a few that it may not.
NAMES = (
  b'torch._utils _rebuild_tensor_v2', b'torch._utils _rebuild_parameter',
  b'torch._tensor _rebuild_from_type_v2', b'torch FloatStorage',
  b'torch Size', b'torch device', b'torch float32', b'argparse Namespace',
  b'copyreg _reconstructor', b'collections OrderedDict',
  b'collections defaultdict', b'_codecs encode', b'builtins set',
  b'builtins frozenset', b'builtins object', b'numpy dtype', b'numpy ndarray',
  b'numpy.core.multiarray scalar', b'numpy.core.multiarray _reconstruct',
  b'os system', b'builtins eval', b'builtins getattr',
)  # fmt: skip


def save_bytes(save: Any, value: Any) -> bytes:
  """Returns what a function of `torch_files` writes to a path."""
  path = pathlib.Path(absltest.TEST_TMPDIR.value, 'saved')
  path.parent.mkdir(parents=True, exist_ok=True)
  save(path, value)
  return path.read_bytes()


def npz_bytes(arrays, compressed=False) -> bytes:
  buffer = io.BytesIO()
  (np.savez_compressed if compressed else np.savez)(buffer, **arrays)
  return buffer.getvalue()


FORMATS = {
  'zip': lambda: save_bytes(torch_files.save_zip, HELD),
  'legacy': lambda: save_bytes(torch_files.save_legacy, HELD),
  'safetensors': lambda: save(SMALL),
  'npz': lambda: npz_bytes(SMALL),
  'npz_compressed': lambda: npz_bytes(SMALL, compressed=True),
  'msgpack': lambda: serialization.msgpack_serialize(
    {**HELD, 'loss': {'x': 1j, 'y': np.float32(2)}}
  ),
}


def numpy_scalar(code: str, size: int) -> torch_files.Call:
  """A number of NumPy, as a pickle holds it."""
  text = torch_files.Call(
    torch_files.Global('_codecs', 'encode'), ('\0' * size, 'latin1')
  )
  kind = torch_files.Call(
    torch_files.Global('numpy', 'dtype'),
    (code, False, True),
    (3, '<', None, None, None, -1, -1, 0),
  )
  return torch_files.Call(
    torch_files.Global('numpy.core.multiarray', 'scalar'), (kind, text)
  )


def zipped(random: np.random.Generator, contents: dict[str, bytes]) -> bytes:
  """A zip file, stored or compressed, whose checksums are right."""
  buffer = io.BytesIO()
  method = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)[random.integers(2)]
  with zipfile.ZipFile(buffer, 'w', method) as archive:
    for name, content in contents.items():
      archive.writestr(name, content)
  return buffer.getvalue()


def torch_zip(pickled: bytes) -> bytes:
  return save_bytes(torch_files.save_zip, pickled)


def pick(random: np.random.Generator, values: Any) -> Any:
  return values[random.integers(len(values))]


def integer(random: np.random.Generator) -> int:
  """A number that is small, or as large as some field can hold."""
  return int(random.integers(-2, 5)) + pick(
    random, (0, 0, 0, 7, 1 << 15, 1 << 31, 1 << 32, (1 << 61) - 1, 1 << 62)
  )


def literal(random: np.random.Generator) -> bytes:
  """An opcode that pushes one value."""
  number, text = integer(random), pick(random, (b'', b'cpu', b'0', b'x' * 3000))
  return pick(
    random,
    (
      b'N',
      b'\x88',
      b'K' + random.bytes(1),
      b'J' + random.bytes(4),
      b'\x8a\x09' + number.to_bytes(9, 'little', signed=True),
      b'G' + random.bytes(8),
      b'X' + struct.pack('<I', len(text)) + text,
      b'\x8c' + bytes([len(text) % 200]) + text[: len(text) % 200],
      b'B' + struct.pack('<I', len(text)) + text,
      b')',
      b']',
      b'}',
      b'\x8f',
      b'I%d\n' % number,
      b'L%dL\n' % number,
      b'F%d.5\n' % number,
      b"S'ab'\n",
    ),
  )


def operation(random: np.random.Generator) -> bytes:
  """A few opcodes, most of which make sense after some values."""
  name = pick(random, NAMES)
  index = bytes([random.integers(6)])
  return pick(
    random,
    (
      b'(' + literal(random) * int(random.integers(4)) + b't',
      b'(' + literal(random) * int(random.integers(4)) + b'l',
      b'c' + name.replace(b' ', b'\n') + b'\n',
      b'c' + name.replace(b' ', b'\n') + b'\n' + literal(random) + b'\x85R',
      b'q' + index,
      b'h' + index,
      b'\x85',
      b'\x86',
      b'\x87',
      b'R',
      b'b',
      b'Q',
      b'a',
      b's',
      b'(' + literal(random) * 2 + b'u',
      b'(' + literal(random) + b'e',
      b'(' + literal(random) + b'\x90',
      b'2',
      b'0',
      b'\x94',
      b'\x93',
      random.bytes(2),
    ),
  )


def loops(random: np.random.Generator) -> bytes:
  """A few opcodes, again and again."""
  loop = b''.join(operation(random) for _ in range(random.integers(1, 4)))
  return loop * int(random.integers(1, 20_000))


def held(random: np.random.Generator, depth: int = 0) -> Any:
  """What a file may hold, for `torch_files`; now and then, something wrong."""
  kind = random.integers(12 if depth < 4 else 6)
  if kind == 0:
    return pick(random, (None, True, 1.5, 'text', '', integer(random)))
  if kind == 1:
    return np.zeros(random.integers(3, size=random.integers(3)), np.float32)
  if kind == 2:
    size = pick(random, (0, 1, 2, 6))
    return torch_files.Tensor(
      np.arange(6, dtype=np.float32),
      pick(random, (0, 0, 0, 1, integer(random))),
      (size, pick(random, (1, 1, 2, integer(random)))),
      (pick(random, (0, 1)), pick(random, (0, 1, integer(random)))),
    )
  if kind == 3:
    return numpy_scalar(pick(random, ('f8', 'f8', 'i2', 'O8', 'U2')), 8)
  if kind == 4:
    return torch_files.Raw(literal(random))
  if kind == 5 and random.random() < 0.2:
    return torch_files.Raw(pick(random, (operation, loops))(random))
  inside = [held(random, depth + 1) for _ in range(random.integers(5))]
  if kind < 8:
    return dict(zip(pick(random, KEYS), inside, strict=False))
  if kind == 8:
    return torch_files.namespace(**dict(zip('abcde', inside, strict=False)))
  return tuple(inside) if kind == 9 else inside


def pickle(random: np.random.Generator) -> bytes:
  """A pickle that torch.save could have written, or almost."""
  code = torch_files.Writer().dump(held(random))
  return fuzzing.mutated(random, code) if random.random() < 0.3 else code


def random_opcodes(random: np.random.Generator) -> bytes:
  """A pickle of random operations; some of them again and again."""
  parts = [
    pick(random, (literal, operation))(random)
    for _ in range(random.integers(1, 30))
  ]
  if random.random() < 0.3:
    parts.insert(random.integers(len(parts)), loops(random))
  return b'\x80\x02' + b''.join(parts) + b'.'


def header(random: np.random.Generator) -> bytes:
  """The header of an .npy file, or something like it."""
  kind = "'<f4'" if random.random() < 0.7 else pick(
    random,
    ("'>f4'", "'|O'", "'<f'", "'(2,,,'", "''", "'V9'", "[('a','<f4')]", "'f2'",
     "'<U1'", "'M8[s]'", '3', '(' * 900, "'''"),
  )  # fmt: skip
  shape = '(3,)' if random.random() < 0.7 else pick(
    random, ('()', '(3,)', '(3L,)', '(0, 4611686018427387904)', '(3', '3',
             '(-1,)', '(1,' * 70 + ')' * 70, f'({"1," * 70})', "('3',)")
  )  # fmt: skip
  order = pick(random, ('True', 'False', 'True', 'False', '1'))
  members = [
    f"'descr': {kind}", f"'fortran_order': {order}", f"'shape': {shape}",
  ]  # fmt: skip
  random.shuffle(members)
  text = '{' + ', '.join(members) + ', }'
  if random.random() < 0.2:
    text = fuzzing.mutated(random, text.encode()).decode('latin1')
  raw = text.encode('latin1') + b'\n'
  version = pick(random, (1, 1, 1, 2, 3, 4))
  size = struct.pack('<H' if version == 1 else '<I', len(raw))
  data = np.arange(3, dtype=np.float32).tobytes()
  return b'\x93NUMPY' + bytes([version, 0]) + size + raw + data


def tree(random: np.random.Generator, depth: int = 0) -> Any:
  """A value of JSON, more often of the kind that safetensors holds."""
  if depth > 3 or random.random() < 0.4:
    return pick(
      random,
      (None, True, 'F32', 'F64', '', 0, -1, 12, 1 << 63, 1.5, [0, 12], [3], []),
    )
  if random.random() < 0.3:
    return [tree(random, depth + 1) for _ in range(random.integers(4))]
  names = ('dtype', 'shape', 'data_offsets', 'x', '__metadata__')
  return {
    pick(random, names): tree(random, depth + 1)
    for _ in range(random.integers(5))
  }


def safetensors_header(random: np.random.Generator) -> bytes:
  good = {'x': {'dtype': 'F32', 'shape': [3], 'data_offsets': [0, 12]}}
  value = tree(random)
  if random.random() < 0.7:
    good['x'][pick(random, list(good['x']))] = tree(random, 2)
    value = pick(random, (good, {**good, 'y': tree(random)}))
  raw = json.dumps(value).encode()
  if random.random() < 0.2:
    raw = b'{"x":' * int(random.integers(1, 3000)) + raw
  return struct.pack('<Q', len(raw)) + raw + bytes(12)


def msgpack(random: np.random.Generator, depth: int = 0) -> bytes:
  """A value of msgpack, or something that claims to be one."""
  if depth > 3 or random.random() < 0.3:
    return random.bytes(int(random.integers(1, 12)))
  inside = [msgpack(random, depth + 1) for _ in range(random.integers(4))]
  body = b''.join(inside)
  claimed = len(inside) + int(random.random() < 0.1)
  array = b'\x93\x91\x03\xa7float32\xc4\x0c' + bytes(12)
  return pick(
    random,
    (
      bytes([0x90 + claimed]) + body,
      bytes([0x80 + claimed])
      + b''.join(b'\xa1' + bytes([97 + i]) + x for i, x in enumerate(inside)),
      b'\xdd' + struct.pack('>I', claimed * pick(random, (1, 1 << 28))) + body,
      b'\xdf' + struct.pack('>I', claimed * pick(random, (1, 1 << 28))) + body,
      b'\xc7' + bytes([len(array), 1]) + array,
      b'\xc7' + bytes([len(array), 3]) + fuzzing.mutated(random, array),
      b'\xc8' + struct.pack('>HB', len(body), pick(random, (1, 2, 3))) + body,
      b'\x82\xb9__msgpack_chunked_array__\xc3\xa5shape' + body,
    ),
  )


# A file of the tests for each kind, and what its keys begin with.
WEIGHTS = {
  'nat': ('uvit_class_shared', ''),
  'enat': ('enat_shared', ''),
  'vqgan': ('vqgan_shared', ''),
  'policy': ('policy_shared', 'actor.'),
  'discriminator': ('projdisc_class_shared', ''),
  'dino': ('projdisc_class_shared', 'dino.model.model.'),
  'clip_text': ('clip_text_open_clip', ''),
  'maskgit_transformer': ('maskgit_transformer_shared', 'params/'),
  'maskgit_tokenizer': ('maskgit_vqgan_shared', 'params/'),
}


def alter(random: np.random.Generator, arrays: dict[str, np.ndarray]) -> None:
  """Changes one of some arrays: its name, type, numbers or shape."""
  key = pick(random, list(arrays))
  x = arrays.pop(key)
  change = random.integers(6)
  if change == 0 and arrays:
    return
  arrays[key] = x
  if change == 1:
    arrays[f'{key}.{pick(random, (0, 7, 10**9))}.x'] = x
  elif change == 2 and x.size < 1 << 20:
    arrays[key] = x.astype(pick(random, ('f2', 'c8', 'i1', 'U3', 'b1', '>f8')))
  elif change == 3 and x.size < 1 << 20:
    arrays[key] = np.full_like(x, np.nan)
  elif change > 3:
    shape, size = list(x.shape), pick(random, (0, 1, 2, 3, 7, 1 << 20))
    if shape and change == 4:
      shape[random.integers(len(shape))] = size
    else:
      shape = [size] * int(random.integers(4))
    arrays[key] = np.broadcast_to(np.float32(0), shape)


class FuzzWeightsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.path = pathlib.Path(self.create_tempdir().full_path, 'weights')

  def read(self, content: bytes) -> None:
    """Reads a file, and finds what it holds, if anything."""
    self.path.write_bytes(content)
    value = files.read(self.path)
    try:
      entries.find(value)
    except UserError as error:
      self.assertTrue(str(error).isprintable())

  def check(self, make, act=None, **kwargs) -> fuzzing.FuzzTally:
    tally = fuzzing.fuzz(make, act or self.read, **kwargs)
    if tally.failures:
      self.fail('\n'.join(tally.failures[:3]))
    print(f'{self.id()}: {tally.accepted} read, {tally.refused} refused')
    return tally

  @parameterized.parameters(sorted(FORMATS))
  def test_mutated_bytes(self, name):
    content = FORMATS[name]()
    self.read(content)
    self.check(lambda random: fuzzing.mutated(random, content))

  def test_mutated_pickles_whose_checksums_are_right(self):
    pickled = torch_files.Writer().dump(dict.fromkeys('abc', 1))
    held = torch_files.Writer().dump(HELD)
    self.check(
      lambda random: torch_zip(
        fuzzing.mutated(random, pick(random, (pickled, held)))
      )
    )

  def test_random_pickles(self):
    self.check(lambda random: torch_zip(pickle(random)))

  def test_random_opcodes(self):
    self.check(lambda random: torch_zip(random_opcodes(random)))

  def test_random_pickles_in_the_old_format(self):
    start = FORMATS['legacy']()
    start = start[: start.index(b'\x80\x02}(X\x05\x00\x00\x00model')]
    self.check(lambda random: start + random_opcodes(random) + b'\x80\x02].')

  def test_headers_of_npz(self):
    self.check(
      lambda random: zipped(
        random, {f'{i}.npy': header(random) for i in range(random.integers(3))}
      )
    )

  def test_headers_of_safetensors(self):
    self.check(safetensors_header)

  def test_random_msgpack(self):
    self.check(msgpack)

  def test_first_bytes(self):
    starts = (b'PK\x03\x04', b'\x80\x02', b'<html>', b'version https://git-lfs',
              b'{"weight_map": ', b'\xff\xfe', b'\x1f\x8b', b'\x93NUMPY',
              b'', b'\0' * 300)  # fmt: skip
    self.check(
      lambda random: (
        pick(random, starts) + random.bytes(int(random.integers(1, 600)))
      )
    )

  def test_arrays_that_do_not_fit(self):
    originals = {
      kind: files_subset(weights_of(file), prefix)
      for kind, (file, prefix) in WEIGHTS.items()
    }
    originals['fid_stats'] = {'mu': np.zeros(3), 'sigma': np.eye(3)}
    # A network of the same sizes has the same shapes; tracing takes a second.
    traced, shapes = {}, layout.shapes

    def shapes_of(*network: Any, **options: Any) -> Any:
      key = repr((network, options))
      if key not in traced:
        traced[key] = shapes(*network, **options)
      return traced[key]

    self.enter_context(mock.patch.object(layout, 'shapes', shapes_of))
    for kind, arrays in originals.items():
      kinds.convert(kind, arrays)

    def altered(random: np.random.Generator) -> tuple[str, dict[str, Any]]:
      kind = pick(random, list(originals))
      result = dict(originals[kind])
      for _ in range(random.integers(3)):
        alter(random, result)
      return kind, result

    self.check(altered, lambda case: kinds.convert(*case))


if __name__ == '__main__':
  absltest.main()

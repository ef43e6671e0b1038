"""Converts published weights into checkpoints of this package, and back.

  python -m adanat_jax.convert --kind=nat --input=nnet_ema.pth --output=nat-l
  python -m adanat_jax.convert --kind=nat --input=nat-l --output=nat.safetensors
      --reverse

The result has the form of a finished stage: give its directory to a config's
`init_from`. With --reverse a checkpoint, converted or trained here, is written
with the original's keys.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
import hashlib
import io
import pathlib
import shutil
import sys
import textwrap
from typing import Any

import jax
import numpy as np

from adanat_jax.convert import entries, files, formats, kinds
from adanat_jax.convert.kinds import KINDS, Kind, release_of
from adanat_jax.errors import UserError
from adanat_jax.runtime import checkpoint, files as plain_files, journal


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
  kinds = '\n'.join(
    textwrap.fill(
      f'{name}: {kind.what}. Published: {kind.source}.',
      width=78,
      initial_indent='  ',
      subsequent_indent='      ',
      break_on_hyphens=False,
    )
    for name, kind in KINDS.items()
  )
  parser = argparse.ArgumentParser(
    prog='python -m adanat_jax.convert',
    description=__doc__,
    epilog=f'kinds:\n{kinds}\n\nLicences and steps: docs/weights.md.',
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument(
    '--kind', required=True, choices=list(KINDS), help='what the weights are'
  )
  parser.add_argument(
    '--input',
    required=True,
    action='append',
    help=f'a file: {formats.READ}; again for each further part of a file'
    ' that was split; with --reverse a checkpoint',
  )
  parser.add_argument(
    '--output',
    required=True,
    help='a new directory; with --reverse a .safetensors file',
  )
  parser.add_argument(
    '--entry',
    default='',
    help='which of the sets of weights in the file, such as model, or'
    ' state/model; the average (EMA) if it is not given and there is one',
  )
  parser.add_argument(
    '--reverse', action='store_true', help="write the original's keys"
  )
  return parser.parse_args(arguments)


def _count(tree: Any) -> int:
  return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(tree))


def _sha256_of(path: str) -> str:
  with pathlib.Path(path).open('rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def _check_output(path: pathlib.Path, ending: str) -> None:
  if path.suffix != ending:
    expected = f'a {ending} file' if ending else 'a directory without an ending'
    raise UserError(f'--output={path} has to be {expected} for this kind')
  if path.exists() and not (path.is_dir() and not any(path.iterdir())):
    raise UserError(f'--output={path} exists already; choose another')
  plain_files.make_directory(path.parent)


def _write_npz(path: pathlib.Path, arrays: Mapping[str, Any]) -> None:
  buffer = io.BytesIO()
  np.savez(buffer, **arrays)
  plain_files.write_bytes(path, buffer.getvalue())


def convert(
  name: str, inputs: Sequence[str], output: str, entry: str = ''
) -> list[str]:
  """Converts foreign weights, a file or its parts, to a checkpoint.

  Args:
    name: a key of `KINDS`.
    inputs: the files.
    output: the new checkpoint's directory.
    entry: which of the sets of weights in the file; '' for the usual one.

  Returns:
    What was found and written, line by line.

  Raises:
    UserError: if a file cannot be read, is of another kind, or if its keys or
      shapes do not fit.
  """
  path = pathlib.Path(output)
  is_stats = name == 'fid_stats'
  _check_output(path, '.npz' if is_stats else path.suffix)
  value = files.read_parts(inputs)
  try:
    converted = kinds.convert(name, value, entry)
  except UserError as error:
    raise UserError(f'{", ".join(inputs)}: {error}') from error
  lines = [f'{name}: {note}' for note in converted.notes]
  if is_stats:
    _write_npz(path, converted.state)
    return [*lines, f'written: {path}']
  count = _count(converted.counted)
  lines.append(f'{name}: {count:,} parameters, {release_of(count)}')
  about = {
    'kind': name,
    'files': [pathlib.Path(i).name for i in inputs],
    # Figures are named after published weights only if these are they.
    'sha256': {pathlib.Path(i).name: _sha256_of(i) for i in inputs},
    'parameters': count,
    'notes': lines,
  }
  # A conversion that is killed leaves no output: its name appears last.
  partial = path.with_name(f'.{path.name}.partial')
  shutil.rmtree(partial, ignore_errors=True)
  try:
    with checkpoint.Checkpointer(partial) as checkpointer:
      checkpointer.save(0, converted.state, {'converted': about})
      # Orbax has its own copy now and takes its time to write it: the file
      # need not stay in memory beside it.
      del value, converted
      checkpointer.wait()
    journal.mark_complete(partial, 0, {'parameters': count})
    with plain_files.writing(path):
      partial.replace(path)
  finally:
    shutil.rmtree(partial, ignore_errors=True)
  return [*lines, f'written: {path}, for the init_from of a config']


def reverse(name: str, source: str, output: str) -> list[str]:
  """Writes a checkpoint with the original's keys; the inverse of `convert`.

  The source is a converted checkpoint, or a stage's directory.

  Returns:
    What was written, line by line.

  Raises:
    UserError: if there is no such checkpoint or it holds another kind.
  """
  kind, path = KINDS[name], pathlib.Path(output)
  arrays: Mapping[str, np.ndarray]
  if name == 'fid_stats':
    _check_output(path, '.npz')
    arrays = _back(kind, name, source, entries.find_arrays(files.read(source)))
    _write_npz(path, arrays)
  else:
    _check_output(path, '.safetensors')
    arrays = _back(kind, name, source, jax.device_get(_load(kind, source)))
    files.write_safetensors(path, arrays, {'kind': name, 'format': 'pt'})
  return [f'{name}: {_count(arrays):,} numbers in {len(arrays)} arrays',
          f'written: {path}']  # fmt: skip


def _back(
  kind: Kind, name: str, source: str, state: Mapping[str, Any]
) -> Mapping[str, np.ndarray]:
  try:
    return kind.reverse(state)
  except KeyError as error:
    raise UserError(f'{source} holds no {name}: {error.args[0]}') from error
  except UserError as error:
    raise UserError(f'{source}: {error}') from error


def _load(kind: Kind, source: str) -> dict[str, Any]:
  state = {}
  for field in kind.fields:
    try:
      state[field.rstrip('?')] = checkpoint.load_params(
        source, field.rstrip('?')
      )
    except UserError:
      if not field.endswith('?'):
        raise
  return state


def main(arguments: Sequence[str] | None = None) -> int:
  """Runs the command line; users' mistakes are one line and status 2."""
  options = _parse(arguments)
  try:
    if options.reverse:
      if len(options.input) > 1 or options.entry:
        raise UserError('--reverse takes one --input and no --entry')
      lines = reverse(options.kind, options.input[0], options.output)
    else:
      lines = convert(
        options.kind, options.input, options.output, options.entry
      )
  except UserError as error:
    print('adanat_jax:', *str(error).split(), file=sys.stderr)
    return error.status
  except MemoryError:
    print('adanat_jax: there is not enough memory for this', file=sys.stderr)
    return 2
  print('\n'.join(lines))
  return 0


if __name__ == '__main__':
  sys.exit(main())

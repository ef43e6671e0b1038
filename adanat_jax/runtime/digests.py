"""Hashes of files, by which others can tell that they have the same ones."""

import hashlib
import os
import pathlib

_PIECE = 1 << 20


def sha256_of(path: str | os.PathLike[str]) -> str:
  """The SHA-256 of a file, in hexadecimal digits."""
  digest = hashlib.sha256()
  with pathlib.Path(path).open('rb') as file:
    while piece := file.read(_PIECE):
      digest.update(piece)
  return digest.hexdigest()


def sha256_of_bytes(data: bytes) -> str:
  """The SHA-256 of bytes, in hexadecimal digits."""
  return hashlib.sha256(data).hexdigest()

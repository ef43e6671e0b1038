"""Small files that ask for much: one clear line, soon, in little memory."""

import json
import pathlib
import subprocess
import sys

from absl.testing import absltest

from support import bombs

# Some are weights without sense, and are read.
_READ = ('npz_many', 'safetensors_many')
_MAX_SECONDS = 8
_MAX_MIB = 700

# Reads each file in a process of its own, and reports what that took.
_CHILD = """
import json, os, pathlib, sys
from adanat_jax.convert import entries, files
from adanat_jax.errors import UserError

def read(path):
  try:
    entries.find(files.read(path))
    return 'read'
  except UserError as error:
    return str(error)

for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
  out, into = os.pipe()
  pid = os.fork()
  if not pid:
    os.write(into, read(path).encode())
    os._exit(0)
  os.close(into)
  with os.fdopen(out) as pipe:
    message = pipe.read()
  _, status, used = os.wait4(pid, 0)
  print(json.dumps([path.name, status, message, used.ru_utime + used.ru_stime,
                    used.ru_maxrss >> 10]))
"""


class BombsTest(absltest.TestCase):
  def test_each_ends_soon(self):
    folder = pathlib.Path(self.create_tempdir().full_path)
    for name, make in bombs.all_bombs().items():
      content = make()
      self.assertLess(len(content), 10 << 20, name)
      (folder / name).write_bytes(content)
    child = subprocess.run(
      [sys.executable, '-c', _CHILD, str(folder)],
      capture_output=True,
      text=True,
      check=True,
    )
    reports = [json.loads(line) for line in child.stdout.splitlines()]
    self.assertLen(reports, len(bombs.all_bombs()))
    for name, status, message, seconds, mib in reports:
      with self.subTest(name):
        self.assertEqual((status, child.stderr), (0, ''))
        self.assertEqual(message == 'read', name in _READ)
        self.assertTrue(message.isprintable())
        self.assertLess(len(message), 400)
        self.assertLess(seconds, _MAX_SECONDS)
        self.assertLess(mib, _MAX_MIB)


if __name__ == '__main__':
  absltest.main()

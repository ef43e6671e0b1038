"""A `gcloud` for the tests of launch/: takes what the real one takes.

It is run with a directory as its first argument and gcloud's own after it. The
directory holds, as files:

  calls.jsonl  every call, as a list of words;
  fates.json   for each slice that will be created, the states that it shows,
               one more at each listing; the last stays. `ACTIVE/X` is an
               ACTIVE queued resource with a machine in state X;
  slice.json   the slice that is there: its name and the states to come;
  worker-N/    the home directory of a worker, while the slice is ACTIVE.

Commands that gcloud lacks, flags that the command lacks (gcloud_flags.json),
values that are missing and values too many end with status 2, as there.
"""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

_FLAGS = pathlib.Path(__file__).parents[1] / 'data' / 'gcloud_flags.json'
_WORKERS = 2


def parse(words):
  """Splits a command line into (command, positional words, flags).

  Raises:
    ValueError: the real gcloud would not take it.
  """
  table = json.loads(_FLAGS.read_text())
  known = [
    command
    for command in table['commands']
    if words[: len(command.split())] == command.split()
  ]
  if not known:
    raise ValueError(f'Invalid choice: {words}')
  command = max(known, key=len)
  kinds = table['commands'][command], table['everywhere']
  positional, flags = [], {}
  rest = iter(words[len(command.split()) :])
  for word in rest:
    flag, equals, value = word.partition('=')
    if not word.startswith('--'):
      positional.append(word)
    elif any(flag in kind['switch'] for kind in kinds):
      if equals:
        raise ValueError(f'{flag}: takes no value')
      flags[flag] = True
    elif any(flag in kind['value'] for kind in kinds):
      flags[flag] = value if equals else next(rest, None)
      if flags[flag] is None:
        raise ValueError(f'{flag}: expected one argument')
    else:
      raise ValueError(f'unrecognized arguments: {flag}')
  return command, positional, flags


def power_off(home):
  """Ends what runs on the worker with this home directory, at once."""
  try:
    pid = int((home / 'adanat_jax_launch' / 'pid').read_text())
    os.killpg(os.getpgid(pid), signal.SIGKILL)
  except (FileNotFoundError, ProcessLookupError):
    pass


class Cloud:
  """What is there, kept in the files of a directory."""

  def __init__(self, directory):
    self.directory = pathlib.Path(directory)
    self.file = self.directory / 'slice.json'
    self.slice = json.loads(self.file.read_text()) if self.file.exists() else {}

  def homes(self):
    return [self.directory / f'worker-{i}' for i in range(_WORKERS)]

  def save(self):
    """Writes what is there, and lets the machines appear and disappear."""
    self.file.write_text(json.dumps(self.slice))
    for home in self.homes():
      if self.states()[0] == 'ACTIVE':
        home.mkdir(exist_ok=True)
        continue
      power_off(home)
      shutil.rmtree(home, ignore_errors=True)

  def states(self):
    """The states of the queued resource and of its machine, '' if not there."""
    queued, _, node = self.slice.get('fate', [''])[0].partition('/')
    return queued, node or ('READY' if queued == 'ACTIVE' else '')

  def create(self, name):
    fates = json.loads((self.directory / 'fates.json').read_text())
    if self.slice:
      sys.exit('ALREADY_EXISTS')
    if not fates:
      sys.exit('RESOURCE_EXHAUSTED')
    fate = fates.pop(0)
    self.slice = {'name': name, 'fate': fate[:1] + fate}
    (self.directory / 'fates.json').write_text(json.dumps(fates))
    self.save()

  def listing(self, kind):
    if kind == 'queued-resources' and len(self.slice.get('fate', [])) > 1:
      del self.slice['fate'][0]
      self.save()
    state = self.states()[kind == 'tpu-vm']
    if state:
      # Another's, whose name begins as ours does.
      print(f'{self.slice["name"]}-2\tFAILED')
      print(f'{self.slice["name"]}\t{state}')

  def delete(self, name):
    if name != self.slice.get('name'):
      sys.exit('NOT_FOUND')
    self.slice = {}
    self.save()

  def workers(self, name, which):
    if name != self.slice.get('name') or self.states() != ('ACTIVE', 'READY'):
      sys.exit('cannot connect')
    return self.homes() if which == 'all' else [self.homes()[int(which)]]

  def scp(self, source, target, which):
    name, _, path = target.partition(':')
    for home in self.workers(name, which):
      subprocess.run(['cp', '-R', source, home / path], check=True)

  def ssh(self, name, which, command):
    """Runs it the way gcloud and sshd do: split, joined, read by a shell."""
    status = 0
    for home in self.workers(name, which):
      process = subprocess.run(
        ['sh', '-c', ' '.join(command.split(' '))],
        cwd=home,
        env={**os.environ, 'HOME': str(home)},
        stdin=subprocess.DEVNULL,
      )
      status = status or process.returncode
    sys.exit(status)


def main(directory, *words):
  """Records the call, and does what it says."""
  cloud = Cloud(directory)
  with (cloud.directory / 'calls.jsonl').open('a') as calls:
    calls.write(json.dumps(words) + '\n')
  try:
    command, positional, flags = parse(list(words))
  except ValueError as error:
    print('gcloud:', error, file=sys.stderr)
    sys.exit(2)
  kind, verb = command.split()[-2:]
  if verb == 'create':
    cloud.create(*positional)
  elif verb == 'list':
    cloud.listing(kind)
  elif verb == 'delete':
    cloud.delete(*positional)
  elif verb == 'scp':
    cloud.scp(*positional, flags.get('--worker', '0'))
  elif verb == 'ssh':
    cloud.ssh(*positional, flags.get('--worker', '0'), flags['--command'])


if __name__ == '__main__':
  main(*sys.argv[1:])

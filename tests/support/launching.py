"""A place to try the scripts of launch/ in: a tree, fake programs, a shell."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

from absl.testing import absltest

from support import fake_gcloud

ROOT = pathlib.Path(__file__).parents[2]
NAMES = {
  'PROJECT': 'my-project',
  'ZONE': 'us-central2-b',
  'NAME': 'adanat',
  'ACCELERATOR_TYPE': 'v4-16',
  'RUNTIME_VERSION': 'tpu-ubuntu2204-base',
}
# What env.sh and worker.sh read, and must not come from whoever tests.
_OURS = (
  *NAMES,
  *('HOSTS', 'EXTRA', 'PYTHON', 'REPOSITORY', 'REVISION', 'BUCKET', 'NFS'),
  *('MOUNT', 'POLL', 'PATIENCE', 'MAX_FAILURES', 'DRY_RUN', 'XDG_CACHE_HOME'),
  'ADANAT_JAX_SECRET',
)

# The fakes know the worker by its home directory. Python keeps what it was
# called with and ends as the next word of the file `ends` says: with a code,
# or when it is asked to. `ends-worker-N` is for one worker alone.
_PROGRAMS = {
  'gcloud': 'exec {python} -S -E {here}/fake_gcloud.py {cloud} "$@"',
  'hostname': 'basename "$HOME"',
  'uv': """
echo "uv $*" >>"$HOME/did"
[[ $1 != venv ]] || { mkdir -p "${!#}/bin"; cp {bin}/run "${!#}/bin/python"; }
""",
  'run': """
printf '%s\\n' "$@" '' >>"$HOME/args"
echo "$ADANAT_JAX_SECRET" >>"$HOME/secrets"
starts={cloud}/starts-$(basename "$HOME")
echo >>"$starts"
own={cloud}/ends-$(basename "$HOME")
[[ -e $own ]] || own={cloud}/ends
read -r -a ends <"$own"
end=${ends[$(wc -l <"$starts") - 1]}
trap 'exit 143' TERM
[[ $end == term ]] || exit "$end"
while :; do sleep 0.05; done
""",
}


def shell(*words, **kwargs):
  """Runs a program; returns what subprocess.run does, output as text."""
  return subprocess.run(words, capture_output=True, text=True, **kwargs)


def flags_of(call, command):
  """The flags of a recorded call of `command`, None if it is another's."""
  words = command.split()
  return call[len(words) :] if call[: len(words)] == words else None


class LaunchTest(absltest.TestCase):
  """A working tree with launch/ in it, and a cloud with two workers a slice.

  Attributes:
    tree: a git repository; `tree / 'launch'` holds the scripts.
    cloud: the directory of the fake gcloud (see fake_gcloud.py).
    env: the environment that the scripts get.
  """

  def setUp(self):
    super().setUp()
    top = pathlib.Path(self.create_tempdir().full_path)
    # Paths with spaces, in which every missing quote shows.
    self.tree = top / 'a tree'
    self.cloud = top / 'cloud'
    self.bin = top / 'bin'
    self.home = top / 'my home'
    for path in (self.tree, self.cloud, self.bin, self.home):
      path.mkdir()
    shutil.copytree(ROOT / 'launch', self.tree / 'launch')
    shell('git', 'init', '--quiet', str(self.tree))
    for name, text in _PROGRAMS.items():
      self.program(name, text)
    self.env = {
      key: value for key, value in os.environ.items() if key not in _OURS
    } | {
      'PATH': f'{self.bin}:{os.environ["PATH"]}',
      'HOME': str(self.home),
      'POLL': '0.05',
      **NAMES,
    }
    self.fates(['ACTIVE'])
    self.ends('term')
    self.addCleanup(self.power_off)

  def program(self, name, text):
    """Puts a fake program on the PATH."""
    for word, value in (
      ('{python}', sys.executable),
      ('{here}', str(pathlib.Path(__file__).parent)),
      ('{cloud}', str(self.cloud)),
      ('{bin}', str(self.bin)),
    ):
      text = text.replace(word, value)
    path = self.bin / name
    path.write_text(f'#!/usr/bin/env bash\n{text}\n')
    path.chmod(0o755)

  def power_off(self):
    """Ends what a test left running on the workers."""
    for home in (self.home, *self.cloud.glob('worker-*')):
      fake_gcloud.power_off(home)

  def fates(self, *fates):
    """The states that the slices show, one list for each that is created."""
    (self.cloud / 'fates.json').write_text(json.dumps(fates))

  def ends(self, *ends, worker=None):
    """How the runs of each worker, or of one, end: exit codes, or 'term'."""
    name = 'ends' if worker is None else f'ends-worker-{worker}'
    (self.cloud / name).write_text(' '.join(map(str, ends)) + '\n')

  def starts(self, number):
    """How often a run was started on a worker, of all slices."""
    return (self.cloud / f'starts-worker-{number}').read_text().count('\n')

  def launch(self, script, *words, status=0, timeout=60, **env):
    """Runs a script of launch/; returns what it printed, both streams."""
    process = self.begin(script, *words, **env)
    try:
      text, _ = process.communicate(timeout=timeout)
    finally:
      process.kill()
    self.assertEqual(process.returncode, status, text)
    return text

  def begin(self, script, *words, stdin=subprocess.DEVNULL, **env):
    """Begins to run a script of launch/, without a terminal."""
    return subprocess.Popen(
      [str(self.tree / 'launch' / script), *words],
      cwd=self.home,
      env=self.env | env,
      stdin=stdin,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )

  def calls(self, command=''):
    """The recorded calls of gcloud, or the flags of those of one command."""
    file = self.cloud / 'calls.jsonl'
    calls = file.read_text().splitlines() if file.exists() else []
    flags = [flags_of(json.loads(call), command) for call in calls]
    return [found for found in flags if found is not None]

  def worker(self, number):
    """What setup.sh made in the home directory of a worker."""
    return self.cloud / f'worker-{number}' / 'adanat_jax_launch'

  def args(self, number):
    """What Python was called with on a worker, one list for each run."""
    text = (self.cloud / f'worker-{number}' / 'args').read_text()
    return [run.split('\n') for run in text.removesuffix('\n\n').split('\n\n')]

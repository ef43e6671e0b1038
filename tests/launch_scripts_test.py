"""The scripts of launch/: what they run, what they refuse, what they undo."""

import os
import pty
import shlex

from absl.testing import absltest, parameterized

from support import launching

_WHERE = '--project=my-project --zone=us-central2-b'
_TPUS = 'gcloud compute tpus'
_QUEUED = f'{_TPUS} queued-resources'
_LIST = f"{_QUEUED} list '--format=value(name.basename(),state.state)' {_WHERE}"
# Flags as users write them, with everything that shells care about.
_RUN = (
  '--config=configs/digits.py:tiny',
  '--workdir=/mnt/shared/my runs/1',
  "--config.sample.captions=('a red fox', \"it's $HOME\",)",
  '--config.note=',
)


def _ssh(command, worker='all'):
  return (
    f'{_TPUS} tpu-vm ssh adanat --quiet --worker={worker}'
    f' {shlex.quote("--command=" + command)} {_WHERE}'
  )


class DryRunTest(launching.LaunchTest, parameterized.TestCase):
  def dry(self, script, *words, **env):
    """The lines that a script prints, with ours for the directories."""
    text = self.launch(script, *words, DRY_RUN='1', **env)
    self.assertEmpty(self.calls())
    text = text.replace(str(self.home), '/my home')
    return text.replace(str(self.tree), '/a tree').splitlines()

  def test_create(self):
    self.assertEqual(
      self.dry('create.sh', '--spot', '--labels=a=b'),
      [
        _LIST,
        f'{_QUEUED} create adanat --node-id=adanat --accelerator-type=v4-16'
        f' --runtime-version=tpu-ubuntu2204-base --spot --labels=a=b {_WHERE}',
      ],
    )

  def test_setup_copies_the_tree(self):
    parcel = '/my home/.cache/adanat_jax/adanat_jax_launch'
    self.assertEqual(
      self.dry('setup.sh', BUCKET='my-bucket'),
      [
        _LIST,
        f"mkdir -p '{parcel}'",
        f"cp '/a tree/launch/worker.sh' '{parcel}/'",
        f"tar -czf '{parcel}/source.tar.gz' -C '/a tree' --null -T"
        f" '{parcel}/files'",
        f"{_TPUS} tpu-vm scp '{parcel}' adanat: --quiet --recurse --worker=all"
        f' {_WHERE}',
        _ssh(
          'env EXTRA=tpu PYTHON=3.11 REPOSITORY= REVISION= BUCKET=my-bucket'
          ' NFS= MOUNT=/mnt/shared bash adanat_jax_launch/worker.sh setup'
        ),
      ],
    )

  def test_setup_clones(self):
    url = 'https://github.com/you/adanat_jax'
    lines = self.dry('setup.sh', REPOSITORY=url, REVISION='v1')
    self.assertFalse([line for line in lines if line.startswith('tar')])
    self.assertIn(f'REPOSITORY={url} REVISION=v1 ', lines[-1])

  def test_run_is_read_back_as_it_was_given(self):
    (line,) = self.dry('run.sh', *_RUN)
    (command,) = [w for w in shlex.split(line) if w.startswith('--command=')]
    self.assertEqual(
      shlex.split(command.removeprefix('--command=')),
      ['bash', 'adanat_jax_launch/worker.sh', 'run', *_RUN],
    )

  @parameterized.parameters(
    (('status.sh',), 'status'),
    (('stop.sh',), 'stop'),
    (('stop.sh', '--kill'), 'stop --kill'),
    (('logs.sh', '--follow'), 'logs --lines=50 --follow'),
  )
  def test_command_of_the_worker(self, words, command):
    line = self.dry(*words)[-1]
    self.assertIn(f'bash adanat_jax_launch/worker.sh {command}', line)
    self.assertIn(f'--worker={"0" if words[0] == "logs.sh" else "all"} ', line)

  def test_delete(self):
    self.assertEqual(
      self.dry('delete.sh'),
      [
        _LIST,
        'delete.sh: deleting queued resource and TPU slice adanat in'
        ' us-central2-b of my-project',
        f'{_QUEUED} delete adanat --force --quiet {_WHERE}',
      ],
    )

  def test_supervise_shows_each_step(self):
    text = '\n'.join(self.dry('supervise.sh', '--spot', '--', *_RUN))
    steps = ['create adanat', ' --spot', 'scp', 'worker.sh setup', 'sh run']
    found = [text.index(step) for step in steps]
    self.assertEqual(found, sorted(found))

  def test_hosts_in_place_of_a_slice(self):
    lines = self.dry('run.sh', '--workdir=/d', HOSTS='gpu-1 local', NAME='')
    remote = 'bash adanat_jax_launch/worker.sh run --workdir=/d'
    self.assertEqual(
      lines,
      [
        'ssh -o BatchMode=yes -o StrictHostKeyChecking=accept-new gpu-1'
        f" '{remote}'",
        f"bash -c 'cd && {remote}'",
      ],
    )


class RefusalTest(launching.LaunchTest, parameterized.TestCase):
  @parameterized.product(
    script=['create.sh', 'setup.sh', 'run.sh', 'delete.sh', 'supervise.sh'],
    name=['PROJECT', 'ZONE', 'NAME'],
  )
  def test_unset_name(self, script, name):
    text = self.launch(script, '--yes', status=2, **{name: ''})
    self.assertRegex(
      text, rf'^{script}: {name} is not set; for example: export {name}=.*\n$'
    )
    self.assertEmpty(self.calls())

  @parameterized.parameters(
    ('create.sh', (), {'ACCELERATOR_TYPE': ''}, 'ACCELERATOR_TYPE is not set'),
    ('create.sh', (), {'RUNTIME_VERSION': ''}, 'RUNTIME_VERSION is not set'),
    ('create.sh', (), {'NAME': 'My_TPU'}, 'NAME=My_TPU: small letters'),
    ('create.sh', ('spot',), {}, 'spot: only flags'),
    ('create.sh', (), {'HOSTS': 'gpu-1'}, 'HOSTS=gpu-1 is set'),
    ('delete.sh', (), {'HOSTS': 'gpu-1'}, 'HOSTS=gpu-1 is set'),
    ('delete.sh', ('-y',), {}, '-y: only --yes'),
    ('setup.sh', (), {'REPOSITORY': 'x'}, 'REVISION is not set'),
    ('setup.sh', (), {'BUCKET': 'b', 'NFS': 'n:/'}, 'both set'),
    ('setup.sh', (), {}, 'there is no slice; launch/create.sh'),
    ('setup.sh', (), {'BUCKET': '--foreground'}, 'BUCKET=--foreground: begins'),
    ('setup.sh', (), {'NFS': '-oexec'}, 'NFS=-oexec: begins with a dash'),
    ('setup.sh', (), {'REPOSITORY': '--upload-pack=x'}, 'REPOSITORY=--upload-'),
    ('run.sh', (), {'REVISION': '-f'}, 'REVISION=-f: begins with a dash'),
    ('run.sh', (), {'MOUNT': '-t'}, 'MOUNT=-t: begins with a dash'),
    ('run.sh', ('-v',), {'HOSTS': 'a -oX=y'}, 'HOSTS=a -oX=y: -oX=y begins'),
    ('run.sh', (), {}, 'no flags; for example: launch/run.sh --config='),
    ('logs.sh', ('-f',), {}, '-f: not a flag'),
    ('stop.sh', ('now',), {}, 'now: only --kill'),
    ('supervise.sh', ('--spot',), {}, 'no run; for example'),
  )
  def test_mistake_is_one_line(self, script, words, env, line):
    text = self.launch(script, *words, status=2, **env)
    self.assertStartsWith(text, f'{script}: ')
    self.assertIn(line, text)
    self.assertEqual(text.count('\n'), 1, text)

  def test_flags_that_gcloud_lacks(self):
    text = self.launch('create.sh', '--spto', status=2)
    self.assertIn('unrecognized arguments: --spto', text)
    text = self.launch('create.sh', '--spot=yes', status=2)
    self.assertIn('--spot: takes no value', text)
    # In alpha alone.
    self.launch('create.sh', '--autocheckpoint-enabled', status=2)

  def test_a_gcloud_that_fails_is_not_an_absent_slice(self):
    self.program('gcloud', 'echo "not signed in" >&2; exit 1')
    for script in ('create.sh', 'setup.sh', 'status.sh', 'delete.sh'):
      self.assertEqual(self.launch(script, status=1), 'not signed in\n')

  def test_deletion_asks(self):
    self.launch('create.sh')
    text = self.launch('delete.sh', status=2)
    self.assertIn(
      'Delete queued resource adanat (ACTIVE) and TPU slice adanat with its'
      ' disks, in us-central2-b of my-project?',
      text,
    )
    self.assertIn('no terminal', text)
    self.assertEqual(self.at_terminal('delete.sh', 'n'), 2)
    self.assertEmpty(self.calls('compute tpus queued-resources delete'))
    self.assertEqual(self.at_terminal('delete.sh', 'y'), 0)
    self.assertLen(self.calls('compute tpus queued-resources delete'), 1)

  def at_terminal(self, script, answer):
    """Runs a script at a terminal that says `answer`; its exit status."""
    ours, theirs = pty.openpty()
    os.write(ours, answer.encode() + b'\n')
    process = self.begin(script, stdin=theirs)
    os.close(theirs)
    text, _ = process.communicate(timeout=30)
    os.close(ours)
    self.assertIn('[y/N]', text)
    return process.returncode


class LifeTest(launching.LaunchTest):
  """The scripts one after the other, with worker.sh on two workers."""

  def test_from_create_to_delete(self):
    self.fates(['WAITING_FOR_RESOURCES', 'PROVISIONING', 'ACTIVE'])
    (self.tree / 'a new file').write_text('kept')
    self.launch('create.sh', '--spot')
    self.assertIn(
      'there already: WAITING_FOR_RESOURCES', self.launch('create.sh')
    )
    self.assertLen(self.calls('compute tpus queued-resources create'), 1)

    self.launch('setup.sh')
    self.assertEqual(
      self.launch('status.sh'),
      'slice adanat: ACTIVE\nworker-0: idle (never run)\n'
      'worker-1: idle (never run)\n',
    )
    (self.tree / 'a new file').unlink()
    self.launch('setup.sh')
    for number in (0, 1):
      source = self.worker(number) / 'source'
      self.assertTrue((source / 'launch' / 'run.sh').exists())
      self.assertFalse((source / 'a new file').exists())
      did = (self.worker(number).parent / 'did').read_text()
      self.assertIn(f'--constraint {source}/launch/constraints.txt', did)
      self.assertIn(f'--editable {source}[tpu]', did)

    self.launch('run.sh', *_RUN)
    self.assertEqual(self.launch('status.sh').count(': running (pid'), 2)
    text = self.launch('run.sh', '--workdir=/elsewhere')
    self.assertEqual(text.count('running already'), 2)
    text = self.launch('setup.sh', status=1)
    self.assertEqual(text.count('a run is going on; launch/stop.sh'), 2)
    for number in (0, 1):
      self.assertEqual(self.args(number), [['-m', 'adanat_jax.main', *_RUN]])

    text = self.launch('logs.sh', '--worker=1', '--lines=5')
    self.assertIn('worker-1: ', text)
    self.assertNotIn('worker-0: ', text)
    self.assertIn('python -m adanat_jax.main --config=configs/digits', text)

    self.assertEqual(self.launch('stop.sh').count('exit code 143'), 2)
    self.assertEqual(self.launch('stop.sh').count('not running'), 2)
    self.assertEqual(self.launch('status.sh').count(': stopped'), 2)

    self.ends('term', '0')
    self.launch('run.sh', *_RUN)
    self.wait_for(': finished', 2)

    self.launch('delete.sh', '--yes')
    self.assertIn('there is no adanat', self.launch('delete.sh'))
    self.assertIn('absent', self.launch('status.sh'))
    self.assertLen(self.calls('compute tpus queued-resources delete'), 1)

  def wait_for(self, state, workers):
    text = ''
    for _ in range(30):
      text = self.launch('status.sh')
      if text.count(state) == workers:
        return
    self.fail(text)

  def test_processes_share_a_secret_that_nobody_else_sees(self):
    self.launch('create.sh')
    found = []
    for _ in range(2):
      said = self.launch('setup.sh')
      said += self.launch('run.sh', *_RUN)
      said += self.launch('stop.sh')
      said += self.launch('logs.sh', '--worker=all')
      homes = [self.worker(number).parent for number in (0, 1)]
      given = [
        (home / 'secrets').read_text().splitlines()[-1] for home in homes
      ]
      self.assertLen(set(given), 1)
      self.assertRegex(given[0], '^[0-9a-f]{64}$')
      found.append(given[0])
      for number in (0, 1):
        secret = self.worker(number) / 'secret'
        self.assertEqual(secret.read_text(), given[0])
        self.assertEqual(secret.stat().st_mode & 0o777, 0o600)
      # Nor is it a word of any command.
      self.assertNotIn(given[0], said + str(self.calls()))
    self.assertNotEqual(*found)
    (kept,) = self.home.rglob('secret.new')
    self.assertEqual(kept.stat().st_mode & 0o777, 0o600)

  def test_ends_of_a_run(self):
    self.env['HOSTS'] = 'local'
    self.ends('2', '7', '143', 'term')
    text = self.launch('run.sh', '--workdir=/d', status=2)
    self.assertIn('one that is new needs launch/setup.sh', text)
    self.launch('setup.sh', EXTRA='')
    self.assertNotIn('[', (self.home / 'did').read_text())
    for state in (': refused', ': failed (exit code 7', ': interrupted'):
      self.launch('run.sh', '--workdir', '/d')
      self.wait_for(state, 1)
    self.launch('run.sh', '--workdir=/d')
    self.power_off()
    self.wait_for(': lost', 1)

  def test_workdir_that_would_be_lost(self):
    self.env['HOSTS'] = 'local'
    self.program('findmnt', 'echo my-bucket')
    self.launch('setup.sh', BUCKET='my-bucket')
    for workdir, line in (
      ('runs/1', '--workdir=runs/1: give an absolute path'),
      ('/runs/1', '/runs/1: is not under /mnt/shared, where my-bucket is'),
    ):
      text = self.launch('run.sh', f'--workdir={workdir}', status=2)
      self.assertIn(line, text)

  def test_storage_is_mounted_once(self):
    self.env['HOSTS'] = 'local'
    mount = self.home / 'mount'
    self.env |= {'BUCKET': 'my-bucket', 'MOUNT': str(mount)}
    self.program('findmnt', f'cat "{self.home}/mounted" 2>/dev/null')
    self.program('sudo', '"$@"')
    self.program(
      'gcsfuse', 'echo "$*" >>"$HOME/did"; echo my-bucket >"$HOME/mounted"'
    )
    self.launch('setup.sh')
    self.launch('setup.sh')
    self.launch('run.sh', f'--workdir={mount}/1')
    did = (self.home / 'did').read_text()
    self.assertEqual(did.count(f'my-bucket {mount}'), 1)
    self.assertIn('--metadata-cache-negative-ttl-secs=0', did)
    self.assertEmpty(list(mount.iterdir()))
    self.launch('stop.sh')
    text = self.launch('setup.sh', BUCKET='another', status=1)
    self.assertIn('my-bucket is mounted there, not another', text)

  def test_share_is_mounted(self):
    self.env['HOSTS'] = 'local'
    mount = self.home / 'mount'
    self.program('findmnt', '')
    self.program('sudo', '"$@"')
    self.program('mount.nfs', '')
    self.program('mount', 'echo "mount $*" >>"$HOME/did"')
    self.launch('setup.sh', NFS='10.0.0.2:/share', MOUNT=str(mount))
    did = (self.home / 'did').read_text()
    self.assertIn(f'mount -t nfs 10.0.0.2:/share {mount}\n', did)
    # Not a file system that can rename directories.
    self.program('mv', 'exit 1')
    text = self.launch(
      'setup.sh', NFS='10.0.0.2:/share', MOUNT=str(mount), status=1
    )
    self.assertIn('directories cannot be renamed', text)

  def test_clone_of_a_revision(self):
    self.env |= {'HOSTS': 'local', 'REPOSITORY': str(self.tree)}
    git = ['git', '-C', str(self.tree), '-c', 'user.name=a', '-c']
    git.append('user.email=a@b')
    launching.shell(*git, 'add', '.')
    launching.shell(*git, 'commit', '-m', 'one')
    launching.shell(*git, 'tag', 'v1')
    (self.tree / 'later').write_text('')
    launching.shell(*git, 'add', '.')
    launching.shell(*git, 'commit', '-m', 'two')
    self.launch('setup.sh', REVISION='v1')
    source = self.home / 'adanat_jax_launch' / 'source'
    self.assertTrue((source / 'launch').exists())
    self.assertFalse((source / 'later').exists())

  def test_one_host_that_fails_fails_all(self):
    self.env['HOSTS'] = 'gpu-1 gpu-2'
    self.program('ssh', '[[ $5 == gpu-1 ]]')
    self.launch('stop.sh', status=1)
    self.launch('logs.sh', '--worker=0')
    self.launch('logs.sh', '--worker=1', status=1)


if __name__ == '__main__':
  absltest.main()

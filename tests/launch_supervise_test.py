"""Runs that go on by themselves: launch/supervise.sh and launch/slurm.sh."""

import pathlib
import shutil
import signal
import time

from absl.testing import absltest, parameterized

from support import launching

_RUN = ('--config=configs/digits.py', "--config.sample.captions=('a fox',)")
_RUN += ('--workdir=/mnt/shared/my runs/1',)
_CREATE = 'compute tpus queued-resources create'
_DELETE = 'compute tpus queued-resources delete'


class SuperviseTest(launching.LaunchTest, parameterized.TestCase):
  def supervise(self, *, status=0, **env):
    return self.launch(
      'supervise.sh', '--spot', '--', *_RUN, status=status, **env
    )

  @parameterized.parameters(
    # The queued resource goes step by step, or stays and its machine goes.
    (['SUSPENDING', 'SUSPENDED'],),
    (['ACTIVE/PREEMPTED'],),
  )
  def test_preempted_slice_resumes(self, preempted):
    self.fates(
      ['WAITING_FOR_RESOURCES', *['ACTIVE'] * 3, *preempted],
      ['PROVISIONING', 'ACTIVE'],
    )
    self.ends('term', '0')
    text = self.supervise()
    self.assertIn('asking for another', text)
    self.assertIn('finished', text)
    first, second = self.calls(_CREATE)
    self.assertEqual(first, second)
    self.assertIn('--spot', first)
    self.assertLen(self.calls(_DELETE), 1)
    for number in (0, 1):
      # The second machine: set up from nothing, the same command.
      self.assertEqual(self.args(number), [['-m', 'adanat_jax.main', *_RUN]])
      self.assertEqual(self.starts(number), 2)

  def test_request_that_fails_is_made_again_but_not_for_ever(self):
    self.fates(['FAILED'], ['FAILED'], ['ACTIVE'])
    text = self.supervise(status=2, MAX_FAILURES='2')
    self.assertLen(self.calls(_CREATE), 2)
    self.assertIn('failure 2 of 2: the slice', text)
    self.assertIn('giving up', text)

  def test_crash_is_tried_again_but_not_for_ever(self):
    self.ends('7', '1', '0')
    text = self.supervise(status=2, MAX_FAILURES='2')
    self.assertIn('failure 2 of 2: the run crashed', text)
    self.assertEqual(self.starts(0), 2)

  def test_a_full_disk_is_tried_again(self):
    self.ends('74', '0')
    text = self.supervise(MAX_FAILURES='2')
    self.assertIn('failure 1 of 2: the run crashed', text)
    self.assertIn('finished', text)

  def test_user_mistake_ends_it(self):
    self.ends('2')
    text = self.supervise(status=2)
    self.assertIn('the flags, the config or the numbers are wrong', text)
    self.assertEqual(self.starts(0), 1)

  def test_worker_that_ended_alone_takes_the_others_along(self):
    self.ends('1', '0', worker=0)
    self.ends('term', '0', worker=1)
    text = self.supervise(PATIENCE='2')
    self.assertIn('worker-1: ended with exit code 137', text)
    self.assertEqual([self.starts(0), self.starts(1)], [2, 2])

  def test_run_that_ends_during_a_look_is_finished(self):
    self.ends('0')
    self.supervise()
    code = self.worker(0) / 'exit'
    code.unlink()
    self.assertIn('worker-0: lost', self.launch('status.sh'))
    # The look at the lock is when it ends.
    flock = shutil.which('flock')
    self.program('flock', f'echo 0 >"{code}"\nexec {flock} "$@"')
    self.assertIn('worker-0: finished', self.launch('status.sh'))

  def test_interrupted_run_goes_on(self):
    self.ends('143', '0')
    text = self.supervise(MAX_FAILURES='1')
    self.assertNotIn('failure', text)
    self.assertEqual(self.starts(0), 2)

  def test_passing_fault_of_the_network(self):
    gcloud = (self.bin / 'gcloud').read_text()
    self.program(
      'gcloud',
      f"""
calls={{cloud}}/tries
echo >>"$calls"
[[ $(wc -l <"$calls") != [159] ]] || {{ echo 'no network' >&2; exit 1; }}
{gcloud}""",
    )
    self.ends('0')
    text = self.supervise()
    self.assertIn('no network', text)
    self.assertIn('finished', text)

  def test_stop_ends_it_and_a_second_one_takes_over(self):
    process = self.begin('supervise.sh', '--', *_RUN)
    self.wait_until(lambda: (self.worker(1) / 'pid').exists())
    process.send_signal(signal.SIGKILL)
    process.communicate()
    process = self.begin('supervise.sh', '--', *_RUN)
    self.launch('stop.sh')
    text, _ = process.communicate(timeout=30)
    self.assertEqual(process.returncode, 143, text)
    self.assertIn('launch/stop.sh ended the run', text)
    self.assertEqual(self.starts(0), 1)
    self.assertLen(self.calls(_CREATE), 1)

  def wait_until(self, happened):
    for _ in range(600):
      if happened():
        return
      time.sleep(0.05)
    self.fail('it did not happen in time')


class SlurmTest(launching.LaunchTest):
  """launch/slurm.sh with a fake srun, which is one process and not a step."""

  def setUp(self):
    super().setUp()
    (self.tree / '.venv' / 'bin').mkdir(parents=True)
    (self.tree / '.venv' / 'bin' / 'activate').touch()
    self.program('scontrol', 'echo "scontrol $*" >>{cloud}/did')
    # The step has ended by the time that this is done.
    self.program(
      'scancel',
      'echo "scancel $*" >>{cloud}/did; kill -TERM "$(cat {cloud}/step)"'
      '; sleep 0.3',
    )
    self.program(
      'srun',
      'printf "%s\\n" "$PWD" "$@" >{cloud}/words; echo $$ >{cloud}/step; shift'
      '; exec {bin}/run "$@"',
    )
    self.env |= {'SLURM_JOB_ID': '7', 'SLURM_SUBMIT_DIR': str(self.tree)}

  def did(self):
    path = self.cloud / 'did'
    return path.read_text().splitlines() if path.exists() else []

  def test_saves_and_queues_again_before_the_time_is_up(self):
    process = self.begin('slurm.sh', *_RUN)
    for _ in range(600):
      if pathlib.Path(self.home / 'args').exists():
        break
      time.sleep(0.05)
    process.send_signal(signal.SIGUSR1)
    text, _ = process.communicate(timeout=30)
    self.assertEqual(process.returncode, 143, text)
    self.assertEqual(
      self.did(), ['scancel --signal=TERM 7.0', 'scontrol requeue 7']
    )
    words = (self.cloud / 'words').read_text().splitlines()
    self.assertEqual(words[0], str(self.tree))
    self.assertEqual(
      words[2:],
      ['python', '-m', 'adanat_jax.main', '--distributed=auto', *_RUN],
    )

  def test_a_secret_for_each_job(self):
    self.ends(*'000')
    for secret in ('', '', 'the user has one'):
      self.launch('slurm.sh', *_RUN, ADANAT_JAX_SECRET=secret)
    one, other, theirs = (self.home / 'secrets').read_text().splitlines()
    self.assertRegex(one, '^[0-9a-f]{64}$')
    self.assertNotEqual(one, other)
    self.assertEqual(theirs, 'the user has one')

  def test_other_ends_are_the_job_s(self):
    for code in (0, 1, 143):
      self.ends(*[code] * 9)
      self.launch('slurm.sh', *_RUN, status=code)
    self.assertEmpty(self.did())

  def test_needs_sbatch(self):
    del self.env['SLURM_SUBMIT_DIR']
    text = self.launch('slurm.sh', status=1)
    self.assertIn('start this with sbatch', text)

  def test_options_are_sbatch_s(self):
    text = (launching.ROOT / 'launch' / 'slurm.sh').read_text()
    comments = text.split('set -euo')[0]
    options = [
      line for line in comments.splitlines() if line.startswith('#SBATCH')
    ]
    self.assertIn('#SBATCH --signal=B:USR1@300', options)
    self.assertIn('#SBATCH --requeue', options)
    # sbatch reads no options after the first command.
    self.assertEqual(text.count('#SBATCH'), len(options))


if __name__ == '__main__':
  absltest.main()

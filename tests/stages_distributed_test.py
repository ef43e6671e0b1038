"""Any number of devices and processes gives the numbers of one device.

The stages themselves run, tiny, on one device; then each of them runs again,
from the same inputs, in two processes. What they wrote is sampled on eight
devices, and on some of them.
"""

import dataclasses
import json
import pathlib
import shutil
import socket
import sys
from typing import Any

from absl.testing import absltest
import jax
from jax.experimental import multihost_utils
import ml_collections
import numpy as np

from adanat_jax.data.examples import ArrayExamples
from adanat_jax.experiment import (
  fit,
  policies,
  rewards,
)
from adanat_jax.experiment.experiment import Experiment
from adanat_jax.measuring.study import Measures
from adanat_jax.runtime import (
  checkpoint_format,
  journal,
  metric_writer,
  processes,
  sharding,
)
from adanat_jax.stages import nat, policy
from support import children, configs, small_weights

STEPS = 5
# What a stage reads, and where it writes.
STAGES = {
  'nat': (('tokenizer',), 'nat'),
  'policy': (
    ('tokenizer', 'judges/reward', 'nat'),
    'policy/adversarial-adaptive-T2-0',
  ),
}
WHICH = policies.Training('adversarial', 2, True, 0)
# Metrics that hang on which side of a threshold a number falls.
THRESHOLDS = ('accuracy', 'clip_fraction', 'time')


def config_of(fsdp: int) -> ml_collections.ConfigDict:
  """`digits:tiny`, smaller still, in batches that eight devices can share."""
  config = configs.load('digits.py:tiny')
  config.mesh.fsdp = fsdp
  config.log_every = 1
  config.save_every = 100
  config.tensorboard = False
  config.data.image_size = 8
  config.tokenizer.update(width_multipliers=(1, 1))
  config.judges.reward.update(depth=1, hooks=(0,), cutout=2)
  config.nat.update(num_steps=STEPS, depth=0)
  config.policy.update(num_steps=(2,), iterations=STEPS, batch_size=64)
  config.policy.discriminator.update(
    batch_size=64, updates=1, held_out=64, spectral_warmup=2
  )
  config.evaluate.batch_size = 8
  return config


def run_stage(
  name: str, config: ml_collections.ConfigDict, workdir: pathlib.Path
) -> None:
  """Runs one of `STAGES`."""
  if name == 'policy':
    policy.train(Experiment(config, workdir), WHICH)
  else:
    nat.run(Experiment(config, workdir))


def base(workdir: pathlib.Path) -> dict[str, Any]:
  """Runs `STAGES` on one device, with a random tokenizer and judges."""
  config = config_of(1)
  small_weights.tokenizer(config, workdir)
  small_weights.measure(config, workdir / 'judges')
  small_weights.reward(config, workdir / 'judges', head=True)
  for name in STAGES:
    run_stage(name, config, workdir)
  return {'sample': sample(config, workdir)}


def sample(
  config: ml_collections.ConfigDict, workdir: pathlib.Path
) -> dict[str, Any]:
  """Tokens of 13 images, batches of 8: the last one is padded."""
  generator = Experiment(config, workdir).generator()
  labels = np.arange(13) % 2
  learned = generator.generate(labels, 2, record=True)
  return {
    'learned': learned.tokens.tolist(),
    'hand-made': generator.generate(labels, 3, 1, 'hand-made').tokens.tolist(),
    'guidance': learned.trajectory.values.guidance_scale.tolist(),
    'distance': Measures(Experiment(config, workdir)).distance(learned.images),
  }


def tokens_on_some_devices(
  config: ml_collections.ConfigDict, workdir: pathlib.Path
) -> list[Any]:
  """Tokens of the learned policy on 2 and 4 of this process's devices."""
  generator = Experiment(config, workdir).generator()
  tokens = []
  for count in (2, 4):
    mesh = sharding.make_mesh(devices=jax.devices()[:count])
    place = lambda tree, mesh=mesh: sharding.shard_state(tree, mesh)
    some = dataclasses.replace(
      generator,
      nat_params=place(generator.nat_params),
      tokenizer_params=place(generator.tokenizer_params),
      agents={
        steps: agent.replace(params=place(agent.params))
        for steps, agent in generator.agents.items()
      },
      mesh=mesh,
    )
    tokens.append(some.generate(np.arange(13) % 2, 2).tokens.tolist())
  return tokens


def again(
  source: pathlib.Path, target: pathlib.Path, fsdp: int
) -> dict[str, Any]:
  """Samples in `source`, and runs stages from the inputs they had there."""
  config = config_of(fsdp)
  result = {'sample': sample(config, source), 'pieces': pieces(config, source)}
  if jax.process_count() == 1:
    return result | {'some devices': tokens_on_some_devices(config, source)}
  for name, (inputs, _) in STAGES.items():
    workdir = target / name
    if jax.process_index() == 0:
      for stage in inputs:
        shutil.copytree(source / stage, workdir / stage)
    multihost_utils.sync_global_devices(name)
    run_stage(name, config, workdir)
  return result


def pieces(
  config: ml_collections.ConfigDict, workdir: pathlib.Path
) -> dict[str, int]:
  """Into how many different parts arrays are cut, over all processes."""

  def count(array: jax.Array) -> int:
    places = array.sharding.devices_indices_map(array.shape).values()
    return len({str(index) for index in places})

  used = Experiment(config, workdir)
  _, params = used.network('nat')
  kernel = lambda params: params['mid_block']['attention']['qkv']['kernel']
  reward = rewards.REWARDS['adversarial'].make(used, 1)
  examples = ArrayExamples({'rows': np.zeros(100)})
  batch = fit.Batches(Experiment(config, 'unused'), 'nat', examples, (16,))(0)[
    'rows'
  ]
  return {
    'batch': count(batch),
    'held out': count(reward.frozen['held_out']['images']),
    'used': count(kernel(params)),
    'trained': count(kernel(sharding.shard_state(params, used.mesh))),
  }


def child(what: str, *arguments: str) -> None:
  """Does its part on all devices and prints the result as JSON."""
  source, target, fsdp, num_processes, process, port = arguments
  if int(num_processes) > 1:
    processes.start(
      'on',
      coordinator_address=f'localhost:{port}',
      num_processes=int(num_processes),
      process_id=int(process),
    )
  if what == 'base':
    result = base(pathlib.Path(source))
  else:
    result = again(pathlib.Path(source), pathlib.Path(target), int(fsdp))
  print(json.dumps(result))


def run(
  what: str,
  source: pathlib.Path,
  target: pathlib.Path,
  *,
  num_devices: int,
  fsdp: int = 1,
  num_processes: int = 1,
) -> list[dict[str, Any]]:
  """Calls `child` in processes that have so many devices each."""
  with socket.socket() as free:
    free.bind(('localhost', 0))
    port = free.getsockname()[1]
  return children.run_together(
    [
      [__file__, '--child', what, source, target, fsdp, num_processes, i, port]
      for i in range(num_processes)
    ],
    num_devices,
  )


def layouts(directory: pathlib.Path) -> dict[str, str]:
  """Layouts by name of all leaves of a stage's last checkpoint."""
  step = journal.read_complete(directory)['step']
  path = directory / 'checkpoints' / str(step)
  return checkpoint_format.layouts(checkpoint_format.read(path))


class DistributedTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.directory = pathlib.Path(absltest.get_default_test_tmpdir(), 'ranks')
    shutil.rmtree(cls.directory, ignore_errors=True)
    cls.one_workdir = cls.directory / 'one'
    (cls.one,) = run('base', cls.one_workdir, cls.one_workdir, num_devices=1)

  def check_samples(self, results: list[dict[str, Any]]) -> None:
    """Compares what each process sampled with what one device does."""
    for result in results:
      for policy_name in ('learned', 'hand-made'):
        self.assertEqual(
          result['sample'][policy_name], self.one['sample'][policy_name]
        )
      for figure in ('guidance', 'distance'):
        np.testing.assert_allclose(
          result['sample'][figure], self.one['sample'][figure], rtol=1e-4
        )

  def test_numbers_are_worth_comparing(self):
    tokens = self.one['sample']['learned']
    self.assertGreater(len({tuple(row) for row in tokens}), 8)
    for name, (_, stage) in STAGES.items():
      rows = metric_writer.read_metrics(self.one_workdir / stage)
      key = 'reward' if name == 'policy' else 'loss'
      self.assertLen({row[key] for row in rows}, STEPS)

  def test_sampling_on_eight_devices(self):
    unused = self.directory / 'eight'
    results = run('again', self.one_workdir, unused, num_devices=8, fsdp=1)
    self.check_samples(results)
    for tokens in results[0]['some devices']:
      self.assertEqual(tokens, self.one['sample']['learned'])
    self.assertEqual(
      results[0]['pieces'], {'batch': 8, 'held out': 8, 'used': 1, 'trained': 1}
    )

  def test_two_processes_that_share_parameters(self):
    target = self.directory / 'two'
    results = run(
      'again',
      self.one_workdir,
      target,
      num_devices=1,
      fsdp=2,
      num_processes=2,
    )
    self.check_samples(results)
    for result in results:
      self.assertEqual(
        result['pieces'], {'batch': 2, 'held out': 2, 'used': 1, 'trained': 2}
      )
    for name, (_, stage) in STAGES.items():
      expected = metric_writer.read_metrics(self.one_workdir / stage)
      self.assertEqual(
        layouts(target / name / stage), layouts(self.one_workdir / stage)
      )
      rows = metric_writer.read_metrics(target / name / stage)
      self.assertLen(rows, STEPS)
      for row, wanted in zip(rows, expected, strict=True):
        self.assertEqual(row.keys(), wanted.keys())
        for metric, value in wanted.items():
          if not metric.startswith(THRESHOLDS):
            np.testing.assert_allclose(
              row[metric],
              value,
              rtol=2e-3,
              atol=2e-4,
              err_msg=f'{name}, step {row["step"]}: {metric}',
            )


if __name__ == '__main__':
  if '--child' in sys.argv:
    child(*sys.argv[sys.argv.index('--child') + 1 :])
  else:
    absltest.main()

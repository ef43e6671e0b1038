"""Four devices, and two processes, give the numbers of one device."""

import json
import os
import socket
import subprocess
import sys
from typing import Any

from absl.testing import absltest
import jax
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import optax

from adanat_jax import sharding
from adanat_jax.decoding import actions, loop, schedules
from adanat_jax.models.nat import NAT
from adanat_jax.rl import ppo, trainer
from adanat_jax.stages import nat as nat_stage

# B samples, N tokens, K codes, C classes, T steps.
B, N, K, C, T = 8, 4, 5, 3, 3
MODULE = NAT(
  codebook_size=K, num_tokens=N, width=8, depth=2, num_heads=2, num_classes=C
)


def params_of() -> Any:
  """Parameters far enough from zero that tokens depend on them."""
  shapes = jax.eval_shape(
    MODULE.init,
    jax.random.key(0),
    jax.ShapeDtypeStruct((1, N), np.int32),
    jax.ShapeDtypeStruct((1,), np.int32),
  )['params']
  rng = np.random.default_rng(0)
  draw = lambda x: rng.normal(size=x.shape).astype(np.float32) / 2
  return jax.tree.map(draw, shapes)


def pieces(array: jax.Array) -> int:
  """Into how many different parts an array is cut, over all processes."""
  indices = array.sharding.devices_indices_map(array.shape).values()
  return len({str(index) for index in indices})


def local_part(array: np.ndarray) -> np.ndarray:
  """This process's rows of a batch."""
  return np.split(array, jax.process_count())[jax.process_index()]


def decode(mesh: jax.sharding.Mesh) -> dict[str, Any]:
  """Tokens of a guided decode of a sharded batch."""
  params = sharding.shard_state(params_of(), mesh)
  keys = jax.random.key_data(loop.sample_keys(jax.random.key(1), B))
  batch = {
    'tokens': np.full((B, N), K, np.int32),
    'condition': np.arange(B, dtype=np.int32) % C,
    'keys': np.asarray(keys),
  }
  batch = sharding.put_batch(jax.tree.map(local_part, batch), mesh)

  @jax.jit
  def run(params: Any, batch: dict[str, jax.Array]) -> jax.Array:
    def denoiser(tokens: Any, condition: Any, cache: Any) -> Any:
      return *MODULE.apply({'params': params}, tokens, condition), cache

    return loop.decode(
      denoiser,
      schedules.table_policy(schedules.hand_made(T, guidance_scale=1.0)),
      tokens=batch['tokens'],
      condition=batch['condition'],
      null_condition=np.int32(C),
      keys=jax.random.wrap_key_data(batch['keys']),
      num_steps=T,
      mask_token=K,
    ).tokens

  tokens = run(params, batch)
  whole = multihost_utils.process_allgather(tokens, tiled=True)
  return {'tokens': whole.tolist(), 'pieces': pieces(tokens)}


def train_nat(mesh: jax.sharding.Mesh) -> dict[str, Any]:
  """Losses of three train steps on a sharded batch."""
  optimizer = optax.adam(0.01)
  params = params_of()
  state = nat_stage.NatState(params, params, optimizer.init(params))
  state = sharding.shard_state(state, mesh)
  rng = np.random.default_rng(1)
  batch = sharding.put_batch(
    {
      'tokens': rng.integers(0, K, (B, N)).astype(np.int32),
      'condition': np.arange(B, dtype=np.int32) % C,
    },
    mesh,
  )
  train_step = jax.jit(
    nat_stage.make_train_step(
      MODULE,
      optimizer,
      key=jax.random.key(2),
      mask_ratio='cosine',
      beta=(12.0, 3.0),
      label_smoothing=0.1,
      condition_dropping=0.1,
      ema_decay=0.9,
    )
  )
  losses = []
  for step in range(3):
    state, metrics = train_step(state, batch, np.int32(step))
    losses.append(float(metrics['loss']))
  return {'losses': losses, 'pieces': pieces(batch['tokens'])}


def train_policy(mesh: jax.sharding.Mesh) -> dict[str, Any]:
  """Metrics of one iteration of PPO whose batch is spread over the mesh."""
  params = sharding.shard_state(params_of(), mesh)
  rows = NamedSharding(mesh, PartitionSpec(sharding.AXES))
  seen = []

  def denoiser(tokens: Any, condition: Any, cache: Any) -> Any:
    tokens = jax.lax.with_sharding_constraint(tokens, rows)
    jax.debug.inspect_array_sharding(
      tokens, callback=lambda x: seen.append(x.shard_shape((2 * B, N)))
    )
    return *MODULE.apply({'params': params}, tokens, condition), cache

  def actor_critic(params: Any, features: Any, step: Any) -> Any:
    out = features.mean(1) @ params['kernel'] + params['table'][step]
    return out[:, :-1], out[:, -1]

  config = ppo.PPOConfig(learning_rate=0.01, num_minibatches=2)
  rng = np.random.default_rng(2)
  size = actions.NUM_ACTIONS + 1
  policy = {
    'kernel': rng.normal(size=(8, size)).astype(np.float32),
    'table': np.zeros((T, size), np.float32),
  }
  train_step = trainer.make_train_step(
    trainer.Problem(denoiser, lambda tokens: tokens, N, K, C),
    actor_critic,
    actions.published_residual(T),
    trainer.Judge(
      None,
      lambda state: lambda images, condition, key: (images == 0).mean(-1),
      lambda state, *unused: (state, {}),
    ),
    config,
    key=jax.random.key(3),
    batch_size=B,
    num_iterations=10,
    fresh_rollouts=False,
  )
  state = trainer.PolicyState(
    policy, ppo.make_optimizer(config).init(policy), None
  )
  state = sharding.shard_state(state, mesh)
  state, metrics = jax.jit(train_step)(state, None, np.int32(0))
  names = ('loss', 'value_loss', 'kl', 'reward', 'gradient_norm', 'committed')
  return {
    'metrics': {name: np.asarray(metrics[name]).tolist() for name in names},
    'kernel': np.asarray(state.params['kernel']).tolist(),
    'pieces': 2 * B // min(shape[0] for shape in seen),
  }


def child(fsdp: int, num_processes: int, process: int, port: int) -> None:
  """Does everything on all devices and prints it as JSON."""
  if num_processes > 1:
    jax.config.update('jax_cpu_collectives_implementation', 'gloo')
    jax.distributed.initialize(f'localhost:{port}', num_processes, process)
  mesh = sharding.make_mesh(fsdp=fsdp)
  results = {'decode': decode(mesh)}
  if num_processes == 1:
    results |= {'nat': train_nat(mesh), 'policy': train_policy(mesh)}
  print(json.dumps(results))


def run(
  num_devices: int, fsdp: int = 1, num_processes: int = 1
) -> list[dict[str, Any]]:
  """Calls `child` in processes that have so many devices each."""
  with socket.socket() as free:
    free.bind(('localhost', 0))
    port = free.getsockname()[1]
  environment = os.environ | {
    'JAX_PLATFORMS': 'cpu',
    'JAX_NUM_CPU_DEVICES': str(num_devices),
    'XLA_FLAGS': '--xla_backend_optimization_level=0',
    'PYTHONPATH': os.pathsep.join(filter(None, sys.path)),
  }
  processes = [
    subprocess.Popen(
      [sys.executable, __file__, '--child']
      + [str(x) for x in (fsdp, num_processes, i, port)],
      env=environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for i in range(num_processes)
  ]
  try:
    outputs = [process.communicate(timeout=200) for process in processes]
  finally:
    for process in processes:
      process.kill()
  for process, (_, errors) in zip(processes, outputs, strict=True):
    if process.returncode:
      raise AssertionError(errors[-3000:])
  return [json.loads(output.splitlines()[-1]) for output, _ in outputs]


class DistributedTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    (cls.one,) = run(1)

  def test_four_devices(self):
    (four,) = run(4, fsdp=2)
    for name in ('decode', 'nat', 'policy'):
      with self.subTest(name):
        one, many = dict(self.one[name]), dict(four[name])
        self.assertEqual((one.pop('pieces'), many.pop('pieces')), (1, 4))
        if name == 'decode':
          self.assertEqual(one['tokens'], many['tokens'])
        jax.tree.map(
          lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5),
          one,
          many,
        )
    # The numbers are worth comparing.
    self.assertLen({tuple(row) for row in self.one['decode']['tokens']}, B)
    self.assertLen(set(self.one['nat']['losses']), 3)

  def test_two_processes(self):
    for result in run(1, num_processes=2):
      self.assertEqual(result['decode']['pieces'], 2)
      self.assertEqual(result['decode']['tokens'], self.one['decode']['tokens'])


if __name__ == '__main__':
  if '--child' in sys.argv:
    child(*(int(x) for x in sys.argv[2:]))
  else:
    absltest.main()

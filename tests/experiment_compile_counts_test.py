"""A training step is compiled once, on one device and on several."""

import json
import pathlib
import sys
import tempfile
from typing import Any
from unittest import mock

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax

from adanat_jax.experiment import fit
from adanat_jax.experiment.experiment import Experiment
from adanat_jax.runtime import sharding
from support import children, configs

_OPTIMIZER = optax.adam(0.1)


def initial(frozen: Any) -> Any:
  """A line, its optimizer, and a key."""
  params = {'slope': frozen['start'], 'bias': jnp.zeros(())}
  return params, _OPTIMIZER.init(params), jax.random.key(0)


def train(num_steps: int, directory: str) -> dict[str, list[int]]:
  """Fits a line; returns what had been traced and compiled after each step."""
  config = configs.load('digits.py:tiny', {'save_every': 2, 'log_every': 1})
  compiled, before = [], []
  jax.monitoring.register_event_duration_secs_listener(
    lambda event, *_, **__: (
      compiled.append(event)
      if event.endswith('backend_compile_duration')
      else None
    )
  )
  traced = []

  def train_step(frozen: Any, state: Any, batch: Any, step: Any) -> Any:
    traced.append(step)
    params, opt_state, key = state
    noise = jax.random.normal(jax.random.fold_in(key, step), batch.shape)

    def loss_of(params: Any) -> Any:
      x = sharding.split_batch(batch + 0.1 * noise)
      return jnp.mean((params['slope'] * x + params['bias'] - 3 * batch) ** 2)

    loss, gradient = jax.value_and_grad(loss_of)(params)
    updates, opt_state = _OPTIMIZER.update(gradient, opt_state)
    params = optax.apply_updates(params, updates)
    return (params, opt_state, key), {'loss': loss}

  mesh = Experiment(config, 'unused').mesh

  def batch_at(step: int) -> Any:
    before.append(len(compiled))
    return sharding.put_batch(np.arange(8, dtype=np.float32) + step, mesh)

  fit.fit(
    Experiment(config, pathlib.Path(directory)),
    'line',
    initial=initial,
    train_step=train_step,
    batch_at=mock.Mock(side_effect=batch_at),
    num_steps=num_steps,
    frozen=sharding.shard_state({'start': np.float32(1)}, mesh),
    tensorboard=False,
  )
  return {'traced': len(traced), 'compiled': [*before[1:], len(compiled)]}


class CompileCountsTest(parameterized.TestCase):
  def assert_compiled_once(self, counts, num_steps):
    self.assertEqual(counts['traced'], 1)
    self.assertLen(counts['compiled'], num_steps)
    self.assertGreater(counts['compiled'][0], 0)
    self.assertLen(set(counts['compiled']), 1)

  @parameterized.parameters(1, 8)
  def test_no_step_is_compiled_again(self, num_devices):
    with tempfile.TemporaryDirectory() as directory:
      counts = children.run(__file__, num_devices, 5, directory)
      self.assert_compiled_once(counts, 5)
      with self.subTest('resumed'):
        counts = children.run(__file__, num_devices, 9, directory)
        self.assert_compiled_once(counts, 4)


if __name__ == '__main__':
  if '--child' in sys.argv:
    print(json.dumps(train(int(sys.argv[2]), sys.argv[3])))
  else:
    absltest.main()

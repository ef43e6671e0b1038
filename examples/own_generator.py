"""A masked generator of Python's names, in Flax NNX, learns how to decode."""

import builtins

from flax import nnx
import jax
import jax.numpy as jnp
import optax

import adanat_jax

N, T, B, MASK = 12, 4, 256, 27  # letters, steps, names at a time, mask token
WORDS = sorted({w.lower().ljust(N) for w in dir(builtins) if w.isalpha()})
NAMES = [[max(ord(c) - 96, 0) for c in w] for w in WORDS if len(w) == N]


@nnx.jit
def train_step(network, optimizer, key):
  """Learns to fill in a random share of the letters."""
  choose, hide, share = jax.random.split(key, 3)
  names = jax.random.choice(choose, jnp.array(NAMES), (B,))
  hidden = jax.random.uniform(hide, (B, N)) < jax.random.uniform(share, (B, 1))
  canvas = jnp.where(hidden, MASK, names)
  entropy = optax.softmax_cross_entropy_with_integer_labels
  loss = lambda network: (hidden * entropy(network(canvas), names)).mean()
  optimizer.update(network, nnx.grad(loss)(network))


def reward(samples, conditions=None, key=None):
  """1 for a name; samples that are the same name share it."""
  found = (samples[:, None] == jnp.array(NAMES)).all(-1)
  return (found / jnp.maximum(found.sum(0), 1)).sum(-1)


def main(train_steps=2000, **settings):
  """Scores the best of a grid and a learned schedule, on seeds new to it."""
  rngs = nnx.Rngs(0)
  network = nnx.Sequential(
    lambda tokens: jax.nn.one_hot(tokens, MASK + 1).reshape(len(tokens), -1),
    *(nnx.Linear(N * (MASK + 1), 256, rngs=rngs), nnx.relu),
    *(nnx.Linear(256, N * MASK, rngs=rngs), lambda x: x.reshape(-1, N, MASK)),
  )
  optimizer = nnx.Optimizer(network, optax.adam(1e-3), wrt=nnx.Param)
  for i in range(train_steps):
    train_step(network, optimizer, jax.random.key(i))
  problem = adanat_jax.Problem(network, num_tokens=N, mask_token=MASK)
  given = dict(conditions=B, num_steps=T)
  decode = lambda s, i: adanat_jax.decode(problem, s, seed=i, **given).tokens
  mean = lambda s: sum(reward(decode(s, i)).mean() for i in range(8)) / 8
  name = 'maskgit(sampling_temperature={}, masking_temperature={})'
  grid = [(t, m) for t in (0.4, 0.6, 0.8, 1.0) for m in (0.0, 1.0, 4.5)]
  best = max((name.format(*dials) for dials in grid), key=mean)
  settings = dict(num_steps=T, start=best, seed=100) | settings
  learned = adanat_jax.learn(problem, reward, **settings)
  return float(mean(best)), float(mean(learned))


if __name__ == '__main__':
  print('Score of the best of a grid, and of the learned schedule:', *main())

"""Sampling against PyTorch: the same network, decode, weights and tokens.

  pip install -e '.[bench]'
  python benchmarks/torch_peer.py --cases small,8,8 nat_l,1,4

prints JSON: seconds and processor seconds of both in turn, and their ratios.
The peer is written in PyTorch's best idiom: one call for both passes, fused
attention, `torch.compile`. Before anything is timed, both decode with the same
noise, and their tokens must be equal. Ours starts from the table of first steps
as a warm `Generator` does; `--no-table` leaves it out.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import time
from typing import Any

# Threads that wait must not spin while the other side is timed.
os.environ.setdefault('OMP_WAIT_POLICY', 'passive')
os.environ.setdefault('KMP_BLOCKTIME', '0')

import clock
import jax
import jax.numpy as jnp
import numpy as np
import programs
import torch
from torch import nn
import torch.nn.functional as F

from adanat_jax.decoding import loop, tables
from adanat_jax.models import denoisers
from adanat_jax.models.nat import NAT
from adanat_jax.runtime import leaves, sharding, timing
from adanat_jax.sampling import program
from adanat_jax.sampling.first_step import FirstSteps

_GRID = dict(codebook_size=1024, num_tokens=256, num_classes=1000)
_MODULES = {
  'small': NAT(width=256, depth=8, num_heads=4, **_GRID),
  'nat_l': NAT(width=768, depth=24, num_heads=8, **_GRID),
}


class Block(nn.Module):
  """Pre-norm block; with a skip, the two inputs are merged first."""

  def __init__(self, width: int, heads: int, ratio: int, skip: bool):
    super().__init__()
    self.heads = heads
    self.skip = nn.Linear(2 * width, width) if skip else None
    self.norm1 = nn.LayerNorm(width)
    self.attention = nn.ModuleDict(
      {
        'qkv': nn.Linear(width, 3 * width, bias=False),
        'proj': nn.Linear(width, width),
      }
    )
    self.norm2 = nn.LayerNorm(width)
    self.mlp = nn.ModuleDict(
      {
        'fc1': nn.Linear(width, ratio * width),
        'fc2': nn.Linear(ratio * width, width),
      }
    )

  def forward(self, x: Any, skip: Any = None) -> Any:
    if self.skip is not None:
      x = self.skip(torch.cat([x, skip], -1))
    qkv = self.attention['qkv'](self.norm1(x)).unflatten(
      -1, (3, self.heads, -1)
    )
    query, key, value = qkv.permute(2, 0, 3, 1, 4)
    heads = F.scaled_dot_product_attention(query, key, value)
    x = x + self.attention['proj'](heads.transpose(1, 2).flatten(2))
    hidden = F.gelu(self.mlp['fc1'](self.norm2(x)))
    return x + self.mlp['fc2'](hidden)


class Embedding(nn.Module):
  """Word plus position embedding, normalised."""

  def __init__(self, vocabulary: int, positions: int, width: int):
    super().__init__()
    self.words = nn.Parameter(torch.empty(vocabulary, width))
    self.positions = nn.Parameter(torch.empty(positions, width))
    self.norm = nn.LayerNorm(width, eps=1e-6)

  def forward(self, ids: Any) -> Any:
    return self.norm(self.words[ids] + self.positions)


class Peer(nn.Module):
  """`models.nat.NAT`, and one decode step of `step.ADANAT`."""

  def __init__(self, nat: NAT):
    super().__init__()
    width, ratio = nat.width, nat.mlp_ratio
    self.mask = nat.codebook_size
    self.null = nat.num_classes
    self.depth = nat.depth // 2
    self.tokens = Embedding(nat.codebook_size + 1, nat.num_tokens, width)
    self.classes = Embedding(nat.num_classes + 1, 1, width)
    block = lambda skip: Block(width, nat.num_heads, ratio, skip)
    for i in range(self.depth):
      setattr(self, f'in_blocks_{i}', block(False))
      setattr(self, f'out_blocks_{i}', block(True))
    self.mid_block = block(False)
    self.norm, self.head_norm = nn.LayerNorm(width), nn.LayerNorm(width)
    self.head = nn.Linear(width, width)
    self.head_bias = nn.Parameter(torch.empty(nat.codebook_size + 1))

  def forward(self, tokens: Any, condition: Any) -> Any:
    """Logits float32[B, N, K]."""
    classes = self.classes(condition[:, None])
    x = torch.cat([classes, self.tokens(tokens)], 1)
    skips = []
    for i in range(self.depth):
      x = getattr(self, f'in_blocks_{i}')(x)
      skips.append(x)
    x = self.mid_block(x)
    for i in range(self.depth):
      x = getattr(self, f'out_blocks_{i}')(x, skips.pop())
    hidden = self.head_norm(F.gelu(self.head(self.norm(x[:, 1:]))))
    return F.linear(
      hidden, self.tokens.words[: self.mask], self.head_bias[: self.mask]
    )

  def step(self, tokens: Any, labels: Any, values: Any, noise: Any) -> Any:
    """Both passes in one call, then guide, sample, score, mask again."""
    ratio, sampling, masking, guidance = values
    null = torch.full_like(labels, self.null)
    both = self(tokens.repeat(2, 1), torch.cat([labels, null]))
    conditional, unconditional = both.chunk(2)
    logits = conditional + guidance * (conditional - unconditional)
    masked = tokens == self.mask
    drawn = (logits + sampling * noise[0]).argmax(-1)
    sampled = torch.where(masked, drawn, tokens)
    score = logits.gather(-1, drawn[..., None])[..., 0] - logits.logsumexp(-1)
    score = torch.where(masked, score + masking * noise[1], torch.inf)
    count = (masked.shape[1] * ratio).floor()
    rank = score.argsort(dim=-1, stable=True).argsort(dim=-1)
    again = masked & (rank < count)
    return torch.where(again, self.mask, sampled), sampled


def state_of(params: Any) -> dict[str, torch.Tensor]:
  """Our parameters under PyTorch's names and in its layout."""
  state = {}
  for name, leaf in leaves.by_name(params).items():
    array = np.array(leaf)
    if name.endswith('/kernel'):
      array = array.T
    name = re.sub(r'/(kernel|scale)$', '/weight', name).replace('/', '.')
    state[name] = torch.from_numpy(np.ascontiguousarray(array))
  return state


def decode(
  step: Any, mask: int, labels: Any, table: Any, num_tokens: int, noise: Any
) -> Any:
  """Decodes int64[B] classes; `noise` of each step, or None to draw it."""
  shape = len(labels), num_tokens
  tokens = torch.full(shape, mask, device=labels.device)
  for t in range(len(table)):
    given = noise and noise[t]
    if given is None:
      uniform = lambda *s: torch.rand(s, device=labels.device).clamp_(1e-30)
      given = [
        -torch.log(-torch.log(uniform(*s))) for s in ((*shape, mask), shape)
      ]
    tokens, sampled = step(tokens, labels, table[t], given)
  return sampled


def case(name: str, batch: int, steps: int, given: Any) -> dict[str, Any]:
  """Checks that tokens are equal, and times both in turn."""
  nat = _MODULES[name]
  shape = (1, nat.num_tokens), (1,)
  params = programs.random_arrays(
    jax.eval_shape(
      nat.init, jax.random.key(0), *(jnp.zeros(s, jnp.int32) for s in shape)
    )['params']
  )
  schedule = tables.amused(steps, total=nat.num_tokens, guidance_scale=2.0)
  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  peer = Peer(nat)
  peer.load_state_dict(state_of(params))
  peer = peer.to(device).eval().requires_grad_(False)
  modes = {'eager': peer.step}
  if not given.no_compile:
    modes['compiled'] = torch.compile(peer.step, dynamic=False)
  labels = (np.arange(batch) * 37 % nat.num_classes).astype(np.int32)
  fields = 'mask_ratio sampling_temperature masking_temperature guidance_scale'
  rows = [np.asarray(getattr(schedule, field)) for field in fields.split()]
  table = torch.tensor(np.stack(rows, 1), device=device)
  classes = torch.tensor(labels, dtype=torch.int64, device=device)
  run = lambda mode, noise=None: decode(
    modes[mode], peer.mask, classes, table, nat.num_tokens, noise
  ).cpu()

  plan = program.Plan(steps)
  key, null = jax.random.key(0), np.int32(nat.num_classes)
  first_steps, mesh = FirstSteps(), sharding.make_mesh()
  canvas = loop.full_mask(batch, nat.num_tokens, nat.codebook_size)

  def ours() -> Any:
    inputs = {
      'tokens': canvas,
      'labels': jnp.asarray(labels),
      'index': jnp.arange(batch, dtype=jnp.int32),
    }
    if not given.no_table:
      inputs |= first_steps.of(
        nat, params, labels, np.asarray(null), True, mesh
      )
    arguments = params, schedule, inputs, null, key
    return jax.block_until_ready(
      program.decode_tokens(nat, plan, *arguments).tokens
    )

  noise_shape = steps, batch, nat.num_tokens
  draw = lambda i, *s: jax.random.gumbel(jax.random.key(i), s)
  noise = loop.Noise(draw(1, *noise_shape, peer.mask), draw(2, *noise_shape))
  expected = jax.jit(
    lambda params: (
      loop.decode(
        denoisers.make(nat, params),
        tables.table_policy(schedule),
        tokens=canvas,
        condition=jnp.asarray(labels),
        null_condition=jnp.asarray(null),
        keys=loop.sample_keys(key, batch),
        num_steps=steps,
        mask_token=peer.mask,
        noise=noise,
      ).tokens
    )
  )(params)
  same = [
    [
      torch.tensor(np.asarray(x[t]), device=device)
      for x in (noise.tokens, noise.confidence)
    ]
    for t in range(steps)
  ]
  different = {
    mode: int((run(mode, same).numpy() != np.asarray(expected)).sum())
    for mode in modes
  }
  if any(different.values()):
    raise RuntimeError(f'{name}: tokens that differ: {different}')

  calls = {'ours': ours} | {
    mode: (lambda mode=mode: run(mode)) for mode in modes
  }
  found: dict[str, list[tuple[float, float]]] = {key: [] for key in calls}
  for call in calls.values():
    call()
  for round_ in range(given.rounds):
    order = list(calls)[:: 1 - 2 * (round_ % 2)]
    for key_ in order:
      wall, cpu = time.perf_counter(), time.process_time()
      calls[key_]()
      wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
      found[key_].append((wall, cpu))
  median = {
    key: [statistics.median(x) for x in zip(*values, strict=True)]
    for key, values in found.items()
  }
  clock.say(f'{name}, batch {batch}, T = {steps}: {median}')
  ratio = {
    key: [a / b for a, b in zip(median['ours'], median[key], strict=True)]
    for key in modes
  }
  return {
    'case': [name, batch, steps],
    'tokens_compared': batch * nat.num_tokens,
    'seconds, processor seconds': median,
    'ours / theirs': ratio,
    'all': found,
  }


def main() -> None:
  """Measures, prints."""
  parser = argparse.ArgumentParser(description=(__doc__ or '').split('\n')[0])
  add = parser.add_argument
  add('--cases', nargs='+', default=['small,8,8', 'small,8,4', 'nat_l,1,4'])
  add('--rounds', type=int, default=5)
  add('--no-table', action='store_true', help='Run our network in every step.')
  add('--no-compile', action='store_true', help='Only eager PyTorch.')
  given = parser.parse_args()
  machine = timing.machine() | {'torch': torch.__version__}
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  rows = []
  with torch.inference_mode():
    for text in given.cases:
      name, batch, steps = text.split(',')
      rows.append(case(name, int(batch), int(steps), given))
  print(json.dumps({'machine': machine, 'cases': rows}, indent=1))


if __name__ == '__main__':
  main()

"""Decodes as TiTok, aMUSEd and AdaGen do, in plain NumPy, from their formulas.

  python -m support.other_decoders     in tests/

wrote tests/data/other_decoders.npz, once; `decoding_others_test` compares our
step with it. Nothing of the package is used here. The formulas are those of

  bytedance/1d-tokenizer  modeling/maskgit.py, ImageBert.generate
  huggingface/diffusers   schedulers/scheduling_amused.py, AmusedScheduler.step,
                          and its pipeline's u + g (c - u)
  LeapLabTHU/AdaGen       core/helpers.py, core/policy_net.py,
                          generators/maskgit.py

written down sample by sample, in float64, with given Gumbel noise in place of
their draws. Every decision has a margin, so that float32 decides alike.
"""

from __future__ import annotations

import math
import pathlib

import numpy as np

N, K, B = 16, 12, 3
MASK = K
# Labels 0 to 2, and the one that stands for none.
LABELS, NULL = (0, 1, 2), 3
# Least distance between numbers that are compared.
MARGIN = 1e-3


class Decoder:
  """A made-up denoiser, and the noise of one decode of T steps."""

  def __init__(self, seed: int, num_steps: int):
    random = np.random.default_rng(seed)
    normal = lambda *shape: random.normal(size=shape).astype(np.float32)
    self.arrays = {
      'places': 1.5 * normal(N, K),
      'pairs': 0.6 * normal(N, K + 1, K),
      'labels': 1.5 * normal(len(LABELS) + 1, K),
      'noise_tokens': random.gumbel(size=(num_steps, B, N, K)),
      'noise_confidence': random.gumbel(size=(num_steps, B, N)),
      'actions': 0.7 * normal(num_steps, B, 4),
    }
    self.arrays = {k: np.float32(x) for k, x in self.arrays.items()}
    self.numbers = {k: np.float64(x) for k, x in self.arrays.items()}
    self.num_steps = num_steps
    self.sampled: list[np.ndarray] = []
    self.canvases: list[np.ndarray] = []

  def logits(self, ids: np.ndarray, label: int) -> np.ndarray:
    """Of one canvas int[N]: float64[N, K]."""
    rows = []
    for n in range(N):
      row = self.numbers['places'][n] + self.numbers['labels'][label]
      for m in range(N):
        row = row + self.numbers['pairs'][(n - m) % N, ids[m]]
      rows.append(row)
    return np.array(rows)

  def guided(self, ids: np.ndarray, label: int, weight: float) -> np.ndarray:
    conditional = self.logits(ids, label)
    return conditional + weight * (conditional - self.logits(ids, NULL))

  def drawn(self, t: int, b: int, logits: np.ndarray, temperature: float):
    """Categorical draws at a temperature, by the noise of the file."""
    noisy = logits + temperature * self.numbers['noise_tokens'][t, b]
    best = np.sort(noisy, axis=-1)
    assert (best[:, -1] - best[:, -2]).min() > MARGIN
    return noisy.argmax(-1)

  def keep(self, sampled: np.ndarray, canvas: np.ndarray) -> None:
    self.sampled.append(sampled)
    self.canvases.append(canvas)

  def result(self, start: np.ndarray) -> dict[str, np.ndarray]:
    shape = (self.num_steps, B, N)
    return {
      **self.arrays,
      'start': start.astype(np.int32),
      'sampled': np.array(self.sampled, np.int32).reshape(shape),
      'canvases': np.array(self.canvases, np.int32).reshape(shape),
    }


def checked_sort(values: np.ndarray) -> np.ndarray:
  """Rising, after making sure that no two finite ones are close."""
  rising = np.sort(values)
  finite = rising[np.isfinite(rising) & (rising < 1e30)]
  assert len(finite) < 2 or np.diff(finite).min() > MARGIN
  return rising


def titok(seed, num_steps, temperature, scale, power=None):
  """1d-tokenizer's `generate`; with a power its power-cosine guidance."""
  decoder = Decoder(seed, num_steps)
  ids = np.full((B, N), MASK)
  start = ids.copy()
  for t in range(num_steps):
    ratio = (t + 1) / num_steps
    annealed = temperature * (1.0 - ratio)
    # The guidance of a step was set at the end of the step before.
    weight = scale * t / num_steps
    if power is not None:
      turn = math.cos(math.pi * (t / num_steps) ** power)
      weight = (scale - 1) * (1 - turn) / 2
    mask_len = math.floor(N * math.acos(ratio) / (math.pi * 0.5))
    sampled, canvas = ids.copy(), ids.copy()
    for b, label in enumerate(LABELS):
      is_mask = ids[b] == MASK
      logits = decoder.guided(ids[b], label, weight)
      new = decoder.drawn(t, b, logits, annealed)
      sampled[b] = np.where(is_mask, new, ids[b])
      confidence = np.where(is_mask, logits[np.arange(N), new], np.inf)
      noise = decoder.numbers['noise_confidence'][t, b]
      confidence = confidence + annealed * noise
      length = max(1, min(is_mask.sum() - 1, mask_len))
      cut_off = checked_sort(confidence)[length - 1]
      canvas[b] = np.where(confidence <= cut_off, MASK, sampled[b])
    ids = sampled if t == num_steps - 1 else canvas
    decoder.keep(sampled, ids)
  return decoder.result(start)


def amused(seed, num_steps, scale, start):
  """Diffusers' scheduler; `scale` in its convention; known tokens stay."""
  decoder = Decoder(seed, num_steps)
  temperatures = np.linspace(2, 0, num_steps)
  ids = start.copy()
  for t in range(num_steps):
    sampled, canvas = ids.copy(), ids.copy()
    for b, label in enumerate(LABELS):
      unknown = ids[b] == MASK
      unconditional = decoder.logits(ids[b], NULL)
      logits = unconditional + scale * (
        decoder.logits(ids[b], label) - unconditional
      )
      probs = np.exp(logits - logits.max(-1, keepdims=True))
      probs = probs / probs.sum(-1, keepdims=True)
      new = decoder.drawn(t, b, logits, 1.0)
      sampled[b] = np.where(unknown, new, ids[b])
      if t == num_steps - 1:
        canvas[b] = sampled[b]
        continue
      starting_mask_ratio = (start[b] == MASK).mean()
      ratio = starting_mask_ratio * math.cos((t + 1) / num_steps * math.pi / 2)
      mask_len = max(1, min(unknown.sum() - 1, math.floor(N * ratio)))
      selected = np.where(
        unknown, probs[np.arange(N), sampled[b] % K], np.finfo(np.float32).max
      )
      confidence = np.log(np.maximum(selected, 1e-20))
      noise = decoder.numbers['noise_confidence'][t, b]
      confidence = confidence + temperatures[t] * noise
      # Their known tokens are finite and all alike; only the noise differs.
      cut_off = np.sort(confidence)[mask_len]
      checked_sort(confidence[unknown])
      canvas[b] = np.where(confidence < cut_off, MASK, sampled[b])
    ids = canvas
    decoder.keep(sampled, ids)
  return decoder.result(start)


def adagen(seed, num_steps, smooth):
  """AdaGen's MaskGIT: hand schedule, raw actions, smoothing, activations."""
  decoder = Decoder(seed, num_steps)
  ratio = (np.arange(num_steps) + 1 - 1e-3) / num_steps
  schedule = [
    np.cos(ratio * math.pi * 0.5),
    1 - ratio,
    np.ones(num_steps),
    (np.arange(num_steps) + 1e-3) / num_steps,
  ]
  inverse_sigmoid = lambda x: np.log(x / (1 - x))
  inverse_softplus = lambda x: x + np.log(-np.exp(-x) + 1)
  # Theirs: ratio, masking and sampling temperature, guidance.
  inverses = inverse_sigmoid, *[inverse_softplus] * 3
  residuals = np.stack([f(x) for f, x in zip(inverses, schedule, strict=True)])
  if smooth:
    unsmoothed = [residuals[:, 0]]
    for t in range(1, num_steps):
      step = residuals[:, t] - smooth * residuals[:, t - 1]
      unsmoothed.append(step / (1 - smooth))
    residuals = np.stack(unsmoothed, axis=1)
  previous = None
  ids = np.full((B, N), MASK)
  start = ids.copy()
  values = []
  for t in range(num_steps):
    current = decoder.numbers['actions'][t] + residuals[:, t]
    if previous is not None:
      current = smooth * previous + (1 - smooth) * current
    previous = current
    ratios = 1 / (1 + np.exp(-current[:, 0]))
    masking, sampling, guidance = np.log1p(np.exp(current[:, 1:])).T
    values.append(np.stack([ratios, sampling, masking, guidance]))
    sampled, canvas = ids.copy(), ids.copy()
    for b, label in enumerate(LABELS):
      is_mask = ids[b] == MASK
      logits = decoder.guided(ids[b], label, guidance[b])
      new = decoder.drawn(t, b, logits, sampling[b])
      sampled[b] = np.where(is_mask, new, ids[b])
      top = logits.max(-1, keepdims=True)
      log_probs = logits - top - np.log(np.exp(logits - top).sum(-1))[:, None]
      confidence = np.where(is_mask, log_probs[np.arange(N), new], np.inf)
      noise = decoder.numbers['noise_confidence'][t, b]
      confidence = confidence + masking[b] * noise
      count = N * ratios[b]
      assert abs(count - round(count)) > MARGIN
      cut_off = checked_sort(confidence)[min(math.floor(count), N - 1)]
      canvas[b] = np.where(confidence < cut_off, MASK, sampled[b])
    ids = canvas
    decoder.keep(sampled, ids)
  result = decoder.result(start)
  # float32[4, T, B], as `PolicyValues` orders them.
  return {**result, 'values': np.float32(np.stack(values, axis=1))}


def partly_known(seed: int) -> np.ndarray:
  """Canvases of which 4, 7 and 10 tokens are given."""
  random = np.random.default_rng(seed)
  start = random.integers(0, K, (B, N))
  for b, known in enumerate((4, 7, 10)):
    start[b, random.permutation(N)[known:]] = MASK
  return start


# Scenarios by name: what makes the arrays of a seed.
SCENARIOS = {
  'titok_l32': lambda seed: titok(seed, 8, 9.5, 4.5),
  'titok_s128': lambda seed: titok(seed, 6, 2.8, 6.9, 3.0),
  'amused': lambda seed: amused(seed, 5, 10.0, np.full((B, N), MASK)),
  'amused_known': lambda seed: amused(seed, 4, 10.0, partly_known(seed)),
  'adagen': lambda seed: adagen(seed, 6, 0.8),
  'adagen_unsmoothed': lambda seed: adagen(seed, 4, 0.0),
}


def main() -> None:
  """Writes the file, of the first seed of each scenario that has margins."""
  arrays = {}
  for name, make in SCENARIOS.items():
    for seed in range(10_000):
      try:
        found = make(seed)
      except AssertionError:
        continue
      print(name, seed)
      arrays.update({f'{name}/{key}': x for key, x in found.items()})
      break
  path = pathlib.Path(__file__).parents[1] / 'data' / 'other_decoders.npz'
  np.savez_compressed(path, **arrays)


if __name__ == '__main__':
  main()

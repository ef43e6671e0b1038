"""The one table of kinds: how close is equal, and why.

`Integers and booleans` must agree exactly. A tolerance lies above the noise
of float32 (the `f32_vs_f64` of a file) and below what a typical mistake does
to the outputs (its `move_if`); where a mistake moves them by less, the test
named in `SHARPER` looks at the layer alone.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses


@dataclasses.dataclass(frozen=True)
class Tolerance:
  """How close our outputs of one kind of file have to be.

  Attributes:
    absolute: largest difference.
    why: the reason for the number.
    relative: added, times the largest magnitude of the array.
    not_compared: outputs that are left out, by regular expression: the reason.
  """

  absolute: float
  why: str
  relative: float = 0.0
  not_compared: Mapping[str, str] = dataclasses.field(default_factory=dict)


TOLERANCES: dict[str, Tolerance] = {
  'uvit': Tolerance(
    2e-5,
    'float32 noise 2e-6; the least mistake, a wrong epsilon, moves 3e-4',
  ),
  'policy': Tolerance(
    5e-6,
    'float32 noise 1.5e-6; the published size moves by only 6.7e-6 if the '
    'epsilon is wrong',
  ),
  'vqgan': Tolerance(
    2e-4,
    'float32 noise 2e-5 on images of values up to 4; ids are exact',
  ),
  'mapping': Tolerance(
    5e-6,
    'eight layers of values up to 3.2; processors differ by 2.2e-6',
  ),
  'dischead': Tolerance(
    2e-5,
    'float32 noise 4e-7; a power iteration too few or many moves 3e-2; '
    'gradients sum over a batch, so theirs is relative',
    relative=1e-5,
  ),
  'projdisc': Tolerance(
    5e-6,
    'float32 noise 3e-7; a wrong epsilon in the trunk moves 6e-6 to 4e-5',
    relative=1e-6,
  ),
  'decode': Tolerance(
    2e-5, 'logits as `uvit`; tokens are exact, their margins exceed 1e-4'
  ),
  'autonat_decode': Tolerance(0.0, 'tokens only, exact'),
  'biasact': Tolerance(
    3e-4,
    "the original's own float32 rounding at the last step: the residual is "
    'the logarithm of a difference of 2e-4 from 1',
  ),
  'maskgit_schedule': Tolerance(1e-6, 'elementary functions in [0, 1]'),
  'maskgit_topk': Tolerance(0.0, 'masks only, exact'),
  'maskgit_transformer': Tolerance(
    2e-5,
    'float32 noise 1e-6; the exact GELU instead of the tanh form moves 2e-4',
  ),
  'maskgit_vqgan': Tolerance(2e-4, 'as `vqgan`'),
  'maskgit_decode': Tolerance(0.0, 'tokens and masks only, exact'),
  'enat': Tolerance(
    2e-5,
    'float32 noise 4e-6; the least mistake, a wrong epsilon, moves 5e-4',
  ),
  'enat_decode': Tolerance(0.0, 'tokens only, exact; margins exceed 1e-2'),
  'inception': Tolerance(
    1e-4,
    'float32 noise 8e-6 on values up to 12; the least mistake, corners of '
    'the resize aligned, moves 1e-1',
  ),
  'clip_text': Tolerance(
    1e-5,
    'float32 noise 1.3e-6; the other activation moves 1e-2',
  ),
  'fid_is': Tolerance(
    1e-4,
    'theirs takes the moments of the distance in float32, ours in float64; '
    'scores agree to 1e-12',
  ),
  'ppo': Tolerance(
    5e-6,
    'sums of float32 against float64 of values up to 10',
    not_compared={
      'flat/.*': 'the order of the batch, which a mean does not see',
    },
  ),
}

# Mistakes (regular expression) that may hide below a tolerance, because the
# file's outputs hardly depend on them: the test that catches them.
SHARPER: dict[str, str] = {
  r'antialias=True': 'models_inception_test.py, PrepareTest',
  r'.*\beps\b.*': 'parity_mistakes_test.py, LayerAloneTest.test_epsilons',
  r'.*tanh GELU.*': 'parity_mistakes_test.py, LayerAloneTest.test_gelu',
}

"""Schedules: what decides a decode, as one object, and the list of all of them.

A `Schedule` is a table (a `PolicyValues` of float32[T]: the numbers of each
step, the same for all samples), a learned policy or any function, with all else
that decides a decode. `SCHEDULES` names those that need no training. A name may
carry parameters, `'entropy_bound(bound=0.5)'`, in configs as in the library. An
entry that is added to the list,

  SCHEDULES['mine'] = lambda num_steps, num_tokens, *, curve='pow2': Schedule(
    'mine', hand_made(num_steps, curve=curve, total=num_tokens),
    guided=False, options=step.MASKGIT, label='my schedule',
  )

can be named in the same way, `'mine(curve="pow3")'`.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import functools
import inspect
import math
from typing import Any, Protocol, TypeAlias, runtime_checkable

from flax import struct
import jax.numpy as jnp
import numpy as np

from adanat_jax.decoding import actions, guidance, halton, step as step_lib

# Written twice: users find them here, beside the schedule that they make.
from adanat_jax.decoding.halton import (
  halton_counts as halton_counts,
  halton_order as halton_order,
)
from adanat_jax.decoding.tables import (
  adagen,
  amused,
  autonat_large,
  checked_table,
  enat_256,
  enat_512,
  exact_ratio,
  hand_made,
  maskgen,
  muse,
  of_numbers,
  remdm,
  table_policy,
  titok,
)
from adanat_jax.errors import UserError
from adanat_jax.types import Array, Carry, Policy, PolicyValues


@runtime_checkable
class LearnedPolicy(Protocol):
  """What a schedule asks of a policy that is no table, such as an `Agent`."""

  @property
  def num_steps(self) -> int:
    """T."""

  def policy(self) -> Policy:
    """The policy, as it acts when nothing is explored."""

  def initial_carry(self, keys: Array) -> Carry:
    """What it carries into the first step of samples with these keys."""


PolicyLike: TypeAlias = PolicyValues | LearnedPolicy


@struct.dataclass
class FunctionPolicy:
  """Any function of a policy's signature, as a `LearnedPolicy`.

  Attributes:
    function: `(step, observation, keys, carry) -> (values, aux, carry)`.
    num_steps: T.
    initial_carry: `keys key[B] -> carry`, with a leading axis B.
  """

  function: Policy = struct.field(pytree_node=False)
  num_steps: int = struct.field(pytree_node=False)
  initial_carry: Callable[[Array], Carry] = struct.field(
    pytree_node=False, default=lambda keys: ()
  )

  def policy(self) -> Policy:
    """The function."""
    return self.function


# Compared by identity: arrays have no single answer to `==`.
@dataclasses.dataclass(frozen=True, eq=False)
class Schedule:
  """All that decides how canvases are decoded, besides network and noise."""

  name: str  # in configs, file names and results
  # A table of float32[T], of float32[T, B] with a column for each sample, or a
  # learned policy.
  policy: PolicyLike
  guided: guidance.Guided = True  # whether the unconditional pass runs, or when
  options: step_lib.StepOptions = step_lib.ADANAT
  label: str = ''  # for tables and pictures; the name if empty
  note: str = ''  # a remark for reports
  # float32[N], of the order 'given': which positions come first.
  priority: np.ndarray | None = None

  def __post_init__(self) -> None:
    """Lets the name stand in for a label, and one value for equal ones."""
    if not self.label:
      object.__setattr__(self, 'label', self.name)
    if not isinstance(self.guided, bool):
      found = guidance.checked(self.guided, self.num_steps, self.name)
      object.__setattr__(self, 'guided', found)

  @property
  def is_table(self) -> bool:
    """Whether the policy is a table and not a learned one."""
    return isinstance(self.policy, PolicyValues)

  @property
  def num_steps(self) -> int:
    """T; of an adaptive schedule the most steps there may be."""
    if isinstance(self.policy, PolicyValues):
      return int(np.shape(self.policy.mask_ratio)[0])
    return self.policy.num_steps

  @property
  def passes(self) -> np.ndarray:
    """Denoiser passes of each step, int32[T]; of an adaptive one the most."""
    candidates = self.options.candidates
    return guidance.passes(self.guided, self.num_steps, candidates)

  def looking_ahead(
    self, candidates: int, chosen_by: str = 'entropy'
  ) -> Schedule:
    """The same with several draws a step, of which the best stays.

    See `StepOptions` for both arguments, and for what it refuses.
    """
    chosen: Any = dict(candidates=candidates, chosen_by=chosen_by)
    options = dataclasses.replace(self.options, **chosen)
    label = f'{self.label}, best of {candidates} by {chosen_by}'
    return dataclasses.replace(self, options=options, label=label)


def as_policy(policy: PolicyLike) -> Policy:
  """What a decoding loop calls at each step, of a table or a learned policy."""
  if isinstance(policy, PolicyValues):
    return table_policy(policy)
  return policy.policy()


def initial_carry(policy: PolicyLike, keys: Array) -> Carry:
  """What the policy carries into the first step of samples with these keys."""
  if isinstance(policy, PolicyValues):
    return ()
  return policy.initial_carry(keys)


def _maskgit(
  num_steps: int,
  num_tokens: int,
  *,
  curve: str = 'cosine',
  sampling_temperature: float = 1.0,
  masking_temperature: float = 4.5,
  guidance_scale: float = 0.0,
) -> Schedule:
  table = hand_made(
    num_steps,
    curve=curve,
    total=num_tokens,
    sampling_temperature=sampling_temperature,
    masking_temperature=masking_temperature,
    guidance_scale=guidance_scale,
  )
  return Schedule(
    'maskgit',
    table,
    bool(guidance_scale),
    step_lib.MASKGIT,
    'MaskGIT' if bool(guidance_scale) else 'MaskGIT, unguided',
    f'{curve} curve, masking temperature falling from {masking_temperature:g}',
  )


def _residual(num_steps: int, num_tokens: int) -> Schedule:
  del num_tokens
  residual = actions.published_residual(num_steps)
  return Schedule(
    'residual',
    actions.values_from_action(jnp.zeros_like(residual), residual),
    label="AdaNAT's hand-made schedule",
    note='the published residual',
  )


def _guidance_3(num_steps: int, num_tokens: int) -> Schedule:
  return Schedule(
    'guidance-3',
    hand_made(num_steps, total=num_tokens, guidance_scale=3.0),
    options=step_lib.MASKGIT,
    label='guidance growing to 3',
    note='cosine curve, masking temperature falling from 4.5',
  )


def _published(
  name: str,
  table: Callable[[int], PolicyValues],
  label: str,
  options: step_lib.StepOptions = step_lib.ADANAT,
) -> Factory:
  """The factory of a table whose numbers do not depend on N."""
  return lambda num_steps, num_tokens: Schedule(
    name, table(num_steps), True, options, label, 'published schedule'
  )


def _counted(
  name: str,
  table: Callable[..., PolicyValues],
  label: str,
  options: step_lib.StepOptions,
  **published: float | None,
) -> Factory:
  """The factory of a published table that depends on N.

  Its parameters and their defaults are `published`.
  """

  def factory(
    num_steps: int, num_tokens: int, **parameters: float | None
  ) -> Schedule:
    chosen = {**published, **parameters}
    made = table(num_steps, total=num_tokens, **chosen)
    guided = bool(chosen['guidance_scale'])
    return Schedule(name, made, guided, options, label, 'published schedule')

  shared = list(inspect.signature(factory).parameters.values())[:2]
  named = [
    inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=value)
    for key, value in published.items()
  ]
  signature = inspect.Signature([*shared, *named])
  factory.__signature__ = signature  # type: ignore[attr-defined]
  return factory


_ORDERS = {
  'max_prob': 'the largest probability first',
  'entropy': 'the least entropy first',
  'margin': 'the widest margin first',
  'moment': "MaskGIT's choice, without looking at the draw",
  'random': 'any position first',
}


def _chosen(
  name: str,
  num_steps: int,
  num_tokens: int,
  *,
  curve: str = 'cosine',
  sampling_temperature: float = 1.0,
  masking_temperature: float = 0.0,
  guidance_scale: float = 0.0,
) -> Schedule:
  """Positions by an order that does not look at the draw, then their tokens."""
  order: Any = 'given' if name == 'random' else name
  progress = (np.arange(num_steps) + 1) / num_steps
  falling = masking_temperature * (1 - progress)
  if name == 'moment':
    # What keeps all that is left chooses nothing, so it does not sharpen.
    falling[-1] = 1e6
  return Schedule(
    name,
    of_numbers(
      num_steps,
      exact_ratio(num_steps, curve, num_tokens),
      sampling_temperature=sampling_temperature,
      masking_temperature=1.0 if name == 'random' else falling,
      guidance_scale=guidance_scale * progress,
    ),
    bool(guidance_scale),
    step_lib.StepOptions(order=order, clamp='reveal'),
    f'{name.replace("_", " ")} order',
    f'{curve} curve, {_ORDERS[name]}',
  )


def _halton(
  num_steps: int,
  num_tokens: int,
  *,
  rows: int = 0,
  columns: int = 0,
  sharpness: float = 1.0,
  final_sharpness: float = 1.2,
  guidance_scale: float = 2.0,
  randomize: bool = True,
) -> Schedule:
  """Halton's, of README's settings there; `rows` 0: a square if N is one."""
  side = math.isqrt(num_tokens)
  if not rows and not columns:
    rows = side if side * side == num_tokens else num_tokens
  rows = rows or num_tokens // columns
  columns = columns or num_tokens // rows
  if rows * columns != num_tokens:
    raise UserError(
      f'halton has rows={rows} and columns={columns}, but the generator has'
      f' {num_tokens} tokens; their product must be that'
    )
  # The original multiplies logits by what others divide by.
  sharpnesses = np.linspace(sharpness, final_sharpness, num_steps)
  return Schedule(
    'halton',
    of_numbers(
      num_steps,
      halton.mask_ratio(num_tokens, num_steps),
      sampling_temperature=1 / sharpnesses,
      guidance_scale=guidance_scale,
    ),
    bool(guidance_scale),
    step_lib.StepOptions(
      order='given', clamp='reveal', rounding='ceil', rolled=randomize
    ),
    'Halton',
    f'{rows} x {columns} cells, arccos curve',
    halton.priority(rows, columns),
  )


def _adaptive(
  name: str,
  commit: Any,
  order: Any,
  bound: float,
  label: str,
) -> Factory:
  """The factory of a schedule whose bound decides how many become known."""

  def factory(
    num_steps: int,
    num_tokens: int,
    *,
    bound: float = bound,
    order: str = order,
    sampling_temperature: float = 1.0,
    masking_temperature: float = 0.0,
    guidance_scale: float = 0.0,
  ) -> Schedule:
    del num_tokens
    chosen: Any = order
    return Schedule(
      name,
      of_numbers(
        num_steps,
        bound,
        sampling_temperature=sampling_temperature,
        masking_temperature=masking_temperature,
        guidance_scale=guidance_scale,
      ),
      bool(guidance_scale),
      step_lib.StepOptions(commit=commit, order=chosen),
      f'{label}, {bound:g}',
      f'at most {num_steps} steps',
    )

  return factory


def _remdm(
  name: str,
  rule: str,
  label: str,
  revisit: Any = 'uniform',
  eta: float = 0.05,
  on: float = 0.0,
  off: float = 0.0,
  share: float = 0.0,
) -> Factory:
  """The factory of a ReMDM schedule."""

  def factory(
    num_steps: int,
    num_tokens: int,
    *,
    eta: float = eta,
    on: float = on,
    off: float = off,
    share: float = share,
    exact: bool = False,
    sampling_temperature: float = 1.0,
    guidance_scale: float = 0.0,
  ) -> Schedule:
    table = remdm(
      num_steps,
      rule=rule,
      eta=eta,
      loop=(on, off, share) if share else None,
      sampling_temperature=sampling_temperature,
      guidance_scale=guidance_scale,
    )
    if exact:
      # Half a token above the count, so that no rounding changes it; any
      # masking temperature makes the choice among equals random.
      counts = np.floor(num_tokens * np.asarray(table.mask_ratio) + 1e-6)
      ratio = np.where(counts > 0, (counts + 0.5) / num_tokens, 0.0)
      table = dataclasses.replace(
        table,
        mask_ratio=jnp.float32(ratio),
        masking_temperature=jnp.ones(num_steps),
      )
    return Schedule(
      name,
      table,
      bool(guidance_scale),
      step_lib.StepOptions(
        order='given',
        commit='ratio' if exact else 'independent',
        revisit='never' if rule == 'none' else revisit,
      ),
      label,
      'exact counts' if exact else 'each position on its own',
    )

  return factory


# (num_steps, num_tokens, **parameters) -> Schedule: how many tokens are unknown
# at the start decides on some tables. A factory may refuse a number of steps or
# a parameter by a UserError.
Factory: TypeAlias = Callable[..., Schedule]

# Parameters of every name, also of learned policies, with their defaults.
LOOKING_AHEAD = {'candidates': 1, 'chosen_by': 'entropy'}

# What these names mean already, in configs, in results and to a `Generator`.
_TAKEN = (
  *('learned', 'searched', 'hand-made', 'table', 'adanat', 'autonat'),
  *('tuned', 'published', 'fewer_steps'),
)


class _Schedules(dict[str, Factory]):
  def __setitem__(self, name: str, factory: Factory) -> None:
    if name in _TAKEN:
      raise UserError(
        f'no schedule can be called {name!r}, which means something else; give'
        ' it another name'
      )
    super().__setitem__(name, factory)


SCHEDULES: dict[str, Factory] = _Schedules({
  'maskgit': _maskgit,
  'residual': _residual,
  'guidance-3': _guidance_3,
  'autonat_large': _published(
    'autonat_large', autonat_large, 'AutoNAT-L', step_lib.MASKGIT
  ),
  'adagen': _published('adagen', adagen, "AdaGen's hand-made"),
  'enat_256': _published('enat_256', enat_256, "ENAT's hand-made"),
  'enat_512': _published('enat_512', enat_512, "ENAT's hand-made, 512"),
  'muse': _counted(
    'muse', muse, 'Muse', step_lib.MUSE, temperature=4.5, guidance_scale=10.0
  ),
  'amused': _counted(
    'amused', amused, 'aMUSEd', step_lib.MASKGIT, guidance_scale=9.0
  ),
  'titok_l32': _counted(
    'titok_l32', titok, 'TiTok-L-32', step_lib.MUSE,
    temperature=9.5, guidance_scale=4.5,
  ),
  'titok_b64': _counted(
    'titok_b64', titok, 'TiTok-B-64', step_lib.MUSE,
    temperature=11.0, guidance_scale=3.0,
  ),
  'titok_s128': _counted(
    'titok_s128', titok, 'TiTok-S-128', step_lib.MUSE,
    temperature=2.8, guidance_scale=6.9, power=3.0,
  ),
  'maskgen': _counted(
    'maskgen', maskgen, 'MaskGen-VQ', step_lib.MUSE,
    temperature=1.5, guidance_scale=12.0,
  ),
  **{order: functools.partial(_chosen, order) for order in _ORDERS},
  'moment': functools.partial(_chosen, 'moment', masking_temperature=4.5),
  'halton': _halton,
  'entropy_bound': _adaptive(
    'entropy_bound', 'entropy_bound', 'entropy', 0.1, 'entropy bound'
  ),
  'threshold': _adaptive(
    'threshold', 'threshold', 'max_prob', 0.9, 'threshold'
  ),
  'klass': _adaptive('klass', 'stable', 'max_prob', 0.9, 'KLASS'),
  'mdlm': _remdm('mdlm', 'none', 'MDLM'),
  'remdm_cap': _remdm('remdm_cap', 'cap', 'ReMDM, cap'),
  'remdm_rescale': _remdm('remdm_rescale', 'rescale', 'ReMDM, rescale'),
  'remdm_conf': _remdm('remdm_conf', 'most', 'ReMDM, conf', 'scored'),
  'remdm_loop': _remdm(
    'remdm_loop', 'cap', 'ReMDM, loop',
    eta=0.02, on=0.55, off=0.05, share=0.9,
  ),
})  # fmt: skip


def parse(name: str) -> tuple[str, dict[str, Any]]:
  """The entry of `SCHEDULES` that a name names, and its parameters.

  `'halton(rows=4)'` is `('halton', {'rows': 4})`.

  Raises:
    UserError: for what is no name, an unknown one, or unknown parameters.
  """
  base, bracket, _ = name.partition('(')
  if base not in SCHEDULES:
    raise UserError(f'no schedule {name!r}; known: {", ".join(SCHEDULES)}')
  if not bracket:
    return base, {}
  from adanat_jax.decoding import names

  defaults = {
    key: parameter.default
    for key, parameter in inspect.signature(SCHEDULES[base]).parameters.items()
    if parameter.kind is inspect.Parameter.KEYWORD_ONLY
  }
  defaults |= {'guided_steps': (), **LOOKING_AHEAD}
  return base, names.parameters(name, defaults)


def make(
  name: str, num_steps: int, num_tokens: int, columns: int = 0
) -> Schedule:
  """Makes a schedule of `SCHEDULES` for N tokens, all unknown at the start.

  Args:
    name: an entry, with parameters or without: `'halton(randomize=False)'`.
    num_steps: T.
    num_tokens: N.
    columns: of the token grid, for schedules that see it; 0 for a square if N
      is one.

  Raises:
    UserError: see `parse`; or for steps that it has not, or does not guide.
  """
  base, parameters = parse(name)
  chosen = parameters.pop('guided_steps', ())
  candidates = parameters.pop('candidates', 1)
  chosen_by = parameters.pop('chosen_by', 'entropy')
  factory = SCHEDULES[base]
  sees_grid = 'columns' in inspect.signature(factory).parameters
  given = parameters.get('rows') or parameters.get('columns')
  if columns and sees_grid and not given:
    parameters['columns'] = columns
  schedule = factory(num_steps, num_tokens, **parameters)
  if chosen:
    if not schedule.guided:
      raise UserError(f'{name!r} is unguided: give a guidance_scale over 0')
    guided = guidance.of_steps(chosen, num_steps)
    schedule = dataclasses.replace(schedule, guided=guided)
  if candidates != 1:
    schedule = schedule.looking_ahead(candidates, chosen_by)
  if isinstance(schedule.policy, PolicyValues):
    in_nats = schedule.options.commit == 'entropy_bound'
    checked_table(schedule.policy, f'SCHEDULES[{base!r}]', in_nats=in_nats)
  made = schedule.name, schedule.num_steps
  if made != (base, num_steps):
    raise UserError(
      f'SCHEDULES[{base!r}] made {made[0]!r} of {made[1]} steps; its name must'
      f' be {base!r}, and {num_steps} steps were asked for'
    )
  return dataclasses.replace(schedule, name=name)

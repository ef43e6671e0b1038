"""The kinds of published weights: what they are and how they are converted.

Each kind turns what a file holds into the state that a finished stage leaves
in its checkpoint, so that the result can stand in for a trained stage, and
turns that state back into the original's keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
import contextlib
import dataclasses
from typing import Any

import numpy as np
import optax

from adanat_jax.convert import (
  clip,
  discriminator,
  enat,
  entries,
  halton,
  inception,
  layout,
  llamagen,
  maskgit,
  nat,
  policy,
  reading,
  vit,
  vqgan,
)
from adanat_jax.convert.layout import Arrays
from adanat_jax.errors import UserError
from adanat_jax.metrics import frechet
from adanat_jax.models.inception import InceptionV3

# Sizes of the published networks, in parameters.
_RELEASES = {
  193_655_297: 'AdaNAT-L / AutoNAT-L / AdaGen MaskGIT-L, ImageNet 256',
  503_628_929: 'AdaNAT on CC3M (the MUSE-Pytorch NAT)',
  11_876_484: 'the actor of AdaNAT or AdaGen on ImageNet 256',
  565_904_385: 'ENAT-L, ImageNet 256 (published with 8,393,728 unused more)',
  566_690_817: 'ENAT-L, ImageNet 512 (published with 8,393,728 unused more)',
  12_073_092: 'the actor of AdaNAT on CC3M',
  10_285_440: "heads and mapping of AdaNAT's discriminator, ImageNet 256",
  7_917_440: "heads of AdaNAT's discriminator, CC3M",
  54_515_587: 'MAGE vqgan_jax_strongaug or MaskGIT, ImageNet 256',
  21_665_664: 'DINO ViT-S/16',
  23_885_392: 'pt_inception-2015-12-05-6726825d',
  172_457_193: 'MaskGIT, ImageNet 256',
  173_047_017: 'MaskGIT, ImageNet 512',
  479_984_641: 'Halton-MaskGIT-Large, ImageNet 384',
  71_883_403: "LlamaGen's tokenizer, vq_ds16_c2i",
  694_659_840: 'CLIP ViT-bigG/14 (activation: gelu)',
  303_966_208: "CLIP ViT-L/14's image tower",
  87_849_216: "CLIP ViT-B/32's image tower",
  123_650_304: "CLIP ViT-L/14 (activation: quick_gelu if OpenAI's)",
}


@dataclasses.dataclass(frozen=True)
class Converted:
  """What a conversion gives."""

  state: dict[str, Any]  # Fields of the checkpoint's state.
  counted: Any  # Which part of it the parameter count is of.
  notes: tuple[str, ...] = ()  # What was found, for the user.


@dataclasses.dataclass(frozen=True)
class Kind:
  """One kind of weights."""

  what: str  # What they are.
  source: str  # Where their authors publish them.
  # What a file holds, and the entry to take of it ('' for the usual one, see
  # `entries.find`) -> our state.
  convert: Callable[[Any, str], Converted]
  # Those of the state that `reverse` needs; with '?' they may be absent.
  fields: tuple[str, ...]
  # These fields -> arrays by the original's key.
  reverse: Callable[[Mapping[str, Any]], Arrays]


def release_of(num_parameters: int) -> str:
  """Names the published network with this number of parameters."""
  return _RELEASES.get(num_parameters, 'no published network of this size')


def convert(name: str, value: Any, entry: str = '') -> Converted:
  """Converts what a file holds to a kind of `KINDS`.

  Of several sets of weights it takes the entry, '' for the usual one.

  Raises:
    UserError: if it holds something else.
  """
  try:
    return KINDS[name].convert(value, entry)
  except (UserError, MemoryError):
    raise
  except Exception as error:
    # Sizes are read off the shapes of a few arrays before all are compared, and
    # these may be of any rank and size: NumPy, JAX and Flax raise what they
    # like. Nothing has been written.
    reason = str(error).partition('\n')[0]
    raise UserError(
      f'the arrays have not the shapes of {name}'
      f' ({type(error).__name__}: {reading.shown(reason)})'
    ) from error


def _kind(
  what: str,
  source: str,
  family: layout.Family,
  infer: Callable[[Arrays], Any],
  notes: Callable[[Any, Arrays], tuple[str, ...]] = lambda module, arrays: (),
  *,
  field: str = 'params',
  prefix: str = '',
) -> Kind:
  """Makes the kind whose state is the parameters of one module.

  Args:
    what: see `Kind`.
    source: see `Kind`.
    family: the weights.
    infer: their arrays -> the module.
    notes: the module and their arrays -> what was found.
    field: of the state.
    prefix: of the original's keys, when they are written.
  """

  def convert(value: Any, entry: str) -> Converted:
    found = entries.find(value, (), entry)
    with _saying(found):
      module = infer(found.arrays)
      params = family.to_ours(found.arrays, module)
    said = (*found.notes, *notes(module, found.arrays))
    return Converted({field: params}, params, said)

  def reverse(state: Mapping[str, Any]) -> Arrays:
    arrays = family.to_theirs(state[field])
    return {f'{prefix}{key}': value for key, value in arrays.items()}

  return Kind(what, source, convert, (field,), reverse)


@contextlib.contextmanager
def _saying(found: entries.FoundEntry) -> Iterator[None]:
  """Adds to an error which entry of the file it is about."""
  try:
    yield
  except UserError as error:
    said = f' ({"; ".join(found.notes)})' if found.notes else ''
    raise UserError(f'{error}{said}') from error


def _nat_notes(module: Any, _: Arrays) -> tuple[str, ...]:
  condition = (
    f'{module.num_classes} classes'
    if module.num_classes is not None
    else f'text states of width {module.text_width}'
  )
  return (
    f'width {module.width}, depth {module.depth}, {module.num_tokens} tokens'
    f' of {module.codebook_size} codes, {condition}',
  )


def _enat_notes(module: Any, arrays: Arrays) -> tuple[str, ...]:
  blocks = module.encoder_depth + module.decoder_depth
  unused = sum(x.size for key, x in arrays.items() if enat.is_unused(key))
  return (
    f'width {module.width}, {blocks} blocks, {module.num_tokens} tokens of'
    f' {module.codebook_size} codes, {module.num_classes} classes',
    f'{unused:,} numbers of prev_embedder, which is unused, dropped',
  )


def _steps(value: Any) -> tuple[str, ...]:
  """Describes the progress and the options of a training checkpoint."""
  if not isinstance(value, Mapping):
    return ()
  names = ('global_step', 'step', 'epoch', 'num_trajectories')
  found = {name: value.get(name) for name in names}
  found.update(gen_steps=getattr(value.get('args'), 'gen_steps', None))
  # A number of thousands of digits is not a step and cannot be printed.
  said = [
    f'{k} = {v}'
    for k, v in found.items()
    if isinstance(v, int) and abs(v) < 1 << 63
  ]
  return (', '.join(said),) if said else ()


def _adam(
  value: Any, entry: str, arrays: Arrays, to_ours: Callable[[Arrays], Any]
) -> tuple[dict[str, Any], tuple[str, ...]]:
  """The state of torch's Adam, as a field of ours, and what is said of it.

  Args:
    value: what the file holds.
    entry: where its state is.
    arrays: the parameters that it trained, in the order of their network. Torch
      numbers them so, and leaves those out that had no gradient.
    to_ours: makes our tree of arrays by those keys.
  """
  found = value.get(entry) if isinstance(value, Mapping) else None
  rows = found.get('state') if isinstance(found, Mapping) else None
  if not isinstance(rows, Mapping) or not rows:
    return {}, ()
  try:
    ordered = [rows[index] for index in sorted(rows)]
    means, squares = (
      dict(zip(arrays, (row[name] for row in ordered), strict=True))
      for name in ('exp_avg', 'exp_avg_sq')
    )
    count = int(np.asarray(ordered[0]['step']).reshape(()))
    alike = all(
      np.shape(x[key]) == np.shape(arrays[key])
      for x in (means, squares)
      for key in arrays
    )
  except (KeyError, TypeError, ValueError):
    alike = False
  if not alike:
    return {}, (f'{entry} is left out: it is not Adam of these weights',)
  adam = optax.ScaleByAdamState(
    np.asarray(count, np.int32), to_ours(means), to_ours(squares)
  )
  state = {'opt_state': (adam, optax.EmptyState())}
  return state, (f'{entry}: Adam after {count} updates',)


def _policy(value: Any, entry: str) -> Converted:
  found = entries.find(value, (), entry)
  arrays = found.arrays
  networks = {'actor': layout.subset(arrays, 'policy_old.actor.')}
  if networks['actor']:
    networks['critic'] = layout.subset(arrays, 'policy_old.critic.')
    form = 'a training checkpoint of AdaNAT; policy_old is taken, as it does'
  else:
    networks = {'actor': arrays}
    form = 'an actor alone, as AdaGen publishes'
  params = {}
  with _saying(found):
    for name, weights in networks.items():
      params[name] = policy.FAMILY.to_ours(weights, policy.infer(weights))

    def to_ours(moments: Arrays) -> Any:
      return {
        name: policy.FAMILY.to_ours(
          layout.subset(moments, f'policy_old.{name}.'), policy.infer(weights)
        )
        for name, weights in networks.items()
      }

    trained = {k: x for k, x in arrays.items() if k.startswith('policy_old.')}
    adam, notes = _adam(value, 'optimizer', trained, to_ours)
  said = (*found.notes, form, *notes, *_steps(value))
  return Converted({'params': params, **adam}, params['actor'], said)


def _policy_back(state: Mapping[str, Any]) -> Arrays:
  found = state['params']
  if 'actor' not in found or not found.keys() <= {'actor', 'critic'}:
    raise KeyError(f'{", ".join(sorted(found)[:8])} and no actor')
  networks = {k: policy.FAMILY.to_theirs(v) for k, v in found.items()}
  if set(networks) == {'actor'}:
    return networks['actor']
  # The two copies of an AdaNAT checkpoint are equal whenever it is written.
  return {
    f'{copy}.{name}.{key}': value
    for copy in ('policy', 'policy_old')
    for name, arrays in networks.items()
    for key, value in arrays.items()
  }


def _discriminator(value: Any, entry: str) -> Converted:
  found = entries.find(value, ('discriminator',), entry)
  with _saying(found):
    module, num_heads = discriminator.infer(found.arrays)
    state = discriminator.FAMILY.to_ours(found.arrays, module)
    trunk = layout.subset(found.arrays, discriminator.TRUNK_PREFIX)
    if trunk:
      state['trunk'] = vit.FAMILY.to_ours(trunk, vit.infer(trunk, num_heads=1))
    vectors = {k: x for k, x in found.arrays.items() if k[-2:] in ('_u', '_v')}
    trained = {
      key: x
      for key, x in found.arrays.items()
      if key not in vectors and not key.startswith(discriminator.TRUNK_PREFIX)
    }
    adam, notes = _adam(
      value,
      'd_optimizer',
      trained,
      lambda moments: discriminator.FAMILY.to_ours(
        {**vectors, **moments}, module
      )['params'],
    )
  parts = 'with' if trunk else 'without'
  note = f'{num_heads} heads, {parts} the DINO trunk'
  said = (*found.notes, note, *notes, *_steps(value))
  return Converted({**state, **adam}, state['params'], said)


def _discriminator_back(state: Mapping[str, Any]) -> Arrays:
  heads = {name: state[name] for name in ('params', 'spectral')}
  trunk = vit.FAMILY.to_theirs(state['trunk']) if 'trunk' in state else {}
  return {
    **discriminator.FAMILY.to_theirs(heads),
    **{discriminator.TRUNK_PREFIX + k: x for k, x in trunk.items()},
  }


def _tokenizer_notes(module: Any, _: Arrays) -> tuple[str, ...]:
  return (f'{module.codebook_size} codes of width {module.code_width}',)


def _clip_form(arrays: Arrays) -> str:
  return 'open_clip or OpenAI' if clip.is_open_clip(arrays) else 'Hugging Face'


def _fid_stats(value: Any, entry: str) -> Converted:
  arrays = entries.find_arrays(value, (), entry)
  names = ('mu', 'sigma')
  if missing := set(names) - arrays.keys():
    raise UserError(
      f'no {" and ".join(sorted(missing))} in it, but'
      f' {reading.some(sorted(arrays))}'
    )
  gaussian = frechet.checked(arrays['mu'], arrays['sigma'])
  state = {'mean': gaussian.mean, 'covariance': gaussian.covariance}
  note = f'moments of {gaussian.mean.size} features'
  return Converted(state, {}, (note,))


def _fid_stats_back(state: Mapping[str, Any]) -> Arrays:
  gaussian = frechet.checked(state['mean'], state['covariance'])
  return {'mu': gaussian.mean, 'sigma': gaussian.covariance}


# No shape tells the number of attention heads, the groups of a normalisation,
# the decoder's share of ENAT's blocks, CLIP's activation or the split of
# MaskGIT's vocabulary; and none of our parameters depends on them.
KINDS: dict[str, Kind] = {
  'nat': _kind(
    'the token transformer, class- or text-conditional',
    'AdaNAT and AutoNAT README (Google Drive, nnet_ema.pth); Hugging Face'
    ' nzl-thu/MaskGIT-L (AdaGen), nzl-thu/MUSE (CC3M)',
    nat.FAMILY,
    lambda arrays: nat.infer(arrays, num_heads=1),
    _nat_notes,
    field='ema',
  ),
  'enat': _kind(
    'the token transformer of ENAT, class-conditional',
    'ENAT README (Google Drive, nnet_ema.pth)',
    enat.FAMILY,
    lambda arrays: enat.infer(arrays, num_heads=1, decoder_depth=1),
    _enat_notes,
    field='ema',
  ),
  'policy': Kind(
    'actor and critic, or the actor alone',
    'AdaNAT README (Google Drive); Hugging Face nzl-thu/AdaGen_Policies',
    _policy,
    ('params',),
    _policy_back,
  ),
  'discriminator': Kind(
    'heads, mapping network and trunk of the adversarial reward',
    "in AdaNAT's policy files",
    _discriminator,
    ('params', 'spectral', 'trunk?'),
    _discriminator_back,
  ),
  'vqgan': _kind(
    'the tokenizer of AdaNAT, AutoNAT, AdaGen and MAGE',
    'MAGE README (Google Drive, vqgan_jax_strongaug.ckpt)',
    vqgan.FAMILY,
    lambda arrays: vqgan.infer(arrays, num_groups=1),
    _tokenizer_notes,
  ),
  'dino': _kind(
    "the discriminator's frozen trunk, ViT-S/16",
    'dl.fbaipublicfiles.com/dino, dino_deitsmall16_pretrain.pth',
    vit.FAMILY,
    lambda arrays: vit.infer(arrays, num_heads=1),
  ),
  'inception': _kind(
    'Inception-v3 of the Frechet distance',
    'mseitzer/pytorch-fid release, pt_inception-2015-12-05-6726825d.pth',
    inception.FAMILY,
    lambda _: InceptionV3(),
    lambda *_: (
      "the count holds the normalisations' statistics, 34,432 numbers",
    ),
  ),
  'clip_text': _kind(
    "CLIP's text tower, with or without the image tower beside it",
    'Hugging Face laion/CLIP-ViT-bigG-14-laion2B-39B-b160k,'
    ' openai/clip-vit-large-patch14',
    clip.TEXT,
    lambda arrays: clip.infer_text(arrays, activation='gelu', num_heads=1),
    lambda module, arrays: (
      f'keys of {_clip_form(arrays)}; the weights do not tell the activation',
    ),
  ),
  'clip_image': _kind(
    "CLIP's image tower, with or without the text tower beside it",
    'Hugging Face openai/clip-vit-large-patch14, openai/clip-vit-base-patch32',
    clip.IMAGE,
    lambda arrays: clip.infer_image(arrays, activation='gelu', num_heads=1),
    lambda module, arrays: (
      f'keys of {_clip_form(arrays)}; images of {module.image_size} pixels,'
      f' patches of {module.patch_size}',
    ),
  ),
  'maskgit_transformer': _kind(
    "Google's MaskGIT transformer",
    'google-research/maskgit README (Google Cloud Storage)',
    maskgit.TRANSFORMER,
    lambda arrays: maskgit.infer_transformer(arrays, num_classes=0),
    lambda module, _: (
      f'{module.num_tokens} tokens, vocabulary of {module.codebook_size + 1}',
    ),
    prefix='params/',
  ),
  'maskgit_tokenizer': _kind(
    "Google's MaskGIT tokenizer",
    'google-research/maskgit README (Google Cloud Storage)',
    maskgit.TOKENIZER,
    lambda arrays: maskgit.infer_tokenizer(arrays, num_groups=1),
    _tokenizer_notes,
    prefix='params/',
  ),
  'halton': _kind(
    "Halton-MaskGIT's transformer",
    'Hugging Face llvictorll/Halton-Maskgit, ImageNet_384_large.pth',
    halton.FAMILY,
    lambda arrays: halton.infer(arrays, num_heads=1),
    _nat_notes,
    field='ema',
  ),
  'llamagen': _kind(
    "the tokenizer of Halton-MaskGIT, LlamaGen's",
    'Hugging Face FoundationVision/LlamaGen, vq_ds16_c2i.pt',
    llamagen.FAMILY,
    lambda arrays: llamagen.infer(arrays, num_groups=1),
    _tokenizer_notes,
  ),
  'fid_stats': Kind(
    'moments of real images; --output is an .npz file',
    'Hugging Face nzl-thu/MUSE, assets/fid_stats (mu, sigma)',
    _fid_stats,
    ('mean', 'covariance'),
    _fid_stats_back,
  ),
}

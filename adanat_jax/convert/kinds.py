"""The kinds of published weights: what they are and how they are converted.

Each kind turns what a file holds into the state that a finished stage leaves
in its checkpoint, so that the result can stand in for a trained stage, and
turns that state back into the original's keys.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

import numpy as np

from adanat_jax.convert import (
  clip,
  clip_image,
  discriminator,
  enat,
  files,
  inception,
  layout,
  maskgit,
  nat,
  policy,
  vit,
  vqgan,
)
from adanat_jax.errors import UserError
from adanat_jax.models.inception import InceptionV3

Arrays = Mapping[str, np.ndarray]

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
  694_659_840: 'CLIP ViT-bigG/14 (activation: gelu)',
  303_966_208: "CLIP ViT-L/14's image tower",
  87_849_216: "CLIP ViT-B/32's image tower",
  123_650_304: "CLIP ViT-L/14 (activation: quick_gelu if OpenAI's)",
}


@dataclasses.dataclass(frozen=True)
class Converted:
  """What a conversion gives.

  Attributes:
    state: fields of the checkpoint's state.
    counted: which part of it the parameter count is of.
    notes: what was found, for the user.
  """

  state: dict[str, Any]
  counted: Any
  notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Kind:
  """One kind of weights.

  Attributes:
    what: what they are.
    source: where their authors publish them.
    convert: what a file holds -> our state.
    fields: fields of the state that `reverse` needs; those that end in '?' may
      be absent.
    reverse: those fields -> arrays by the original's key.
  """

  what: str
  source: str
  convert: Callable[[Any], Converted]
  fields: tuple[str, ...]
  reverse: Callable[[Mapping[str, Any]], Arrays]


def release_of(num_parameters: int) -> str:
  """Says which published network has so many parameters."""
  return _RELEASES.get(num_parameters, 'no published network of this size')


def _nat(value: Any) -> Converted:
  arrays = files.find_arrays(value, ('nnet_ema', 'ema', 'nnet'))
  # The number of heads leaves no trace in the weights and none in ours.
  module = nat.infer(arrays, num_heads=1)
  params = nat.from_torch(arrays, module)
  condition = (
    f'{module.num_classes} classes'
    if module.num_classes is not None
    else f'text states of width {module.text_width}'
  )
  note = (
    f'width {module.width}, depth {module.depth}, {module.num_tokens} tokens'
    f' of {module.codebook_size} codes, {condition}'
  )
  return Converted({'ema': params}, params, (note,))


def _enat(value: Any) -> Converted:
  arrays = files.find_arrays(value, ('nnet_ema', 'ema', 'nnet'))
  # Nor does the decoder's share of the blocks.
  module = enat.infer(arrays, num_heads=1, decoder_depth=1)
  params = enat.from_torch(arrays, module)
  blocks = module.encoder_depth + module.decoder_depth
  note = (
    f'width {module.width}, {blocks} blocks, {module.num_tokens} tokens of'
    f' {module.codebook_size} codes, {module.num_classes} classes'
  )
  unused = sum(x.size for key, x in arrays.items() if enat.is_unused(key))
  dropped = f'{unused:,} numbers of prev_embedder, which is unused, dropped'
  return Converted({'ema': params}, params, (note, dropped))


def _steps(value: Any) -> tuple[str, ...]:
  """Says how far a training checkpoint had come and with which options."""
  if not isinstance(value, Mapping):
    return ()
  names = ('global_step', 'step', 'epoch', 'num_trajectories')
  found = {name: value.get(name) for name in names}
  found.update(gen_steps=getattr(value.get('args'), 'gen_steps', None))
  # A number of thousands of digits is no step, and cannot be printed.
  said = [
    f'{k} = {v}'
    for k, v in found.items()
    if isinstance(v, int) and abs(v) < 1 << 63
  ]
  return (', '.join(said),) if said else ()


def _policy(value: Any) -> Converted:
  arrays = files.find_arrays(value)
  networks = {'actor': layout.subset(arrays, 'policy_old.actor.')}
  if networks['actor']:
    networks['critic'] = layout.subset(arrays, 'policy_old.critic.')
    form = 'a training checkpoint of AdaNAT; policy_old is taken, as it does'
  else:
    networks = {'actor': arrays}
    form = 'an actor alone, as AdaGen publishes'
  params = {}
  for name, weights in networks.items():
    params[name] = policy.from_torch(weights, policy.infer(weights))
  return Converted({'params': params}, params['actor'], (form, *_steps(value)))


def _policy_back(state: Mapping[str, Any]) -> Arrays:
  found = state['params']
  if 'actor' not in found or not found.keys() <= {'actor', 'critic'}:
    raise KeyError(f'{", ".join(sorted(found)[:8])} and no actor')
  networks = {k: policy.to_torch(v) for k, v in found.items()}
  if set(networks) == {'actor'}:
    return networks['actor']
  # The two copies of an AdaNAT checkpoint are equal whenever it is written.
  return {
    f'{copy}.{name}.{key}': value
    for copy in ('policy', 'policy_old')
    for name, arrays in networks.items()
    for key, value in arrays.items()
  }


def _discriminator(value: Any) -> Converted:
  arrays = files.find_arrays(value, ('discriminator',))
  module, num_heads = discriminator.infer(arrays)
  state = dict(discriminator.from_torch(arrays, module, num_heads))
  trunk = layout.subset(arrays, discriminator.TRUNK_PREFIX)
  if trunk:
    state['trunk'] = vit.from_torch(trunk, vit.infer(trunk, num_heads=1))
  parts = 'with' if trunk else 'without'
  note = f'{num_heads} heads, {parts} the DINO trunk'
  return Converted(state, state['params'], (note, *_steps(value)))


def _discriminator_back(state: Mapping[str, Any]) -> Arrays:
  heads = {name: state[name] for name in ('params', 'spectral')}
  trunk = vit.to_torch(state['trunk']) if 'trunk' in state else {}
  return {
    **discriminator.to_torch(heads),
    **{discriminator.TRUNK_PREFIX + k: x for k, x in trunk.items()},
  }


def _vqgan(value: Any) -> Converted:
  arrays = files.find_arrays(value)
  # Nor do the groups of the normalisations leave a trace.
  module = vqgan.infer(arrays, num_groups=1)
  params = vqgan.from_torch(arrays, module)
  note = f'{module.codebook_size} codes of width {module.code_width}'
  return Converted({'params': params}, params, (note,))


def _dino(value: Any) -> Converted:
  arrays = files.find_arrays(value)
  params = vit.from_torch(arrays, vit.infer(arrays, num_heads=1))
  return Converted({'params': params}, params)


def _inception(value: Any) -> Converted:
  params = inception.from_torch(files.find_arrays(value), InceptionV3())
  note = "the count holds the normalisations' statistics, 34,432 numbers"
  return Converted({'params': params}, params, (note,))


def _clip_text(value: Any) -> Converted:
  arrays = files.find_arrays(value)
  form = 'open_clip or OpenAI' if clip.is_open_clip(arrays) else 'Hugging Face'
  module = clip.infer(arrays, activation='gelu', num_heads=1)
  params = clip.from_torch(arrays, module)
  note = f'keys of {form}; the weights do not tell the activation'
  return Converted({'params': params}, params, (note,))


def _clip_image(value: Any) -> Converted:
  arrays = files.find_arrays(value)
  is_open_clip = clip_image.is_open_clip(arrays)
  form = 'open_clip or OpenAI' if is_open_clip else 'Hugging Face'
  module = clip_image.infer(arrays, activation='gelu', num_heads=1)
  params = clip_image.from_torch(arrays, module)
  note = (
    f'keys of {form}; images of {module.image_size} pixels, patches of'
    f' {module.patch_size}'
  )
  return Converted({'params': params}, params, (note,))


def _maskgit_transformer(value: Any) -> Converted:
  arrays = files.find_arrays(value)
  # The split of the vocabulary leaves no trace in the weights.
  module = maskgit.infer_transformer(arrays, num_classes=0)
  params = maskgit.transformer_from_flax(arrays, module)
  note = f'{module.num_tokens} tokens, vocabulary of {len(params["words"])}'
  return Converted({'params': params}, params, (note,))


def _maskgit_tokenizer(value: Any) -> Converted:
  arrays = files.find_arrays(value)
  module = maskgit.infer_tokenizer(arrays, num_groups=1)
  params = maskgit.tokenizer_from_flax(arrays, module)
  note = f'{module.codebook_size} codes of width {module.code_width}'
  return Converted({'params': params}, params, (note,))


def _flax_keys(arrays: Arrays) -> Arrays:
  return {f'params/{key}': value for key, value in arrays.items()}


def _maskgit_tokenizer_back(state: Mapping[str, Any]) -> Arrays:
  params = state['params']
  downs = {k.split('_block_')[0] for k in params['encoder'] if 'down_' in k}
  table = maskgit.tokenizer_table(
    levels=len(downs),
    num_res_blocks=sum(k.startswith('down_0_') for k in params['encoder']),
    conv_downsample='downsample_0' in params['encoder'],
  )
  return _flax_keys(layout.to_theirs(params, table))


def _fid_stats(value: Any) -> Converted:
  arrays = files.find_arrays(value)
  if missing := {'mu', 'sigma'} - arrays.keys():
    raise UserError(
      f'no {" and ".join(sorted(missing))} in it, but'
      f' {", ".join(sorted(arrays)[:8])}'
    )
  mean, covariance = arrays['mu'], arrays['sigma']
  if mean.ndim != 1 or covariance.shape != 2 * mean.shape:
    raise UserError(
      f'mu is {mean.shape} and sigma {covariance.shape}: not the moments of'
      ' one set of features'
    )
  state = {
    'mean': np.asarray(mean, np.float64),
    'covariance': np.asarray(covariance, np.float64),
  }
  return Converted(state, {}, (f'moments of {mean.size} features',))


KINDS: dict[str, Kind] = {
  'nat': Kind(
    'the token transformer, class- or text-conditional',
    'AdaNAT and AutoNAT README (Google Drive, nnet_ema.pth); Hugging Face'
    ' nzl-thu/MaskGIT-L (AdaGen), nzl-thu/MUSE (CC3M)',
    _nat,
    ('ema',),
    lambda state: nat.to_torch(state['ema']),
  ),
  'enat': Kind(
    'the token transformer of ENAT, class-conditional',
    'ENAT README (Google Drive, nnet_ema.pth)',
    _enat,
    ('ema',),
    lambda state: enat.to_torch(state['ema']),
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
  'vqgan': Kind(
    'the tokenizer of AdaNAT, AutoNAT, AdaGen and MAGE',
    'MAGE README (Google Drive, vqgan_jax_strongaug.ckpt)',
    _vqgan,
    ('params',),
    lambda state: vqgan.to_torch(state['params']),
  ),
  'dino': Kind(
    "the discriminator's frozen trunk, ViT-S/16",
    'dl.fbaipublicfiles.com/dino, dino_deitsmall16_pretrain.pth',
    _dino,
    ('params',),
    lambda state: vit.to_torch(state['params']),
  ),
  'inception': Kind(
    'Inception-v3 of the Frechet distance',
    'mseitzer/pytorch-fid release, pt_inception-2015-12-05-6726825d.pth',
    _inception,
    ('params',),
    lambda state: inception.to_torch(state['params']),
  ),
  'clip_text': Kind(
    "CLIP's text tower, with or without the image tower beside it",
    'Hugging Face laion/CLIP-ViT-bigG-14-laion2B-39B-b160k,'
    ' openai/clip-vit-large-patch14',
    _clip_text,
    ('params',),
    lambda state: clip.to_torch(state['params']),
  ),
  'clip_image': Kind(
    "CLIP's image tower, with or without the text tower beside it",
    'Hugging Face openai/clip-vit-large-patch14, openai/clip-vit-base-patch32',
    _clip_image,
    ('params',),
    lambda state: clip_image.to_torch(state['params']),
  ),
  'maskgit_transformer': Kind(
    "Google's MaskGIT transformer",
    'google-research/maskgit README (Google Cloud Storage)',
    _maskgit_transformer,
    ('params',),
    lambda state: _flax_keys(maskgit.transformer_to_flax(state['params'])),
  ),
  'maskgit_tokenizer': Kind(
    "Google's MaskGIT tokenizer",
    'google-research/maskgit README (Google Cloud Storage)',
    _maskgit_tokenizer,
    ('params',),
    _maskgit_tokenizer_back,
  ),
  'fid_stats': Kind(
    'moments of real images; --output is an .npz file',
    'Hugging Face nzl-thu/MUSE, assets/fid_stats (mu, sigma)',
    _fid_stats,
    ('mean', 'covariance'),
    lambda state: {'mu': state['mean'], 'sigma': state['covariance']},
  ),
}

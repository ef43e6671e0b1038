"""The transformer of valeoai/Halton-MaskGIT, its `Network/transformer.py`.

The head shares the embedding's matrix, which its files hold twice.
"""

from adanat_jax.convert import layout
from adanat_jax.models import halton

_TIED, _WORDS = 'head.weight', 'tok_emb.weight'
_OURS, _THEIRS = r'blocks_(\d+)', r'transformer.layers.\1'

FAMILY = layout.Family(
  'a Halton-MaskGIT transformer',
  (
    layout.Entry('words', _WORDS),
    layout.Entry('positions', 'pos_emb.weight'),
    layout.Entry('classes', 'cls_emb.weight'),
    layout.Entry('registers', 'reg_tokens.weight'),
    *layout.linear(f'{_OURS}/modulation', f'{_THEIRS}.mlp.1'),
    layout.Entry(rf'{_OURS}/norm(\d)/scale', rf'{_THEIRS}.ln\2.weight'),
    *(
      entry
      for ours, theirs in (
        *(('query', 'attn.wq'), ('key', 'attn.wk'), ('value', 'attn.wv')),
        *(('out', 'attn.wo'), ('gate', 'ff.w1'), ('fc1', 'ff.w3')),
        ('fc2', 'ff.w2'),
      )
      for entry in layout.linear(f'{_OURS}/{ours}', f'{_THEIRS}.{theirs}')
    ),
    *layout.norm('norm', 'last_norm.norm_final'),
    *layout.linear('modulation', 'last_norm.mlp.1'),
    layout.Entry('head_bias', 'head.bias'),
  ),
  lambda module, _: (layout.ints(1, module.num_tokens), layout.ints(1)),
  ignore=lambda key: key == _TIED,
  complete=lambda arrays: {**arrays, _TIED: arrays[_WORDS]},
)


def infer(arrays: layout.Arrays, *, num_heads: int) -> halton.HaltonTransformer:
  """Reads a network's sizes off its weights, see `layout`."""
  shape_of = FAMILY.shape_reader(arrays)
  vocabulary, width = shape_of(_WORDS)
  return halton.HaltonTransformer(
    codebook_size=vocabulary - 1,
    num_classes=shape_of('cls_emb.weight')[0] - 1,
    num_tokens=shape_of('pos_emb.weight')[0],
    width=width,
    depth=layout.count(arrays, r'transformer\.layers\.(\d+)\.'),
    num_heads=num_heads,
    mlp_width=shape_of('transformer.layers.0.ff.w1.weight')[0],
    num_registers=shape_of('reg_tokens.weight')[0],
  )

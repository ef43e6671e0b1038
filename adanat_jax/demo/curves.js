// Curves that can be dragged, a panel for each list of numbers: a point is a
// step, dashed is where the curves started. `props.value` holds lists by name,
// {curves, start}, and the top of each panel, {most}. Gradio runs this with
// `element`, `props`, `trigger` and `watch`.
'use strict';
const WIDTH = 320, HEIGHT = 190, LEFT = 38, RIGHT = 18, TOP = 36, BOTTOM = 26;
const PAUSE = 300; // Milliseconds after which a change is reported.
let reported = null;

function make(parent, tag, attributes = {}, text = '') {
  const node = document.createElementNS('http://www.w3.org/2000/svg', tag);
  for (const [name, value] of Object.entries(attributes)) {
    node.setAttribute(name, value);
  }
  node.textContent = text;
  parent.append(node);
  return node;
}

function report(curves) {
  clearTimeout(reported);
  reported = setTimeout(() => {
    props.value = {...props.value, curves};
    trigger('release');
  }, PAUSE);
}

function panel(parent, name, curves, start, most) {
  const title = name.replaceAll('_', ' '), numbers = curves[name];
  const svg = make(parent, 'svg', {
    viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: 'group', 'aria-label': title});
  const wide = WIDTH - LEFT - RIGHT, high = HEIGHT - TOP - BOTTOM;
  const x = t => LEFT + wide * (t + .5) / numbers.length;
  const y = value => TOP + high * (1 - Math.min(value, most) / most);
  const path = list =>
    list.map((value, t) => `${t ? 'L' : 'M'}${x(t)} ${y(value)}`).join('');
  make(svg, 'text', {x: LEFT, y: 16, class: 'title'}, title);
  for (const share of [0, .5, 1]) {
    const at = y(share * most);
    make(svg, 'line', {x1: LEFT, x2: WIDTH - RIGHT, y1: at, y2: at});
    make(svg, 'text', {x: LEFT - 6, y: at + 4, class: 'left'},
         String(Number((share * most).toPrecision(2))));
  }
  make(svg, 'path', {d: path(start), class: 'start'});
  const curve = make(svg, 'path', {class: 'curve'});
  const points = numbers.map((_, t) => {
    make(svg, 'text', {x: x(t), y: HEIGHT - 8, class: 'middle'}, `${t + 1}`);
    const label = make(svg, 'text', {x: x(t), class: 'middle number'});
    const point = make(svg, 'circle', {
      cx: x(t), r: 8, tabindex: 0, role: 'slider', 'aria-valuemin': 0,
      'aria-valuemax': most, 'aria-label': `${title}, step ${t + 1}`});
    return {label, point};
  });

  function show() {
    curve.setAttribute('d', path(numbers));
    points.forEach(({label, point}, t) => {
      const value = Number(numbers[t].toFixed(3));
      label.textContent = value;
      label.setAttribute('y', y(value) - 12);
      point.setAttribute('cy', y(value));
      point.setAttribute('aria-valuenow', value);
    });
  }

  function change(t, value) {
    numbers[t] = Math.min(most, Math.max(0, value));
    show();
    report(curves);
  }

  points.forEach(({point}, t) => {
    point.addEventListener('pointerdown', event => {
      event.preventDefault();
      point.setPointerCapture(event.pointerId);
      point.focus();
    });
    point.addEventListener('pointermove', event => {
      if (!point.hasPointerCapture(event.pointerId)) return;
      const box = svg.getBoundingClientRect();
      const at = (event.clientY - box.top) * HEIGHT / box.height;
      change(t, most * (1 - (at - TOP) / high));
    });
    point.addEventListener('keydown', event => {
      const by = {ArrowUp: 1, ArrowDown: -1, PageUp: 10, PageDown: -10}[event.key];
      if (!by) return;
      event.preventDefault();
      change(t, numbers[t] + by * most / 100);
    });
  });
  show();
}

function draw() {
  const root = element.querySelector('.curves');
  if (!root || !props.value || !props.value.curves) return;
  // A point that has the focus keeps it.
  const focused = [...root.querySelectorAll('circle')]
    .indexOf(document.activeElement);
  root.replaceChildren();
  const {curves, start, most} = structuredClone(props.value);
  for (const name of Object.keys(curves)) {
    panel(root, name, curves, start[name], most[name]);
  }
  if (focused >= 0) root.querySelectorAll('circle')[focused].focus();
}

watch('value', draw);
draw();

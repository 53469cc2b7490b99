// A grid of attention as a picture with a cursor, and its scale. The report embeds this module, and the page of web/
// imports it.
import {DECADES, count, el, number, painters, ramp} from './draw.js';

/**
 * Rows of a grid as a picture with a cursor.
 * @param {(row: number) => string} rowName - what a row is called
 * @param {(row: number, column: number) => void} onPoint - the cursor has moved
 * @param {(row: number, column: number) => void} onPick - a click, or Enter
 */
export function gridView(rowName, onPoint, onPick) {
  const canvas = el('canvas');
  const cursor = el('div', {class: 'cursor', hidden: true});
  const going = el('div');
  const bars = el('div', {class: 'bars', 'aria-hidden': 'true'});
  const rows = el('div', {class: 'rows', 'aria-hidden': 'true'});
  const cells = el('div', {class: 'cells', tabindex: '0', role: 'application'}, canvas, going, cursor);
  const foot = el('div', {class: 'foot'});
  const node = el('div', {class: 'map'},
    el('span'), el('span', {class: 'head'}), el('span', {class: 'head'}, 'Gini'), rows, cells, bars, el('span'), foot, el('span'));
  let state;
  const draw = () => {
    if (!state) return;
    const colours = ramp();
    const {width, height, cells: values} = state;
    canvas.width = Math.max(width, 1);
    canvas.height = Math.max(height, 1);
    if (!width || !height) return;
    const context = canvas.getContext('2d');
    const image = context.createImageData(width, height);
    for (let i = 0; i < values.length; i++) image.data.set([...colours[values[i]], 255], 4 * i);
    context.putImageData(image, 0, 0);
  };
  painters.add(draw);
  const point = (row, column) => {
    if (!state?.width) return;
    row = Math.max(0, Math.min(state.height - 1, row));
    column = Math.max(0, Math.min(state.width - 1, column));
    Object.assign(state, {row, column});
    cursor.hidden = false;
    Object.assign(cursor.style, {
      left: `calc(${(100 * column) / state.width}% - 2px)`, width: `calc(${100 / state.width}% + 4px)`,
      top: `calc(${(100 * row) / state.height}% - 2px)`, height: `calc(${100 / state.height}% + 4px)`,
    });
    [...bars.children].forEach((bar, i) => bar.classList.toggle('on', i === row));
    onPoint(row, column);
  };
  const at = (event) => {
    const box = canvas.getBoundingClientRect();
    return [Math.floor(((event.clientY - box.top) / box.height) * state.height),
      Math.floor(((event.clientX - box.left) / box.width) * state.width)];
  };
  cells.addEventListener('pointermove', (event) => state?.width && point(...at(event)));
  cells.addEventListener('click', (event) => {
    if (!state?.width) return;
    point(...at(event));
    onPick(state.row, state.column);
  });
  cells.addEventListener('keydown', (event) => {
    const move = {ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1]}[event.key];
    if (move) point((state?.row ?? 0) + (state?.row === undefined ? 0 : move[0]), (state?.column ?? 0) + (state?.column === undefined ? 0 : move[1]));
    else if (event.key === 'Enter' && state?.row !== undefined) onPick(state.row, state.column);
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  const show = (grid, columns, evicting, label) => {
    const values = Uint8Array.from(atob(grid.cells), (c) => c.charCodeAt(0));
    state = {width: columns.length, height: grid.spread.length, cells: values};
    cursor.hidden = true;
    const tall = Math.max(96, Math.min(320, state.height * 12));
    cells.style.height = rows.style.height = bars.style.height = `${tall}px`;
    cells.setAttribute('aria-label', `${label}. Arrow keys move the cursor, Enter picks the row.`);
    rows.replaceChildren(el('span', {}, rowName(0)), el('span', {}, rowName(state.height - 1)));
    bars.replaceChildren(...grid.spread.map((s) => {
      const bar = el('i');
      bar.style.width = `${100 * (s ? s.gini : 0)}%`;
      return bar;
    }));
    going.replaceChildren(...columns.flatMap((step, i) => {
      if (!evicting.has(step)) return [];
      const mark = el('i', {class: 'going'});
      mark.style.left = `calc(${(100 * (i + 0.5)) / state.width}% - 2.5px)`;
      return [mark];
    }));
    foot.replaceChildren(...(columns.length
      ? [el('span', {}, `step ${columns[0] + 1}`), el('span', {}, `step ${columns.at(-1) + 1}`)] : []));
    draw();
  };
  return {node, show, value: (row, column) => state.cells[row * state.width + column]};
}

/** The legend of a grid: its colours, and the largest weight. */
export function scale() {
  const strip = el('i');
  const draw = () => {
    const colours = ramp();
    const stops = [0, 51, 102, 153, 204, 255].map((i) => `rgb(${colours[i].join(' ')})`);
    strip.style.background = `linear-gradient(90deg, ${stops.join(', ')})`;
  };
  painters.add(draw);
  draw();
  const most = el('span');
  return {node: el('div', {class: 'scale'}, el('span', {}, `1/${count(10 ** DECADES)} of the largest, or less`), strip, most),
    show: (largest) => {
      draw();
      most.replaceChildren(`largest: ${number(largest)} (log scale)`);
    }};
}

/** The weight that a byte of a map stands for, as text. */
export const weight = (byte, largest) => (byte === 0
  ? `below ${number(largest / 10 ** DECADES)}` : `about ${number(largest * 10 ** (-DECADES * ((255 - byte) / 254)))}`);

'use strict';
// Draws the page from the traces in it. Text from a trace only ever becomes the content of a text node.

const traces = JSON.parse(document.getElementById('data').textContent);
const DECADES = 4; // of the maps' colours; see html.rs

// --- small things -----------------------------------------------------------------------------------------------------------

const SVG = 'http://www.w3.org/2000/svg';

function make(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith('on')) node.addEventListener(key.slice(2), value);
    else node.setAttribute(key, value === true ? '' : value);
  }
  node.append(...children.filter((child) => child !== undefined && child !== null));
  return node;
}
const el = (tag, attributes, ...children) => make(document.createElement(tag), attributes, children);
const svg = (tag, attributes, ...children) => make(document.createElementNS(SVG, tag), attributes, children);

const count = (n) => n.toLocaleString('en-US');
const percent = (part, of) => (of ? `${((100 * part) / of).toFixed(part === of || part === 0 ? 0 : 1)} %` : '–');
const plural = (n, word) => `${count(n)} ${word}${n === 1 ? '' : 's'}`;
const number = (v) => (v === 0 ? '0' : v >= 0.001 && v < 1000 ? v.toPrecision(3) : v.toExponential(2));

function bytes(n) {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let unit = 0;
  while (n >= 1024 && unit + 1 < units.length) {
    n /= 1024;
    unit += 1;
  }
  return `${unit === 0 ? n : n.toFixed(n < 10 ? 2 : 1)} ${units[unit]}`;
}

/** Round steps that give about `wanted` ticks from 0 to `most`. */
function ticks(most, wanted) {
  const raw = most / wanted;
  const power = 10 ** Math.floor(Math.log10(raw || 1));
  const step = Math.max([1, 2, 5, 10].find((m) => m * power >= raw) * power, 1);
  return Array.from({length: Math.floor(most / step) + 1}, (_, i) => i * step);
}

function words(text, most) {
  const line = [...text.replace(/\s+/g, ' ').trim()];
  return line.length > most ? `${line.slice(0, most).join('').trimEnd()}…` : line.join('');
}

const dark = matchMedia('(prefers-color-scheme: dark)');
let printing = false;

// Sequential, monotone in lightness and so told apart without colour: more ink is more attention.
const RAMPS = {
  light: ['#ffffff', '#dcecec', '#a5cfd6', '#5ea6bd', '#2d7399', '#1d4778', '#121d4a'],
  dark: ['#1c2024', '#1f3947', '#235a6e', '#318193', '#5facae', '#a5d3bd', '#f4f6d2'],
};

/** 256 colours as [r, g, b]. */
function ramp() {
  const stops = RAMPS[dark.matches && !printing ? 'dark' : 'light'].map((hex) =>
    [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)));
  return Array.from({length: 256}, (_, i) => {
    const at = (i / 255) * (stops.length - 1);
    const low = Math.min(Math.floor(at), stops.length - 2);
    return stops[low].map((from, c) => Math.round(from + (stops[low + 1][c] - from) * (at - low)));
  });
}

// --- the cache over time ------------------------------------------------------------------------------------------------------

/** A chart of up to `most` generated tokens. `lines`: [class, [[x, y], …]]. `unit`: a tick's second name. */
function chart(most, highest, lines, unit, describe) {
  const [width, height, left, right, top, bottom] = [560, 210, 46, unit ? 58 : 12, 14, 34];
  const x = (v) => left + (v / Math.max(1, most)) * (width - left - right);
  const y = (v) => height - bottom - (v / Math.max(1, highest)) * (height - top - bottom);
  const picture = svg('svg', {viewBox: `0 0 ${width} ${height}`, role: 'img', 'aria-label': describe});
  for (const v of ticks(highest, 4)) {
    picture.append(
      svg('line', {class: 'grid', x1: left, x2: width - right, y1: y(v), y2: y(v)}),
      svg('text', {x: left - 6, y: y(v) + 4, 'text-anchor': 'end'}, count(v)));
    if (unit && v > 0) picture.append(svg('text', {x: width - right + 6, y: y(v) + 4}, unit(v)));
  }
  for (const v of ticks(most, 5)) {
    picture.append(svg('text', {x: x(v), y: height - bottom + 16, 'text-anchor': 'middle'}, count(v)));
  }
  picture.append(svg('text', {x: (left + width - right) / 2, y: height - 4, 'text-anchor': 'middle'}, 'generated tokens'));
  const path = (points) => points.map(([px, py], i) => `${i ? 'L' : 'M'}${x(px).toFixed(1)} ${y(py).toFixed(1)}`).join('');
  for (const [kind, points] of lines) {
    if (kind === 'held' && points.length) {
      const base = `L${x(points.at(-1)[0]).toFixed(1)} ${y(0)}L${x(points[0][0]).toFixed(1)} ${y(0)}Z`;
      picture.append(svg('path', {class: 'held-area', d: path(points) + base}));
    }
    picture.append(svg('path', {class: kind, d: path(points)}));
  }
  return {picture, x, y, height, top, bottom};
}

// Traces side by side share their axes.
const longest = Math.max(1, ...traces.map((t) => t.totals.generated_tokens));
const fullest = Math.max(1, ...traces.map((t) => t.totals.prompt_tokens + t.totals.generated_tokens));

function cacheFigure(trace) {
  const {totals} = trace;
  const [prompt, end] = [totals.prompt_tokens, totals.generated_tokens];
  const held = [[0, prompt]];
  for (const probe of trace.probes) held.push([probe.at, probe.before], [probe.at, probe.after]);
  const last = trace.probes.at(-1);
  // From the last probe on, a slot a token.
  held.push([end, (last?.after ?? prompt) + end - (last?.at ?? 0)]);
  const peak = Math.max(...held.map((p) => p[1]));
  const unit = trace.slot_bytes ? (slots) => bytes(slots * trace.slot_bytes) : undefined;
  const says = `Cached slots over generated tokens: at most ${count(peak)}, where the full cache would have ${count(prompt + end)}.`;
  const {picture, x, y, height, top, bottom} =
    chart(longest, fullest, [['full', [[0, prompt], [end, prompt + end]]], ['held', held]], unit, says);
  const middle = end * 0.62;
  picture.append(
    svg('text', {class: 'name', x: x(middle) - 8, y: y(prompt + middle) - 6, 'text-anchor': 'end'}, 'full cache'),
    svg('text', {class: 'name held-name', x: x(end) - 6, y: height - bottom - 7, 'text-anchor': 'end'}, 'kept'));
  const now = svg('line', {class: 'now', y1: top - 6, y2: height - bottom});
  const dot = svg('circle', {class: 'cut-dot', r: 4});
  picture.append(now, dot);
  const show = (k) => {
    const probe = trace.probes[k - 1];
    for (const node of [now, dot]) node.style.display = probe ? '' : 'none';
    if (!probe) return;
    now.setAttribute('x1', x(probe.at));
    now.setAttribute('x2', x(probe.at));
    dot.setAttribute('cx', x(probe.at));
    dot.setAttribute('cy', y(probe.after));
  };
  const caption = unit ? 'Slots in use (left) and the bytes of their keys and values (right).' : 'Slots in use.';
  return {node: el('figure', {}, el('h3', {}, 'The cache'), el('figcaption', {}, caption), picture), show};
}

/** A bar a step, as tall as its tokens; what went stands on top, outlined and in the other colour. */
function stepsFigure(trace, goTo) {
  const sizes = trace.steps.map((runs) => runs.reduce((sum, r) => sum + r[1], 0));
  if (sizes.length < 2) return undefined;
  const [width, height, left, bottom, top] = [560, 130, 46, 20, 8];
  const tallest = Math.max(...sizes);
  const wide = (width - left - 12) / sizes.length;
  const x = (i) => left + i * wide;
  const tall = (n) => (n / tallest) * (height - top - bottom);
  const short = sizes.filter((n) => n <= 8).length;
  const says = `${plural(sizes.length, 'step')}; the longest has ${plural(tallest, 'token')}, ${percent(short, sizes.length)} have at most 8.`;
  const picture = svg('svg', {viewBox: `0 0 ${width} ${height}`, role: 'img', 'aria-label': says, class: 'pick'});
  for (const v of ticks(tallest, 3)) {
    const y = height - bottom - tall(v);
    picture.append(svg('line', {class: 'grid', x1: left, x2: width - 12, y1: y, y2: y}),
      svg('text', {x: left - 6, y: y + 4, 'text-anchor': 'end'}, count(v)));
  }
  picture.append(svg('text', {x: left, y: height - 4}, 'step 1'),
    svg('text', {x: width - 12, y: height - 4, 'text-anchor': 'end'}, `step ${count(sizes.length)}`));
  const [kept, gone] = [svg('path', {class: 'step-kept'}), svg('path', {class: 'step-gone'})];
  picture.append(kept, gone);
  picture.addEventListener('click', (event) => {
    const box = picture.getBoundingClientRect();
    const at = Math.floor((((event.clientX - box.left) / box.width) * width - left) / wide);
    if (at >= 0 && at < sizes.length) goTo(at);
  });
  const gap = wide > 3 ? Math.min(1.5, wide / 5) : 0;
  const bar = (i, from, to) => {
    const base = height - bottom;
    return `M${(x(i) + gap / 2).toFixed(2)} ${(base - tall(from)).toFixed(2)}h${(wide - gap).toFixed(2)}V${(base - tall(to)).toFixed(2)}h${(gap - wide).toFixed(2)}Z`;
  };
  const show = (k) => {
    let [stay, went] = ['', ''];
    trace.steps.forEach((runs, i) => {
      const cut = runs.reduce((sum, r) => sum + (r[2] >= 0 && r[2] < k ? r[1] : 0), 0);
      if (sizes[i] > cut) stay += bar(i, 0, sizes[i] - cut);
      if (cut) went += bar(i, sizes[i] - cut, sizes[i]);
    });
    kept.setAttribute('d', stay);
    gone.setAttribute('d', went);
  };
  return {node: el('figure', {}, el('h3', {}, 'The steps'),
    el('figcaption', {}, `Tokens of each step${trace.probes.length ? ', what was cut outlined on top' : ''}. ${says}`), picture), show};
}

const mib = (n) => n / 2 ** 20;
const mostMemory = mib(Math.max(0, ...traces.flatMap((t) => t.probes.flatMap((p) => p.bytes))));

/** Device memory as the allocator reported it around each probe; nothing where it was not measured. */
function memoryFigure(trace) {
  if (!trace.probes.some((p) => p.bytes[1] > 0)) return undefined;
  const line = (before, after) => trace.probes.flatMap((p) => [[p.at, mib(p.bytes[before])], [p.at, mib(p.bytes[after])]]);
  const [used, reserved] = [line(0, 2), line(1, 3)];
  const {picture, x, y, height, bottom} = chart(longest, mostMemory, [['full', reserved], ['held', used]], undefined,
    `Device memory: at the last probe ${used.at(-1)[1].toFixed(1)} MiB in use, ${reserved.at(-1)[1].toFixed(1)} MiB reserved.`);
  const [last, most] = [reserved.at(-1)[0], Math.max(...reserved.map((p) => p[1]))];
  picture.append(
    svg('text', {class: 'name', x: x(last) - 2, y: y(most) - 6, 'text-anchor': 'end'}, 'reserved'),
    svg('text', {class: 'name held-name', x: x(last) - 6, y: height - bottom - 7, 'text-anchor': 'end'}, 'in use'));
  return el('figure', {}, el('h3', {}, 'Device memory'),
    el('figcaption', {}, 'MiB at each probe, before and after the gather, weights included.'), picture);
}

// --- the attention map ----------------------------------------------------------------------------------------------------------

const paint = new Set(); // redraws a canvas when the ramp changes

/** Rows of a grid as a picture with a cursor. `rowName(r)`: what a row is called. */
function gridView(rowName, onPoint, onPick) {
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
  paint.add(draw);
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
    cells.setAttribute('aria-label', `${label}. Arrow keys move, Enter picks.`);
    rows.replaceChildren(el('span', {}, rowName(0)), el('span', {}, rowName(state.height - 1)));
    bars.replaceChildren(...grid.spread.map((s) => {
      const bar = el('i');
      bar.style.width = `${100 * (s ? s[0] : 0)}%`;
      return bar;
    }));
    going.replaceChildren(...columns.flatMap((step, i) => {
      if (!evicting.has(step)) return [];
      const mark = el('i', {class: 'going'});
      mark.style.left = `calc(${(100 * (i + 0.5)) / state.width}% - ${Math.max(2.5, 0)}px)`;
      return [mark];
    }));
    foot.replaceChildren(...(columns.length
      ? [el('span', {}, `step ${columns[0] + 1}`), el('span', {}, `step ${columns.at(-1) + 1}`)] : []));
    draw();
  };
  return {node, show, value: (row, column) => state.cells[row * state.width + column]};
}

function scale() {
  const strip = el('i');
  const draw = () => {
    const colours = ramp();
    const stops = [0, 51, 102, 153, 204, 255].map((i) => `rgb(${colours[i].join(' ')})`);
    strip.style.background = `linear-gradient(90deg, ${stops.join(', ')})`;
  };
  paint.add(draw);
  draw();
  const most = el('span');
  return {node: el('div', {class: 'scale'}, el('span', {}, `1/${count(10 ** DECADES)} of it and less`), strip, most),
    show: (largest) => {
      draw();
      most.replaceChildren(`the largest: ${number(largest)} (log scale)`);
    }};
}

/** What a byte of a map stands for. */
const weight = (byte, largest) => (byte === 0 ? `below ${number(largest / 10 ** DECADES)}` : `about ${number(largest * 10 ** (-DECADES * ((255 - byte) / 254)))}`);

function mapFigure(trace, goTo) {
  if (!trace.probes.some((p) => p.map)) return undefined;
  let current;
  let layer;
  const say = el('p', {class: 'say', role: 'status'});
  const spread = (s) => (s ? `Gini ${s[0].toFixed(2)}, top tenth ${percent(s[1], 1)}` : 'no attention on the thinking');
  const tell = (view, grid, name) => (row, column) => {
    const step = current.map.columns[column];
    say.replaceChildren(
      `${name(row)}, `, el('button', {class: 'link', type: 'button', onclick: () => goTo(step)}, `step ${step + 1}`),
      ` “${words(trace.steps[step]?.map((r) => r[0]).join('') ?? '', 40)}”: ${weight(view().value(row, column), grid().largest)}. `,
      `${name(row)}: ${spread(grid().spread[row])}.`);
  };
  const layers = gridView((r) => `layer ${r + 1}`,
    tell(() => layers, () => current.map.layers, (r) => `Layer ${r + 1}`),
    (row) => { layer = row; showHeads(); });
  const heads = gridView((r) => `head ${r + 1}`,
    tell(() => heads, () => current.map.heads[layer], (r) => `Layer ${layer + 1}, head ${r + 1}`), () => {});
  const [layerScale, headScale] = [scale(), scale()];
  const overall = el('figcaption');
  const headTitle = el('h3');
  const headNote = el('p', {class: 'quiet'});
  const headBox = el('div', {class: 'heads', hidden: true}, headTitle, headNote, heads.node, headScale.node);
  const evicting = () => new Set(current.steps.filter((s) => s[3] > 0).map((s) => s[0]));

  function showHeads() {
    headBox.hidden = layer === undefined || !current?.map;
    if (headBox.hidden) return;
    const grid = current.map.heads[layer];
    headTitle.replaceChildren(`The heads of layer ${layer + 1}`);
    headNote.hidden = !!grid;
    heads.node.hidden = headScale.node.hidden = !grid;
    headNote.replaceChildren(current.map.heads_left_out
      ? 'Left out here to keep the page small; the next probes may have them, the trace has all.'
      : 'Not recorded. secateur run --trace FILE --trace-heads records every head.');
    if (!grid) return;
    heads.show(grid, current.map.columns, evicting(), `Attention of the heads of layer ${layer + 1} to the steps`);
    headScale.show(grid.largest);
  }
  const show = (k) => {
    // Before the first probe there is nothing to see yet.
    current = trace.probes[Math.max(k, 1) - 1];
    const map = current?.map;
    layers.node.hidden = layerScale.node.hidden = !map;
    say.replaceChildren();
    if (!map) {
      overall.replaceChildren('No map at this probe.');
      headBox.hidden = true;
      return;
    }
    const known = map.layers.spread.filter((s) => s);
    const mean = (i) => known.reduce((sum, s) => sum + s[i], 0) / (known.length || 1);
    overall.replaceChildren(
      `How much the probe's </think> attends to each step still cached, a layer a row, at probe ${Math.max(k, 1)}. ` +
      `Marks: steps that this probe cuts from. `, el('br'),
      `Spread over the thinking, mean of the layers: Gini ${mean(0).toFixed(2)} (0 even, 1 all on one token); ` +
      `the top tenth of tokens hold ${percent(mean(1), 1)}.`);
    layers.show(map.layers, map.columns, evicting(), 'Attention of each layer to the steps');
    layerScale.show(map.layers.largest);
    showHeads();
  };
  return {
    node: el('figure', {}, el('h3', {}, 'The attention of </think>'), overall, layers.node, layerScale.node, say, headBox),
    show,
  };
}

/** In scopes with a kept set for each layer or head: what each layer still holds. */
function keptFigure(trace, goTo) {
  if (!trace.probes.some((p) => p.kept)) return undefined;
  const say = el('p', {class: 'say', role: 'status'});
  const view = gridView((r) => `layer ${r + 1}`, (row, column) => say.replaceChildren(
    `Layer ${row + 1} holds ${percent(view.value(row, column), 255)} of `,
    el('button', {class: 'link', type: 'button', onclick: () => goTo(column)}, `step ${column + 1}`), ' so far.'), () => {});
  view.node.classList.add('bare');
  const caption = el('figcaption');
  const show = (k) => {
    const probe = trace.probes[Math.max(k, 1) - 1];
    const cells = atob(probe.kept).length;
    const columns = probe.known;
    const rows = columns ? cells / columns : 0;
    say.replaceChildren();
    caption.replaceChildren(`Each ${trace.settings[0] === 'head' ? 'KV head' : 'layer'} keeps its own tokens. A row a layer, a column a step: ` +
      `the stronger, the more of the step is still cached after probe ${Math.max(k, 1)}.`);
    view.show({cells: probe.kept, spread: Array(rows).fill(null)}, Array.from({length: columns}, (_, i) => i), new Set(), 'What each layer holds');
  };
  return {node: el('figure', {}, el('h3', {}, 'What each layer kept'), caption, view.node, say), show};
}

// --- the reasoning ----------------------------------------------------------------------------------------------------------------

function reasoning(trace, id) {
  const probed = trace.probes.length > 0;
  // Of each step, by probe: importance, rank from the least, of how many, and how much of it went.
  const seen = trace.steps.map(() => []);
  trace.probes.forEach((probe, p) => {
    const ranked = probe.steps.filter((s) => s[1] !== null).sort((a, b) => a[1] - b[1] || a[0] - b[0]);
    const rank = new Map(ranked.map((s, i) => [s[0], i + 1]));
    const most = ranked.at(-1)?.[1] || 1;
    for (const [step, importance, cached, evicted] of probe.steps) {
      seen[step]?.push({p, importance, rank: rank.get(step), of: ranked.length, share: (importance ?? 0) / most, cached, evicted});
    }
  });
  const why = (s) => {
    const probe = trace.probes[s.p];
    const allowed = probe.target === null ? trace.budget : `${trace.budget}, that is ${count(probe.target)} of ${count(probe.thinking)} thinking tokens`;
    const reason = s.importance === null
      ? `${trace.policy} measures no importance`
      : `importance ${number(s.importance)}, ${s.rank === 1 ? 'the lowest' : `${ordinal(s.rank)} lowest`} of ${plural(s.of, 'step')}`;
    return `Probe ${s.p + 1} cut ${s.evicted} of ${plural(s.cached, 'token')}: ${reason}; the budget was ${allowed}.`;
  };
  let written = 0; // thinking tokens before a step
  const rows = trace.steps.map((runs, i) => {
    const tokens = runs.reduce((sum, r) => sum + r[1], 0);
    const from = written;
    written += tokens;
    const bar = el('span', {class: 'bar'});
    const mark = el('span', {class: 'mark'});
    const texts = runs.map(([text, , probe], r) => {
      // White space around a step would be empty lines and indents here.
      let shown = r === runs.length - 1 ? text.trimEnd() : text;
      if (r === 0) shown = shown.trimStart();
      return probe < 0 ? el('span', {}, shown) : el('span', {'data-probe': probe}, shown);
    });
    const body = el('div', {class: 'say-it'}, ...texts);
    const reason = el('p', {class: 'why', hidden: true});
    const li = el('li', {class: 'step', id: `${id}-step-${i + 1}`},
      el('div', {class: 'side'}, el('span', {title: plural(tokens, 'token')}, `${i + 1}`), bar, mark), body, reason);
    const cuts = runs.filter((r) => r[2] >= 0).map((r) => ({probe: r[2], tokens: r[1]}));
    return {li, bar, mark, body, reason, from, tokens, cuts, spans: texts.filter((t) => t.dataset.probe), history: seen[i]};
  });
  const list = el('ol', {class: 'steps', 'aria-label': 'Steps of the reasoning'}, ...rows.map((r) => r.li));
  list.addEventListener('click', (event) => {
    const row = rows.find((r) => r.li === event.target.closest('.step'));
    if (row && getSelection().isCollapsed) row.reason.hidden = !row.reason.hidden;
  });

  const show = (k) => {
    const now = k > 0 && k < trace.probes.length ? trace.probes[k - 1].thinking : Infinity;
    for (const row of rows) {
      row.li.classList.toggle('later', row.from >= now);
      const gone = row.cuts.filter((c) => c.probe < k).reduce((sum, c) => sum + c.tokens, 0);
      const whole = gone > 0 && gone === row.tokens;
      const latest = row.history.filter((s) => s.p < k).at(-1);
      const known = latest && latest.importance !== null;
      row.li.classList.toggle('whole', whole);
      // By rank, because ranks decide; the bar is the value.
      const shade = known && !whole ? (latest.of > 1 ? (latest.rank - 1) / (latest.of - 1) : 1) : 0;
      row.body.style.setProperty('--shade', shade.toFixed(3));
      row.bar.style.width = known ? `${Math.max(2, 100 * latest.share)}%` : '0';
      row.bar.style.visibility = known && !whole ? '' : 'hidden';
      for (const span of row.spans) {
        const probe = Number(span.dataset.probe);
        span.className = probe < k ? (probe === k - 1 ? 'cut fresh' : 'cut') : '';
        span.title = probe < k ? `cut by probe ${probe + 1}` : '';
      }
      const probes = [...new Set(row.cuts.filter((c) => c.probe < k).map((c) => c.probe + 1))].sort((a, b) => a - b);
      row.mark.replaceChildren(probes.length ? `✂ ${probes.length > 2 ? `${probes[0]}–${probes.at(-1)}` : probes.join(', ')}` : '');
      const lines = row.history.filter((s) => s.p < k && s.evicted > 0).map(why);
      if (!lines.length) {
        lines.push(known
          ? `Kept. Importance ${number(latest.importance)} at probe ${latest.p + 1}, ${ordinal(latest.rank)} lowest of ${plural(latest.of, 'step')}; ${plural(latest.cached, 'token')} cached.`
          : probed ? `Kept; no probe has measured it. ${plural(row.tokens, 'token')}.` : `${plural(row.tokens, 'token')}.`);
      }
      row.reason.replaceChildren(lines.join(' '));
    }
  };
  const goTo = (step) => {
    const row = rows[step];
    if (!row) return;
    for (const other of rows) other.li.classList.toggle('found', other === row);
    row.reason.hidden = false;
    row.li.scrollIntoView({block: 'center', behavior: 'instant'});
  };
  const legend = el('p', {class: 'legend quiet'});
  const swatch = (shade, text) => {
    const b = el('b', {}, text);
    b.style.background = `color-mix(in oklab, var(--tint) ${46 * shade}%, transparent)`;
    return b;
  };
  if (probed) {
    const measured = trace.probes.some((p) => p.steps.some((s) => s[1] !== null));
    legend.append(
      !measured ? el('span', {}, `${trace.policy} measures no importance`) : el('span', {}, swatch(0.05, 'least'), swatch(0.5, 'important'), swatch(1, 'most'), ' by rank; bar: by value'),
      el('span', {}, el('span', {class: 'cut fresh'}, 'cut by this probe'), ' ', el('span', {class: 'cut'}, 'cut before')),
      el('span', {}, el('span', {class: 'not-yet'}, 'not written yet')),
      el('span', {}, '✂ which probe cut it', el('span', {class: 'screen'}, '; click a step for the reason')));
  }
  return {list, legend, show, goTo, open: (all) => rows.forEach((r) => { r.reason.hidden = !(all && r.cuts.length); })};
}

function ordinal(n) {
  const end = n % 100 >= 11 && n % 100 <= 13 ? 'th' : (['th', 'st', 'nd', 'rd'][n % 10] ?? 'th');
  return `${count(n)}${end}`;
}

// --- one trace ------------------------------------------------------------------------------------------------------------------

function facts(trace) {
  const t = trace.totals;
  const fact = (name, value, more) => el('div', {}, el('dt', {}, name), el('dd', {}, value, more && el('small', {}, more)));
  // The first token comes with the prompt, and the last is sampled, never forwarded: a step for each but one.
  const decoded = Math.max(t.generated_tokens - 1, 0);
  const rate = `${(decoded / (t.decode_us / 1e6)).toFixed(1)} tok/s`;
  const all = t.prompt_tokens + decoded;
  return el('dl', {class: 'facts'},
    fact('generated', count(t.generated_tokens), `${count(t.thinking_tokens)} thinking, after ${count(t.prompt_tokens)} of prompt`),
    fact('steps', count(trace.steps.length), trace.steps.length ? `${(t.thinking_tokens / trace.steps.length).toFixed(1)} tokens each` : ''),
    !trace.probes.length ? undefined : fact('evicted', percent(t.evicted_tokens, t.thinking_tokens), `${count(t.evicted_tokens)} tokens, ${plural(trace.probes.length, 'probe')}`),
    !t.peak_cached ? undefined : fact('slots at most', count(t.peak_cached), `${count(t.final_cached)} at the end, ${count(all)} without pruning`),
    t.peak_kv_bytes ? fact('keys and values', bytes(t.peak_kv_bytes), 'on the device, at most') : undefined,
    !t.decode_us ? undefined : fact('decoding', rate, `probes take ${percent(t.probe_us, t.decode_us + t.probe_us)} of the time`));
}

function table(trace, jump) {
  if (!trace.probes.length) return undefined;
  const head = ['probe', 'at token', 'cached', 'after', 'evicted', 'budget', 'probe ms', 'plan ms', 'gather ms', 'reserved'];
  const ms = (us) => (us / 1000).toFixed(1);
  const rows = trace.probes.map((p, i) => el('tr', {},
    el('td', {}, el('button', {class: 'link', type: 'button', onclick: () => jump(i + 1)}, `${i + 1}`)),
    ...[count(p.at), count(p.before), count(p.after), count(p.evicted),
      p.infeasible ? `${count(p.infeasible[0])} missed: ${count(p.infeasible[1])} stay` : (p.target === null ? 'met' : count(p.target)),
      ...p.us.map(ms), p.bytes[3] ? bytes(p.bytes[3]) : '–'].map((text) => el('td', {}, text))));
  const body = el('tbody', {}, ...rows);
  const node = el('details', {}, el('summary', {}, 'Every probe in numbers'),
    el('div', {class: 'scroll'}, el('table', {},
      el('thead', {}, el('tr', {}, ...head.map((h) => el('th', {scope: 'col'}, h)))), body)));
  return {node, show: (k) => rows.forEach((r, i) => r.classList.toggle('current', i === k - 1))};
}

/** Settings that are not as they are by default. */
function unusual(trace) {
  const [scope, layers, normalise, positions] = trace.settings;
  const all = [scope !== 'shared' && `a kept set for each ${scope}`, layers !== 'all' && `layers ${layers}`,
    normalise !== 'none' && `normalised ${normalise}`, positions !== 'original' && `${positions} positions`];
  return all.filter(Boolean).map((text) => `${text}; `).join('');
}

function section(trace, index, jump) {
  const steps = reasoning(trace, `t${index + 1}`);
  // A trace of text that was generated elsewhere has no cache to show.
  const cache = trace.totals.peak_cached ? cacheFigure(trace) : undefined;
  const lengths = stepsFigure(trace, steps.goTo);
  const map = mapFigure(trace, steps.goTo);
  const kept = keptFigure(trace, steps.goTo);
  const numbers = table(trace, jump);
  const state = el('p', {class: 'quiet', role: 'status'});
  const device = `${trace.model} · ${trace.device}`;
  const node = el('section', {class: 'trace', 'aria-label': trace.name},
    el('div', {class: 'about'}, el('h2', {}, trace.name),
      el('p', {class: 'quiet'}, device),
      el('p', {class: 'quiet'},
        (trace.probe_every ? `${trace.policy}, ${trace.budget}; window ${trace.window}, a probe every ${trace.probe_every} thinking tokens; ` : '') +
        unusual(trace) + `stopped: ${trace.stop}`),
      facts(trace)),
    el('div', {class: 'pictures'}, cache?.node, map?.node, kept?.node, lengths?.node, memoryFigure(trace)),
    el('div', {class: 'reasoning'},
      trace.prompt && el('details', {}, el('summary', {}, 'The prompt'), el('div', {class: 'text', dir: 'auto'}, trace.prompt)),
      el('div', {}, el('h3', {}, 'The reasoning'), state, steps.legend, steps.list),
      trace.answer.trim() && el('div', {}, el('h3', {}, 'The answer'), el('div', {class: 'text', dir: 'auto'}, trace.answer.trim()))),
    el('div', {class: 'more'}, numbers?.node));
  const show = (k) => {
    k = Math.min(k, trace.probes.length);
    steps.show(k);
    cache?.show(k);
    lengths?.show(k);
    map?.show(k);
    kept?.show(k);
    numbers?.show(k);
    const probe = trace.probes[k - 1];
    const text = probe
      ? `After probe ${k} of ${trace.probes.length}, at ${count(probe.thinking)} thinking tokens: ${count(probe.after)} of ` +
        `${count(trace.totals.prompt_tokens + probe.at)} tokens cached.`
      : trace.probes.length ? 'Before the first probe: everything is cached.' : 'No probe was made.';
    state.replaceChildren(text);
    return text;
  };
  return {node, show, open: steps.open};
}

// --- the page ---------------------------------------------------------------------------------------------------------------------

const $ = (id) => document.getElementById(id);
const most = Math.max(...traces.map((t) => t.probes.length));
let probe = most;

const sections = traces.map((trace, i) => section(trace, i, (k) => show(k)));
$('main').className = traces.length > 1 ? 'two' : 'one';
$('main').append(...sections.map((s) => s.node));
$('lead').append('What a model thought, what its cache kept of it, and why the rest went.');

function show(k) {
  probe = Math.max(0, Math.min(most, k));
  sections.forEach((s) => s.show(probe));
  $('probe').value = probe;
  $('probe').setAttribute('aria-valuetext', `probe ${probe} of ${most}`);
  $('back').disabled = probe === 0;
  $('on').disabled = probe === most;
  $('where').value = probe ? `after probe ${probe} of ${most}` : 'before the first probe';
}

let timer;
function play(on) {
  clearInterval(timer);
  timer = undefined;
  $('play').setAttribute('aria-pressed', String(on));
  $('play').textContent = on ? 'Pause' : 'Play';
  if (!on) return;
  if (probe === most) show(0);
  timer = setInterval(() => (probe < most ? show(probe + 1) : play(false)), 900);
}

$('bar').hidden = most === 0;
$('probe').max = most;
$('probe').addEventListener('input', () => { play(false); show(Number($('probe').value)); });
$('back').addEventListener('click', () => { play(false); show(probe - 1); });
$('on').addEventListener('click', () => { play(false); show(probe + 1); });
$('play').addEventListener('click', () => play(timer === undefined));

const repaint = () => paint.forEach((draw) => draw());
dark.addEventListener('change', repaint);
addEventListener('beforeprint', () => { printing = true; play(false); show(most); repaint(); });
addEventListener('afterprint', () => { printing = false; repaint(); });

show(most);
document.body.dataset.state = 'drawn';

// The figures: the cache over time, the steps, device memory, attention maps, what each layer kept.
import {chart} from '../../../web/draw/chart.js';
import {bytes, count, el, excerpt, percent, plural, svg, ticks} from '../../../web/draw/draw.js';
import {gridView, scale, weight} from '../../../web/draw/grid.js';
import {textOf, tokensOf, traces} from './helpers.js';

// Traces that stand side by side share their axes.
const longest = Math.max(1, ...traces.map((t) => t.totals.generated_tokens));
const fullest = Math.max(1, ...traces.map((t) => t.totals.prompt_tokens + t.totals.generated_tokens));

export function cacheFigure(trace) {
  const {totals} = trace;
  const [prompt, end] = [totals.prompt_tokens, totals.generated_tokens];
  const held = [{x: 0, y: prompt}];
  for (const {at_token: at, cached_before, cached_after} of trace.probes) {
    held.push({x: at, y: cached_before}, {x: at, y: cached_after});
  }
  const last = trace.probes.at(-1);
  // After the last probe, every token takes a slot.
  held.push({x: end, y: (last?.cached_after ?? prompt) + end - (last?.at_token ?? 0)});
  const peak = Math.max(...held.map((p) => p.y));
  const unit = trace.slot_bytes ? (slots) => bytes(slots * trace.slot_bytes) : undefined;
  const label = `Cached slots over generated tokens: at most ${count(peak)}. The full cache would have ${count(prompt + end)}.`;
  const full = [{x: 0, y: prompt}, {x: end, y: prompt + end}];
  const {picture, x, y, height, top, bottom} =
    chart({most: longest, highest: fullest, lines: [{kind: 'full', points: full}, {kind: 'held', points: held}], unit, label});
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
    now.setAttribute('x1', x(probe.at_token));
    now.setAttribute('x2', x(probe.at_token));
    dot.setAttribute('cx', x(probe.at_token));
    dot.setAttribute('cy', y(probe.cached_after));
  };
  const caption = unit ? 'Slots in use (left) and the bytes of their keys and values (right).' : 'Slots in use.';
  return {node: el('figure', {}, el('h3', {}, 'The cache'), el('figcaption', {}, caption), picture), show};
}

/** A bar for each step, as tall as it has tokens. Evicted tokens are on top, outlined and in another colour. */
export function stepsFigure(trace, goTo) {
  const sizes = trace.steps.map(tokensOf);
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
    trace.steps.forEach(({runs}, i) => {
      const gone = runs.filter((run) => run.evicted_by !== null && run.evicted_by < k);
      const cut = gone.reduce((sum, run) => sum + run.tokens, 0);
      if (sizes[i] > cut) stay += bar(i, 0, sizes[i] - cut);
      if (cut) went += bar(i, sizes[i] - cut, sizes[i]);
    });
    kept.setAttribute('d', stay);
    gone.setAttribute('d', went);
  };
  return {node: el('figure', {}, el('h3', {}, 'The steps'),
    el('figcaption', {}, `The tokens of each step${trace.probes.length ? '; evicted tokens are outlined, on top' : ''}. ${says}`), picture), show};
}

const mib = (n) => n / 2 ** 20;
const mostMemory = mib(Math.max(0, ...traces.flatMap((t) => t.probes.map((p) => Math.max(p.bytes_before.reserved, p.bytes_after.reserved)))));

/** Device memory as the allocator reported it around each probe; no figure where it was not measured. */
export function memoryFigure(trace) {
  if (!trace.probes.some((p) => p.bytes_before.reserved > 0)) return undefined;
  const points = (kind) => trace.probes.flatMap((p) =>
    [{x: p.at_token, y: mib(p.bytes_before[kind])}, {x: p.at_token, y: mib(p.bytes_after[kind])}]);
  const [used, reserved] = [points('in_use'), points('reserved')];
  const {picture, x, y, height, bottom} = chart({
    most: longest, highest: mostMemory, lines: [{kind: 'full', points: reserved}, {kind: 'held', points: used}], unit: undefined,
    label: `Device memory: at the last probe ${used.at(-1).y.toFixed(1)} MiB in use, ${reserved.at(-1).y.toFixed(1)} MiB reserved.`,
  });
  const [last, most] = [reserved.at(-1).x, Math.max(...reserved.map((p) => p.y))];
  picture.append(
    svg('text', {class: 'name', x: x(last) - 2, y: y(most) - 6, 'text-anchor': 'end'}, 'reserved'),
    svg('text', {class: 'name held-name', x: x(last) - 6, y: height - bottom - 7, 'text-anchor': 'end'}, 'in use'));
  return el('figure', {}, el('h3', {}, 'Device memory'),
    el('figcaption', {}, 'MiB at each probe, before and after the gather, weights included.'), picture);
}

export function mapFigure(trace, goTo) {
  if (!trace.probes.some((p) => p.map)) return undefined;
  let current;
  let layer;
  const say = el('p', {class: 'say', role: 'status'});
  const spread = (s) => (s ? `Gini ${s.gini.toFixed(2)}, top tenth ${percent(s.top_tenth, 1)}` : 'no attention on the thinking');
  const tell = (view, grid, name) => (row, column) => {
    const step = current.map.columns[column];
    say.replaceChildren(
      `${name(row)}, `, el('button', {class: 'link', type: 'button', onclick: () => goTo(step)}, `step ${step + 1}`),
      ` “${excerpt(trace.steps[step] ? textOf(trace.steps[step]) : '', 40)}”: ${weight(view().value(row, column), grid().largest)}. `,
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
  const evicting = () => new Set(current.steps.filter((s) => s.evicted > 0).map((s) => s.index));

  function showHeads() {
    headBox.hidden = layer === undefined || !current?.map;
    if (headBox.hidden) return;
    const grid = current.map.heads[layer];
    headTitle.replaceChildren(`The heads of layer ${layer + 1}`);
    headNote.hidden = !!grid;
    heads.node.hidden = headScale.node.hidden = !grid;
    headNote.replaceChildren(current.map.heads_left_out
      ? 'The heads of this probe are left out to keep the page small. Other probes may show theirs; the trace has all of them.'
      : 'The heads were not recorded. A run whose request has the attention "heads" records them.');
    if (!grid) return;
    heads.show(grid, current.map.columns, evicting(), `Attention of the heads of layer ${layer + 1} to the steps`);
    headScale.show(grid.largest);
  }
  const show = (k) => {
    // Before the first probe, the map of the first probe is shown.
    current = trace.probes[Math.max(k, 1) - 1];
    const map = current?.map;
    layers.node.hidden = layerScale.node.hidden = !map;
    say.replaceChildren();
    if (!map) {
      overall.replaceChildren('This probe has no map.');
      headBox.hidden = true;
      return;
    }
    const known = map.layers.spread.filter((s) => s);
    const mean = (measure) => known.reduce((sum, s) => sum + s[measure], 0) / (known.length || 1);
    overall.replaceChildren(
      `How much the </think> of probe ${Math.max(k, 1)} attends to each step that is still cached. Each row is a layer. ` +
      `Marks show the steps from which this probe evicts. `, el('br'),
      `Spread of the attention over the thinking, mean of the layers: Gini ${mean('gini').toFixed(2)} ` +
      `(0: even; 1: all on one token); the top tenth of tokens hold ${percent(mean('top_tenth'), 1)}.`);
    layers.show(map.layers, map.columns, evicting(), 'Attention of each layer to the steps');
    layerScale.show(map.layers.largest);
    showHeads();
  };
  return {
    node: el('figure', {}, el('h3', {}, 'The attention of </think>'), overall, layers.node, layerScale.node, say, headBox),
    show,
  };
}

/** What each layer still holds, in scopes where each layer or head keeps its own tokens. */
export function keptFigure(trace, goTo) {
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
    const columns = probe.known_steps;
    const rows = columns ? cells / columns : 0;
    say.replaceChildren();
    caption.replaceChildren(`Each ${trace.settings.scope === 'head' ? 'KV head' : 'layer'} keeps its own tokens. Rows are layers, columns are steps: ` +
      `the stronger the colour, the more of the step is still cached after probe ${Math.max(k, 1)}.`);
    view.show({cells: probe.kept, spread: Array(rows).fill(null)}, Array.from({length: columns}, (_, i) => i), new Set(), 'What each layer holds');
  };
  return {node: el('figure', {}, el('h3', {}, 'What each layer kept'), caption, view.node, say), show};
}

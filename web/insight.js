// What an answer does to memory: numbers, the cache over time, the attention of the last probe.
import { chart } from './draw/chart.js';
import { bytes, count, el, excerpt, percent, plural } from './draw/draw.js';
import { gridView, scale, weight } from './draw/grid.js';

/** @typedef {import('./reply.js').Reply} Reply */
/** @typedef {import('./messages.js').ModelInfo} ModelInfo */

const KINDS = ['held', 'other'];

export class Insight {
  /** @type {Reply[]} */
  #replies = [];
  /** @type {ModelInfo | undefined} */
  #info;
  /** @type {{map: object, reply: Reply} | undefined} */
  #drawn;

  /** @param {HTMLElement} place */
  constructor(place) {
    this.facts = el('div');
    this.picture = el('div');
    this.legend = el('p', { class: 'legend quiet' });
    this.limits = el('p', { class: 'quiet' });
    this.mapTitle = el('h3', {}, 'The attention of </think>');
    this.mapNote = el('p', { class: 'quiet' });
    this.say = el('p', { class: 'say quiet' });
    this.grid = gridView((row) => `layer ${row + 1}`, (row, column) => this.#tell(row, column), () => {});
    this.scale = scale();
    this.mapBox = el('figure', { id: 'map', hidden: true }, this.mapTitle, this.mapNote, this.grid.node, this.scale.node, this.say);
    place.append(this.facts,
      el('figure', { id: 'chart' }, el('h3', {}, 'The cache'), this.legend, this.picture, this.limits), this.mapBox);
  }

  /**
   * Shows these replies from now on: one reply, or two for comparison.
   * @param {Reply[]} replies
   * @param {ModelInfo} info
   */
  show(replies, info) {
    this.#replies = replies;
    this.#info = info;
    this.#drawn = undefined;
    this.mapBox.hidden = true;
    this.draw();
  }

  draw() {
    const replies = this.#replies.filter((reply) => reply.held.length);
    if (!replies.length || !this.#info) return;
    this.facts.replaceChildren(...replies.map((reply) => this.#numbers(reply, replies.length > 1)));
    this.#chart(replies);
    this.#map(replies.findLast((reply) => reply.map));
  }

  /** @param {Reply} reply */
  #numbers(reply, named) {
    const { slot_bytes: slot } = this.#info;
    const total = reply.promptTokens + reply.generated;
    const fact = (name, value, more) => el('div', {}, el('dt', {}, name), el('dd', {}, value, el('small', {}, more)));
    const { speed } = reply;
    return el('div', { class: 'numbers' }, named ? el('h3', {}, reply.title) : undefined, el('dl', { class: 'facts' },
      fact('cached', count(reply.cached), `of ${plural(total, 'token')}`),
      slot ? fact('KV cache', bytes(reply.cached * slot), `full: ${bytes(total * slot)}`) : undefined,
      fact('cut', percent(reply.evicted, reply.thinkingTokens), `${count(reply.evicted)} in ${plural(reply.probes, 'probe')}`),
      fact('speed', speed === undefined ? '–' : speed.toFixed(1), 'tokens/s')));
  }

  /** @param {Reply[]} replies */
  #chart(replies) {
    const { slot_bytes: slot, context, most_slots: room } = this.#info;
    const most = Math.max(40, ...replies.map((r) => r.generated));
    const prompt = replies[0].promptTokens;
    const full = prompt + Math.max(...replies.map((r) => r.generated));
    const held = Math.max(...replies.flatMap((r) => r.held.map((p) => p.y)));
    let highest = Math.max(full, held, prompt + 40);
    // A limit is drawn if it is near the values, and described in words if it is far away.
    const limits = [
      { name: 'context window', value: context, kind: 'limit context' },
      { name: 'limit of this device\'s buffers', value: room, kind: 'limit device' },
    ].filter(({ value }) => value);
    const near = limits.filter(({ value }) => value <= highest * 1.4);
    highest = Math.max(highest, ...near.map(({ value }) => value));
    const lines = [
      { kind: 'full', points: [{ x: 0, y: prompt }, { x: full - prompt, y: full }] },
      ...near.map(({ value, kind }) => ({ kind, points: [{ x: 0, y: value }, { x: most, y: value }] })),
      ...replies.map((reply, i) => ({ kind: KINDS[i], points: reply.held })).reverse(),
    ];
    const label = replies.map((r) => `${r.title}: ${count(r.cached)} of ${count(r.promptTokens + r.generated)} tokens are cached`).join('; ');
    const { picture } = chart({
      width: 440, height: 230, most, highest, lines, unit: slot ? (slots) => bytes(slots * slot) : undefined,
      label: `Cached tokens over generated tokens. ${label}.`,
    });
    this.picture.replaceChildren(picture);
    const key = (kind, text) => el('span', {}, el('i', { class: `key ${kind}`, 'aria-hidden': 'true' }), text);
    this.legend.replaceChildren(
      ...replies.map((reply, i) => key(KINDS[i], replies.length > 1 ? reply.title : 'cached')), key('full', 'if nothing were cut'),
      ...near.map(({ kind, name, value }) => key(kind, `${name}: ${count(value)}`)));
    const far = limits.filter((limit) => !near.includes(limit));
    this.limits.replaceChildren(far.length ? `Far above: ${far.map(({ name, value }) => `${name} ${count(value)} tokens`).join(', ')}.` : '');
  }

  /** @param {Reply | undefined} reply */
  #map(reply) {
    if (!reply || this.#drawn?.map === reply.map) return;
    const { map } = reply;
    this.#drawn = { map, reply };
    this.mapBox.hidden = false;
    this.mapNote.replaceChildren(`How much it looks at each step of the thinking that was still cached at probe ${map.probe}. Rows are ` +
      'layers. Marks show the steps from which the probe cut.');
    this.say.replaceChildren('Point at a cell, or use the arrow keys.');
    this.grid.show(map.layers, map.columns, map.evicting, 'Attention of each layer to the steps');
    this.scale.show(map.layers.largest);
  }

  #tell(row, column) {
    const { map, reply } = this.#drawn;
    const step = map.columns[column];
    const text = reply.steps[step]?.node.textContent ?? '';
    this.say.replaceChildren(`Layer ${row + 1}, step ${step + 1} “${excerpt(text, 48)}”: ${weight(this.grid.value(row, column), map.layers.largest)}.`);
    for (const { node } of reply.steps) node.classList.toggle('found', node === reply.steps[step]?.node);
  }
}

// One answer on the page: its thinking with the cuts, step by step, and what follows it.
import { count, el, number, ordinal, plural } from './draw/draw.js';
import { rich } from './rich.js';

/** @typedef {import('./messages.js').EngineEvent} EngineEvent */
/** @typedef {import('./messages.js').ProbeEvent} ProbeEvent */

const utf8 = new TextEncoder();

/**
 * A step as a probe saw it.
 * @typedef {{probe: number, importance: number | null, rank: number, ranked: number, cached: number, evicted: number}} Seen
 */

/**
 * A reply that has ended, to be shown again.
 * @typedef {object} Saved
 * @property {string} title
 * @property {{policy: string, budget: string}} settings
 * @property {string} summary - of the thinking
 * @property {[text: string, cut: boolean][]} thoughts
 * @property {string} answer
 * @property {string} state
 * @property {string[]} notes
 * @property {string} [json] - the trace
 */

export class Reply {
  /**
   * @param {object} options
   * @param {string} options.title - what tells it apart from the other reply
   * @param {string} [options.note] - a sentence about it
   * @param {{policy: string, budget: string}} options.settings
   * @param {(reply: Reply) => void} options.onSave
   * @param {(reply: Reply) => void} options.onReport
   */
  constructor({ title, note, settings, onSave, onReport }) {
    this.title = title;
    this.settings = settings;
    /** The tokens' texts, each with its place in the bytes of the text and the probe that evicted it. */
    this.pieces = [];
    this.bytes = 0;
    /** Steps of the thinking at the last probe. */
    this.steps = [];
    /** The number of pieces that belong to steps, and the number of pieces on the page. */
    this.inSteps = 0;
    this.shown = 0;
    this.times = [];
    this.promptTokens = 0;
    this.generated = 0;
    this.thinkingTokens = 0;
    this.cached = 0;
    this.evicted = 0;
    this.probes = 0;
    /** Points of the chart. */
    this.held = [];
    /** The attention map of the last probe, which `evicting` marks. */
    this.map = null;
    this.missed = this.failed = false;
    /** The trace, once it has arrived. */
    this.json = undefined;
    this.result = undefined;
    this.answerText = '';

    this.tail = el('span', { class: 'tail' });
    this.thoughts = el('div', { class: 'thoughts', role: 'group', 'aria-label': 'Thinking, in steps', tabindex: '0' }, this.tail);
    this.thinkingSummary = el('span', {}, 'Reading the prompt…');
    this.thinking = el('details', { class: 'thinking', open: true }, el('summary', {}, this.thinkingSummary), this.thoughts);
    this.answer = el('div', { class: 'answer' });
    this.notes = el('ul', { class: 'notes quiet', hidden: true });
    this.state = el('p', { class: 'quiet state' }, note ?? '');
    this.actions = el('div', { class: 'row actions', hidden: true },
      el('button', { type: 'button', class: 'small', onclick: () => onReport(this) }, 'Open the report'),
      el('button', { type: 'button', class: 'small', onclick: () => onSave(this) }, 'Save the trace'));
    this.node = el('article', { class: 'reply', 'aria-label': title },
      el('h3', {}, title), this.thinking, this.answer, this.notes, this.state, this.actions);
    this.thinking.hidden = true;
  }

  /** Processes an event. `draw` shows the changes. */
  take(event) {
    this[event.type]?.(event);
  }

  start({ prompt_tokens, notes = [] }) {
    this.promptTokens = this.cached = prompt_tokens;
    this.held.push({ x: 0, y: prompt_tokens });
    notes.forEach((text) => this.note({ text }));
  }

  token({ text, thinking, role, at }) {
    this.generated += 1;
    this.cached += 1;
    const tag = role === 'think_open' || role === 'think_close';
    this.thinkingTokens += thinking && !tag ? 1 : 0;
    this.times.push(at);
    if (this.times.length > 64) this.times.shift();
    if (!text) return; // a special token, or part of a character whose text comes with a later token
    const start = this.bytes;
    this.bytes += utf8.encode(text).length;
    if (tag) return; // the page has its own marks
    if (thinking) this.pieces.push({ text, start, end: this.bytes, evictedBy: undefined });
    else this.answerText += text;
  }

  /** @param {ProbeEvent} event */
  probe({ evicted, cached_before, cached_after, steps = [], map, budget_missed: missed }) {
    const k = this.probes;
    this.probes += 1;
    for (const cut of this.thoughts.querySelectorAll('.fresh')) cut.classList.remove('fresh');
    for (const [start, end] of evicted) {
      for (let i = this.#pieceAt(start); i < this.pieces.length && this.pieces[i].start < end; i++) {
        this.pieces[i].evictedBy ??= k;
      }
    }
    this.evicted += cached_before - cached_after;
    this.cached = cached_after;
    this.held.push({ x: this.generated, y: cached_before }, { x: this.generated, y: cached_after });
    if (map?.columns.length) this.map = { ...map, evicting: new Set(steps.flatMap((s, i) => (s.evicted ? [i] : []))), probe: k + 1 };
    if (missed && !this.missed) {
      this.missed = true;
      this.note({ text: `The budget of ${plural(missed.asked, 'token')} was not reached, because ${count(missed.kept)} are protected.` });
    }
    this.#regroup(steps, k);
  }

  note({ text }) {
    this.notes.hidden = false;
    this.notes.append(el('li', {}, text));
  }

  done({ tail, ...done }) {
    if (tail) this.answerText += tail;
    this.result = this.finished = done;
  }

  /** The last event of a run. */
  trace({ json }) {
    this.json = json;
    this.actions.hidden = false;
  }

  /** The last event of a run that failed. */
  partial(event) {
    this.trace(event);
  }

  /** The index of the first piece that ends after byte `at`. */
  #pieceAt(at) {
    let [low, high] = [0, this.pieces.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.pieces[middle].end <= at) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  /** Divides the pieces among the steps of a probe, and draws those steps that have changed. */
  #regroup(steps, k) {
    const measured = steps.flatMap((s, i) => (s.importance === null || s.importance === undefined ? [] : [{ i, importance: s.importance }]));
    measured.sort((a, b) => a.importance - b.importance || a.i - b.i);
    const ranks = new Map(measured.map(({ i }, rank) => [i, rank + 1]));
    steps.forEach(({ start, end, importance, cached, evicted }, i) => {
      let step = this.steps[i];
      if (!step || step.start !== start) {
        for (const old of this.steps.splice(i)) old.node.remove();
        step = { start, end: -1, node: el('span', { class: 'step', tabindex: '-1' }), seen: [], index: i, of: this };
        step.node.step = step;
        this.steps.push(step);
        this.tail.before(step.node);
      }
      step.from = this.#pieceAt(start);
      step.to = this.#pieceAt(end - 1) + 1;
      const changed = step.end !== end || evicted > 0;
      step.end = end;
      if (cached > 0) step.seen.push({ probe: k, importance: importance ?? null, rank: ranks.get(i), ranked: measured.length, cached, evicted });
      if (changed) this.#drawStep(step);
      const latest = step.seen.at(-1);
      const shade = latest?.rank && !step.whole ? (latest.ranked > 1 ? (latest.rank - 1) / (latest.ranked - 1) : 1) : 0;
      step.node.style.setProperty('--shade', shade.toFixed(3));
    });
    for (const old of this.steps.splice(steps.length)) old.node.remove();
    this.inSteps = this.steps.at(-1)?.to ?? 0;
    this.tail.replaceChildren();
    this.shown = this.inSteps;
  }

  #drawStep(step) {
    const runs = [];
    for (const { text, evictedBy } of this.pieces.slice(step.from, step.to)) {
      const last = runs.at(-1);
      if (last && last.evictedBy === evictedBy) last.text += text;
      else runs.push({ text, evictedBy });
    }
    step.whole = runs.length > 0 && runs.every((run) => run.evictedBy !== undefined);
    step.node.replaceChildren(...runs.map(({ text, evictedBy }) => (evictedBy === undefined ? text
      : el('del', { class: evictedBy === this.probes - 1 ? 'cut fresh' : 'cut' }, text))));
    step.node.classList.toggle('whole', step.whole);
  }

  /** Why a step was kept or cut, in words. */
  why({ index, seen }) {
    const name = `Step ${index + 1}`;
    const place = (s) => `${s.rank === 1 ? 'the lowest' : `the ${ordinal(s.rank)} lowest`} of ${plural(s.ranked, 'step')}`;
    const cuts = seen.filter((s) => s.evicted > 0);
    if (cuts.length) {
      return `${name}. ` + cuts.map((s) => `Probe ${s.probe + 1} cut ${s.evicted} of ${plural(s.cached, 'token')}: ` +
        (s.importance === null ? `${this.settings.policy} measures no importance` : `its importance was ${number(s.importance)}, ${place(s)}`) +
        `; the budget was ${this.settings.budget}.`).join(' ');
    }
    const latest = seen.at(-1);
    if (!latest) return `${name}. No probe has measured it yet.`;
    return `${name}. Kept: ` + (latest.importance === null ? 'this policy measures no importance.'
      : `at probe ${latest.probe + 1} its importance was ${number(latest.importance)}, ${place(latest)}.`);
  }

  /** Tokens per second: over the latest 64 tokens during the run, and over the whole run after it. */
  get speed() {
    const [first, last] = [this.times[0], this.times.at(-1)];
    const whole = this.result?.tokens_per_second;
    if (typeof whole === 'number') return whole;
    return last > first ? ((this.times.length - 1) * 1000) / (last - first) : undefined;
  }

  get running() {
    return !this.result && !this.failed;
  }

  /** Shows the changes since the last call. */
  draw() {
    if (this.generated) {
      const last = this.held.at(-1);
      if (last.x < this.generated) this.held.push({ x: this.generated, y: this.cached });
      // Only the corners of the line are kept.
      const n = this.held.length;
      if (n > 2 && !this.#corner(this.held[n - 3], this.held[n - 2], this.held[n - 1])) this.held.splice(n - 2, 1);
    }
    if (this.pieces.length) {
      this.thinking.hidden = false;
      const from = Math.max(this.shown, this.inSteps);
      const text = this.pieces.slice(from).map((piece) => piece.text).join('');
      this.shown = this.pieces.length;
      if (text) {
        const box = this.thoughts;
        const follow = box.scrollTop + box.clientHeight > box.scrollHeight - 40;
        this.tail.append(text);
        if (follow) box.scrollTop = box.scrollHeight;
      }
      const thinks = this.running && !this.answerText.trim();
      this.thinkingSummary.replaceChildren(`${thinks ? 'Thinking' : 'Thought'}: ${plural(this.thinkingTokens, 'token')}` +
        (this.probes ? `, ${plural(this.probes, 'probe')}, ${count(this.evicted)} cut` : ''));
      this.thinking.classList.toggle('busy', thinks);
    }
    const text = this.answerText.trimStart();
    if (text !== this.shownAnswer) {
      this.shownAnswer = text;
      this.answer.textContent = text;
    }
    if (this.finished) {
      const { stop_reason: reason, thinking_unfinished: unfinished } = this.finished;
      this.finished = undefined;
      const why = typeof reason === 'object' ? 'failed' : { eos: '', stop_string: '', stop_token: '', format_complete: '', max_new_tokens: 'the limit on new tokens was reached', max_answer_tokens: 'the limit on tokens of the answer was reached', context_full: 'the context window is full', cancelled: 'you stopped it' }[reason] ?? String(reason ?? '');
      const speed = this.speed;
      this.state.replaceChildren([
        plural(this.generated, 'token'), speed !== undefined && `${speed.toFixed(1)} tokens/s`,
        why, unfinished && 'it was still thinking, so there is no answer',
      ].filter(Boolean).join(' · '));
      // Text that is marked up as Markdown or as a formula is set once it is whole.
      rich(text).then((nodes) => nodes && this.answer.replaceChildren(nodes), () => {});
    }
  }

  #corner(a, b, c) {
    if (a.x === b.x || b.x === c.x) return true;
    return Math.abs((b.y - a.y) / (b.x - a.x) - (c.y - b.y) / (c.x - b.x)) > 1e-9;
  }

  /** What `show` needs. @returns {Saved} */
  save() {
    const thoughts = [];
    for (const { text, evictedBy } of this.pieces) {
      const cut = evictedBy !== undefined;
      if (thoughts.at(-1)?.[1] === cut) thoughts.at(-1)[0] += text;
      else thoughts.push([text, cut]);
    }
    return {
      title: this.title, settings: this.settings, summary: this.thinkingSummary.textContent, thoughts, answer: this.answerText,
      state: this.state.textContent, notes: [...this.notes.children].map((note) => note.textContent), json: this.json,
    };
  }

  /**
   * Shows a reply that was saved. Its steps are gone; its trace has them.
   * @param {Saved} saved
   */
  show({ summary, thoughts, answer, state, notes, json }) {
    this.thinking.hidden = !thoughts.length;
    this.thinking.open = false;
    this.thinkingSummary.replaceChildren(summary);
    this.thoughts.replaceChildren(...thoughts.map(([text, cut]) => (cut ? el('del', { class: 'cut' }, text) : text)));
    this.pieces = thoughts.map(([text, cut]) => ({ text, evictedBy: cut ? 0 : undefined }));
    this.answerText = answer;
    this.answer.textContent = answer.trimStart();
    rich(answer.trimStart()).then((nodes) => nodes && this.answer.replaceChildren(nodes), () => {});
    this.state.replaceChildren(state);
    notes.forEach((text) => this.note({ text }));
    if (json !== undefined) this.trace({ json });
    this.failed = true; // it does not run any longer
  }

  /** Ends the reply from outside. */
  fail(text) {
    this.failed = true;
    this.draw();
    this.thinking.classList.remove('busy');
    this.state.replaceChildren(text);
  }
}

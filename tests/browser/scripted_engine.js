// Stands in for web/pkg/secateur.js: plays fixed events, so that the page itself can be tested exactly.
// What it does depends on the prompt; the tests in main.rs name the prompts.

export default async function init() {}

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

export class Secateur {
  static async load(files, _options, onEvent) {
    const text = new TextDecoder().decode(files['config.json']?.read(0, 2));
    if (text !== '{}') throw new Error(`config.json has ${text}`);
    onEvent(JSON.stringify({ type: 'progress', what: 'Uploading', done: 1, total: 1 }));
    return new Secateur();
  }

  static async check(_files, _options) {
    return JSON.stringify({ weights_bytes: 1000, cache_bytes: 1000, context: 100, architecture: 'Scripted' });
  }

  static async builtin(_options) {
    const engine = new Secateur();
    engine.suggested = { prompt: 'suggested' };
    engine.window = 16;
    return engine;
  }

  info() {
    const { suggested = {} } = this;
    return JSON.stringify({ model: 'scripted', adapter: 'none', backend: 'script', policies: ['think-clearly', 'random', 'full'], suggested });
  }

  resolve(_request) {
    const { window = 64 } = this;
    const settings = { policy: 'full', budget: 'share:0.5', window, probe_every: 7, max_new_tokens: 9, sampling: { temperature: 0.6 } };
    return JSON.stringify({ prompt: {}, settings, notes: [] });
  }

  async run(options, onEvent) {
    const { prompt } = JSON.parse(options);
    const send = (event) => onEvent(JSON.stringify(event));
    if (prompt === 'refuse') throw new Error(`cannot run\n  options: ${options}`);
    if (prompt === 'crash') {
      setTimeout(() => { throw new Error('unreachable executed'); });
      return new Promise(() => {});
    }
    this.stopped = false;
    send({ type: 'start', prompt_tokens: 5, notes: ['it begins'], bytes_in_use: 2 ** 20, bytes_reserved: 2 ** 21 });
    // Ranges are bytes, not characters: these words are longer in UTF-8 than in JavaScript.
    for (const [i, text] of ['Größe ', 'or ', '', '水', '? '].entries()) send({ type: 'token', id: i, text, thinking: true });
    send({ type: 'probe', evicted: [[0, 8], [11, 14]], cached_before: 10, cached_after: 7, bytes_in_use: 2 ** 19, bytes_reserved: 2 ** 20 });
    send({ type: 'note', text: 'it goes on' });
    let extra = 0;
    while (prompt === 'endless' && !this.stopped) {
      send({ type: 'token', id: 9, text: '.', thinking: true });
      extra += 1;
      await pause(5);
    }
    send({ type: 'token', id: 9, text: '<b>42</b>', thinking: false });
    send({ type: 'done', stop_reason: this.stopped ? 'stopped' : 'eos', tokens_per_second: 12.5, tail: this.stopped ? '' : '\ufffd', new_tokens: 6 + extra });
    return '{"trace": 1}';
  }

  stop() {
    this.stopped = true;
  }

  free() {}
}

export async function conformance(onEvent) {
  onEvent(JSON.stringify({ type: 'case', kernel: 'right', done: 1, total: 2 }));
  const kernels = [
    { kernel: 'right', cases: 3, worst_error: 1e-7, bound: 1e-6, passed: true },
    { kernel: 'broken', cases: 1, worst_error: 'NaN', bound: 0, passed: false },
  ];
  return JSON.stringify({ backend: 'script', adapter: 'none', kernels, passed: 3, failed: 1 });
}

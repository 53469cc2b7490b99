// Stands in for web/pkg/secateur.js: plays fixed events, so that the page itself can be tested exactly.
// What it does depends on the last message; the tests in main.rs name the messages.

export default async function init() {}

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

export class Secateur {
  static async check(files, _options) {
    const config = files['config.json'];
    if (!(config?.size ?? config?.length)) throw new Error('config.json is missing');
    const need = JSON.stringify({ weights_bytes: 1000, cache_bytes: 1000, context: 12, architecture: 'Scripted' });
    return { need: () => need, rehearse: async () => 'null', stop() {}, free() {} };
  }

  static async load(_files, options, _onEvent) {
    const engine = new Secateur();
    engine.options = options;
    return engine;
  }

  static async builtin(files, options) {
    if (!files['config.json']?.length) throw new Error('the built-in model has no config.json');
    const engine = new Secateur();
    engine.options = options;
    engine.suggested = { prompt: 'suggested' };
    engine.window = 16;
    return engine;
  }

  info() {
    const { suggested = {}, options } = this;
    return JSON.stringify({
      model: 'scripted', adapter: 'none', backend: 'script', policies: ['think-clearly', 'random', 'full'], suggested,
      context: 12, slot_bytes: 1024, most_slots: 1_000_000, options,
    });
  }

  resolve(request) {
    const { window = 64 } = this;
    const { policy = 'full', seed = 5 } = JSON.parse(request);
    const settings = { policy, seed, budget: 'share:0.5', window, probe_every: 7, max_new_tokens: 9, sampling: { temperature: 0.6 } };
    return JSON.stringify({ prompt: {}, settings, notes: [] });
  }

  async run(options, onEvent) {
    const request = JSON.parse(options);
    const prompt = request.prompt ?? request.messages.at(-1).content;
    const send = (event) => onEvent(JSON.stringify(event));
    if (prompt === 'refuse') throw new Error(`cannot run\n  options: ${options}`);
    if (prompt === 'crash') {
      setTimeout(() => { throw new Error('unreachable executed'); });
      return new Promise(() => {});
    }
    if (prompt === 'lose') {
      this.device = await (await navigator.gpu.requestAdapter()).requestDevice();
      onEvent(JSON.stringify({ type: 'note', text: 'a device is open' }));
      return new Promise(() => {});
    }
    this.stopped = false;
    send({ type: 'start', prompt_tokens: 5, notes: ['it begins'], bytes_in_use: 2 ** 20, bytes_reserved: 2 ** 21 });
    // Ranges are bytes, not characters: these words are longer in UTF-8 than in JavaScript.
    for (const [i, text] of ['Größe ', 'or ', '', '水', '? '].entries()) send({ type: 'token', id: i, text, thinking: true, role: 'thinking' });
    const steps = [
      { start: 0, end: 11, tokens: 2, cached: 2, importance: 0.25, evicted: 1 },
      { start: 11, end: 16, tokens: 3, cached: 3, importance: 0.5, evicted: 2 },
    ];
    const layers = { largest: 0.5, cells: btoa('\x10\x80\xff\x40'), spread: [{ gini: 0.5, top_tenth: 0.2 }, null] };
    if (request.policy !== 'full') {
      send({
        type: 'probe', at_token: 5, evicted: [[0, 8], [11, 14]], cached_before: 10, cached_after: 7, steps, budget_missed: null,
        map: { columns: [0, 1], layers, heads: [], heads_left_out: false }, bytes_in_use: 2 ** 19, bytes_reserved: 2 ** 20,
      });
    }
    send({ type: 'note', text: 'it goes on' });
    let extra = 0;
    while (prompt === 'endless' && !this.stopped) {
      send({ type: 'token', id: 9, text: '.', thinking: true, role: 'thinking' });
      extra += 1;
      await pause(5);
    }
    send({ type: 'token', id: 8, text: '</think>', thinking: true, role: 'think_close' });
    const answer = prompt === 'markdown' ? '**Bold** and <img src=x onerror="window.hacked = 1"> [a link](https://example.org) $x^2$' : '<b>42</b>';
    send({ type: 'token', id: 9, text: answer, thinking: false, role: 'answer' });
    const reason = this.stopped ? 'cancelled' : 'eos';
    const totals = { prompt_tokens: 5, generated_tokens: 7 + extra, thinking_tokens: 5 + extra };
    send({
      type: 'done', stop_reason: reason, thinking_unfinished: false, tokens_per_second: 12.5, tail: this.stopped ? '' : '\ufffd',
      message: { role: 'assistant', content: answer }, totals,
    });
    if (prompt === 'fail') {
      send({ type: 'partial', json: '{"trace": "of what failed"}' });
      throw new Error('the device is gone');
    }
    return '{"trace": 1}';
  }

  stop() {
    this.stopped = true;
  }

  free() {}
}

export async function open_gpu() {}

export async function test_kernels() {}

export function report(traces) {
  const names = JSON.parse(traces).map(([name]) => name);
  return `<!doctype html><title>report</title><body><p id="names"></p><script>document.getElementById('names').textContent = ${JSON.stringify(names.join(' and '))};</script>`;
}

export async function conformance(onEvent) {
  onEvent(JSON.stringify({ type: 'case', kernel: 'right', done: 1, total: 2 }));
  const kernels = [
    { kernel: 'right', cases: 3, worst_error: 1e-7, bound: 1e-6, passed: true },
    { kernel: 'broken', cases: 1, worst_error: 'NaN', bound: 0, passed: false },
  ];
  return JSON.stringify({ backend: 'script', adapter: 'none', kernels, passed: 3, failed: 1 });
}

// The page. The model and the GPU belong to worker.js; messages.js declares the messages between the two.

/** @typedef {import('./messages.js').ToPage} ToPage */
/** @typedef {import('./messages.js').ToWorker} ToWorker */
/** @typedef {import('./messages.js').EngineEvent} EngineEvent */
/** @typedef {import('./messages.js').ConformanceTable} ConformanceTable */

const $ = (id) => document.getElementById(id);
const query = new URLSearchParams(location.search);
const utf8 = new TextEncoder();

/** @type {Worker | undefined} */
let worker;
/**
 * The run on the screen. `spans` are in order; each covers the bytes `start` to `end` of the generated text.
 * @type {{spans: {span: HTMLElement, start: number, end: number}[], bytes: number, times: number[], total: number,
 *   cached: number, probes: number, inUse?: number, reserved?: number, speed?: number | string, done?: string} |
 *   undefined}
 */
let run;
/**
 * Events of the engine that wait for the next frame, each with the time at which it came.
 * @type {(EngineEvent & {at: number})[]}
 */
let waiting = [];
/** Whether Start was pressed before a model was loaded. */
let startOnceLoaded = false;
/** The prompt that the loaded model suggests. */
let suggested;

const NO_MODEL = 'No model is loaded. Start will use the built-in model.';
const mega = (bytes) => `${(bytes / 2 ** 20).toFixed(bytes < 100 * 2 ** 20 ? 1 : 0)} MiB`;
const setState = (state) => {
  document.body.dataset.state = state;
  const busy = ['starting', 'loading', 'running', 'checking'].includes(state);
  const idle = !busy && state !== 'no-engine';
  $('files').disabled = !idle;
  $('builtin').disabled = !idle;
  $('conformance').disabled = !idle;
  $('start').disabled = !idle;
  $('stop').disabled = state !== 'running';
  $('progress').hidden = state !== 'loading';
};

// --- the worker -----------------------------------------------------------------------------------------------------

/**
 * Sends a message to the worker.
 * @param {ToWorker} message
 */
const send = (message) => worker.postMessage(message);

function startWorker() {
  worker?.terminate();
  delete document.body.dataset.model;
  setState('starting');
  worker = new Worker('worker.js', { type: 'module' });
  worker.onmessage = ({ data }) => handlers[data.type](data);
  // After a panic in wasm the state of the engine is unknown, so a new one is started.
  worker.onerror = (event) => {
    const hadModel = document.body.dataset.model === 'loaded';
    showError('The engine crashed', `${event.message ?? 'no message'}\n${hadModel ? 'It was restarted.' : ''}`);
    if (hadModel) startWorker();
    else setState('no-engine');
  };
}

/**
 * One handler for each type of message.
 * @type {{[Type in ToPage['type']]: (message: Extract<ToPage, {type: Type}>) => void}}
 */
const handlers = {
  ready({ adapter, maxBinding, maxBuffer, f16 }) {
    $('adapter').textContent =
      `GPU: ${adapter} · largest binding ${mega(maxBinding)} · largest buffer ${mega(maxBuffer)} · f16 arithmetic: ${f16 ? 'yes' : 'no'}`;
    setState('ready');
    const url = query.get('model');
    if (url) {
      query.delete('model'); // so that a crash does not load it again and again
      load({ url: new URL(url, location.href).href });
    }
  },
  progress({ what, done, total }) {
    if (total) $('progress').value = done / total;
    else $('progress').removeAttribute('value');
    $('model').textContent = total ? `${what}: ${mega(done)} of ${mega(total)}` : `${what}…`;
  },
  loaded({ info }) {
    document.body.dataset.model = 'loaded';
    $('model').textContent = [info.model, info.adapter, info.backend].filter(Boolean).join(' · ');
    showPolicies(info.policies ?? []);
    suggest(info.suggested?.prompt);
    // Asks which settings an empty form comes to. They do not depend on the prompt, and ids need no tokenizer.
    send({ do: 'resolve', options: { ids: [0] } });
  },
  start: enqueue,
  token: enqueue,
  probe: enqueue,
  done: enqueue,
  note(note) {
    if (document.body.dataset.state === 'loading') showNote(note.text);
    else enqueue(note);
  },
  resolved({ json }) {
    if (document.body.dataset.state !== 'loading') return; // a script asked, and listens itself
    showDefaults(JSON.parse(json).settings);
    setState('loaded');
    if (startOnceLoaded) startRun();
  },
  trace({ json }) {
    URL.revokeObjectURL($('trace').href);
    $('trace').href = URL.createObjectURL(new Blob([json], { type: 'application/json' }));
    $('trace').hidden = false;
  },
  case({ kernel, done, total }) {
    $('conformance-status').textContent = `${kernel}: case ${done} of ${total}`;
  },
  conformance({ table }) {
    showConformance(table);
    setState(document.body.dataset.model ?? 'ready');
  },
  error({ title, text }) {
    startOnceLoaded = false;
    showError(title, text);
    flush();
    if (document.body.dataset.state === 'loading' && !document.body.dataset.model) $('model').textContent = NO_MODEL;
    setState(document.body.dataset.state === 'starting' ? 'no-engine' : (document.body.dataset.model ?? 'ready'));
  },
};

/**
 * Loads a model: files, a folder on a server or, with neither, the built-in model.
 * @param {{files?: File[], url?: string}} what
 */
function load(what) {
  hideError();
  delete document.body.dataset.model;
  showDefaults();
  setState('loading');
  const options = {};
  if (query.has('kv')) options.kv = query.get('kv');
  if (query.has('weights')) options.weights = query.get('weights');
  if (query.has('context')) options.context = Number(query.get('context'));
  send({ do: 'load', options, ...what });
}

// --- a run ----------------------------------------------------------------------------------------------------------

/**
 * Collects events and draws them once per frame, because tokens come faster than frames. A hidden page has no frames;
 * there a timer draws them.
 * @param {EngineEvent} event
 */
function enqueue(event) {
  event.at = performance.now();
  waiting.push(event);
  if (waiting.length === 1) {
    if (document.hidden) setTimeout(flush, 250);
    else requestAnimationFrame(flush);
  }
}

function flush() {
  if (!waiting.length) return;
  const output = $('output');
  const follow = output.scrollTop + output.clientHeight > output.scrollHeight - 40;
  const fragment = document.createDocumentFragment();
  const events = waiting;
  waiting = [];
  for (const event of events) draw[event.type](event, fragment);
  output.append(fragment);
  if (follow) output.scrollTop = output.scrollHeight;
  showStatus();
}

const draw = {
  start({ prompt_tokens, notes = [], ...memory }) {
    notes.forEach(showNote);
    run.total = run.cached = prompt_tokens;
    remember(memory);
  },
  token({ text, thinking, at }, fragment) {
    run.total += 1;
    run.cached += 1;
    run.times.push(at);
    if (run.times.length > 64) run.times.shift();
    if (!text) return; // a special token, or part of a character whose text comes with a later token
    const span = document.createElement('span');
    span.textContent = text;
    if (thinking) span.className = 'thinking';
    fragment.append(span);
    const start = run.bytes;
    run.bytes += utf8.encode(text).length;
    run.spans.push({ span, start, end: run.bytes });
  },
  probe({ evicted, cached_after, ...memory }) {
    for (const [start, end] of evicted) {
      for (let i = firstSpanAfter(start); i < run.spans.length && run.spans[i].start < end; i++) {
        run.spans[i].span.classList.add('evicted');
      }
    }
    run.probes += 1;
    run.cached = cached_after;
    remember(memory);
  },
  note({ text }) {
    showNote(text);
  },
  done({ stop_reason, thinking_unfinished, tokens_per_second, tail, ...memory }, fragment) {
    run.done = String(stop_reason ?? 'done').replaceAll('_', ' ') + (thinking_unfinished ? ', still thinking' : '');
    if (tail) fragment.append(tail);
    run.speed = tokens_per_second;
    remember(memory);
    setState('loaded');
  },
};

/** The index of the first span that ends after byte `at`. */
function firstSpanAfter(at) {
  let low = 0;
  let high = run.spans.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (run.spans[middle].end <= at) low = middle + 1;
    else high = middle;
  }
  return low;
}

const showNote = (text) => $('notes').append(text, document.createElement('br'));

function remember({ bytes_in_use, bytes_reserved }) {
  if (bytes_in_use !== undefined) run.inUse = bytes_in_use;
  if (bytes_reserved !== undefined) run.reserved = bytes_reserved;
}

function showStatus() {
  const [first, last] = [run.times[0], run.times.at(-1)];
  const speed = run.speed ?? (last > first ? ((run.times.length - 1) * 1000) / (last - first) : undefined);
  $('status').textContent = [
    `cache: ${run.cached} of ${run.total} tokens`,
    `${run.probes} ${run.probes === 1 ? 'probe' : 'probes'}`,
    run.inUse !== undefined && `GPU memory: ${mega(run.inUse)} in use, ${mega(run.reserved)} reserved`,
    speed !== undefined && `${speed.toFixed(1)} tokens/s`,
    run.done && `stopped: ${run.done}`,
  ].filter(Boolean).join(' · ');
}

$('form').addEventListener('submit', (event) => {
  event.preventDefault();
  if (document.body.dataset.model === 'loaded') return startRun();
  startOnceLoaded = true;
  load({});
});

function startRun() {
  startOnceLoaded = false;
  hideError();
  const options = {};
  for (const { name, type, value, checked } of $('form').elements) {
    // The engine decides about fields that are left empty.
    if (!name || (type !== 'checkbox' && value === '')) continue;
    options[name] = type === 'checkbox' ? checked : type === 'number' ? Number(value) : value;
  }
  generate(options);
}

function generate(options) {
  run = { spans: [], bytes: 0, times: [], total: 0, cached: 0, probes: 0 };
  waiting = [];
  $('output').replaceChildren();
  $('notes').replaceChildren();
  $('trace').hidden = true;
  $('status').textContent = 'Reading the prompt…';
  setState('running');
  send({ do: 'run', options });
}

$('stop').addEventListener('click', () => {
  $('stop').disabled = true;
  send({ do: 'stop' });
});

// --- model files ----------------------------------------------------------------------------------------------------

$('builtin').addEventListener('click', () => load({}));

$('files').addEventListener('change', ({ target }) => {
  // Files of the chosen folder itself, not of folders below it.
  const files = [...target.files].filter((file) => file.webkitRelativePath.split('/').length <= 2);
  if (files.length) load({ files });
  target.value = ''; // so that choosing the same folder again is a change
});

addEventListener('dragover', (event) => {
  event.preventDefault();
  document.body.classList.add('dragging');
});
addEventListener('dragleave', (event) => {
  if (!event.relatedTarget) document.body.classList.remove('dragging');
});
addEventListener('drop', async (event) => {
  event.preventDefault();
  document.body.classList.remove('dragging');
  if ($('files').disabled) return;
  try {
    const files = await droppedFiles(event.dataTransfer);
    if (files.length) load({ files });
  } catch (error) {
    showError('These files cannot be read', String(error));
  }
});

/** The files that were dropped, and those in the folders that were dropped. */
async function droppedFiles({ items }) {
  const entries = [...items].map((item) => item.webkitGetAsEntry()).filter(Boolean); // before any await: items expire
  const files = [];
  for (const entry of entries) {
    if (entry.isFile) files.push(entry);
    else files.push(...(await listFolder(entry)).filter((inner) => inner.isFile));
  }
  return Promise.all(files.map((entry) => new Promise((resolve, reject) => entry.file(resolve, reject))));
}

async function listFolder(folder) {
  const reader = folder.createReader();
  const all = [];
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject)); // at most 100 at a time
    if (!some.length) return all;
    all.push(...some);
  }
}

// --- conformance, the form, errors -----------------------------------------------------------------------------------

$('conformance').addEventListener('click', () => {
  hideError();
  $('conformance-json').textContent = '';
  $('conformance-details').hidden = $('conformance-table').hidden = true;
  setState('checking');
  send({ do: 'conformance' });
});

/** @param {ConformanceTable} table */
function showConformance(table) {
  const rows = table.kernels.map(({ kernel, cases, worst_error, bound, passed }) => {
    const row = document.createElement('tr');
    const worst = typeof worst_error === 'number' ? worst_error.toPrecision(2) : worst_error;
    for (const value of [kernel, cases, worst, bound]) row.insertCell().textContent = String(value);
    const result = row.insertCell();
    result.textContent = passed ? 'ok' : 'wrong';
    result.className = passed ? '' : 'failed';
    return row;
  });
  $('conformance-table').tBodies[0].replaceChildren(...rows);
  $('conformance-table').hidden = $('conformance-details').hidden = false;
  $('conformance-json').textContent = JSON.stringify(table, null, 1);
  $('conformance-status').textContent = `${table.adapter} (${table.backend}): ${table.passed} cases passed, ${table.failed} failed`;
}

/** Offers these policies after the engine's choice, which is the first option. The chosen one stays, listed or not. */
function showPolicies(names) {
  const chosen = $('policy').value;
  const all = new Set(chosen ? [...names, chosen] : names);
  $('policy').replaceChildren($('policy').options[0], ...[...all].map((name) => new Option(name, name)));
  $('policy').value = chosen;
}

/** Puts the prompt that a model suggests in the place of one that the user has not changed. */
function suggest(text) {
  const prompt = $('prompt');
  if (prompt.value === suggested) prompt.value = prompt.defaultValue;
  if (text !== undefined && prompt.value === prompt.defaultValue) prompt.value = text;
  suggested = text;
}

/** Shows in the empty fields which values the engine takes for them; without settings, nothing. */
function showDefaults(settings) {
  for (const name of ['budget', 'window', 'probe_every', 'max_new_tokens', 'temperature']) {
    $('form').elements[name].placeholder = settings?.[name] ?? settings?.sampling[name] ?? '';
  }
}

function showError(title, text) {
  $('error-title').textContent = title;
  $('error-text').textContent = text;
  $('error').hidden = false;
}
const hideError = () => ($('error').hidden = true);
$('error-close').addEventListener('click', hideError);

// The address can set every control: ?prompt=…&policy=random&budget=tokens:128
for (const [name, value] of query) {
  const control = $('form').elements[name];
  if (control === $('policy') && value) control.add(new Option(value, value)); // the list comes with a model
  if (control?.type === 'checkbox') control.checked = value !== 'false';
  else if (control) control.value = value;
}
startWorker();

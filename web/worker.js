// Owns the engine, so that the page stays responsive while it computes. messages.js declares every message.

/** @typedef {import('./messages.js').ToWorker} ToWorker */
/** @typedef {import('./messages.js').ToPage} ToPage */
/** @typedef {import('./messages.js').LoadMessage} LoadMessage */
/** @typedef {import('./messages.js').RunMessage} RunMessage */
/** @typedef {import('./messages.js').ResolveMessage} ResolveMessage */

const MODEL_FILES = /^(config|generation_config|tokenizer|tokenizer_config|secateur)\.json$|^chat_template\.jinja$|\.safetensors(\.index\.json)?$|\.gguf$/;
const NO_WEBGPU = 'This browser does not give the page a GPU. Use a current Chrome, Edge, Safari or Firefox. WebGPU also needs ' +
  'a secure page (https:// or localhost). In Chrome on Linux, switch on chrome://flags/#enable-unsafe-webgpu.';

let wasm; // the module web/pkg/secateur.js
let engine; // the loaded model, or undefined

/**
 * Sends a message to the page.
 * @param {ToPage} message
 */
const send = (message) => postMessage(message);

async function start() {
  try {
    wasm = await import('./pkg/secateur.js');
    await wasm.default();
  } catch (error) {
    return fail('The engine could not be loaded', `${error}\nRun './x web': it builds web/pkg and serves this page.`);
  }
  const adapter = await navigator.gpu?.requestAdapter();
  if (!adapter) return fail('No WebGPU', NO_WEBGPU);
  const { vendor, architecture, device, description } = adapter.info;
  send({
    type: 'ready',
    adapter: [vendor, architecture, device, description].filter(Boolean).join(' ') || 'unnamed adapter',
    maxBinding: adapter.limits.maxStorageBufferBindingSize,
    maxBuffer: adapter.limits.maxBufferSize,
    f16: adapter.features.has('shader-f16'),
  });
}

function fail(title, error) {
  send({ type: 'error', title, text: String(error?.message ?? error) });
}

/** Passes an event of the engine on to the page. Events come from wasm as JSON text. */
const forward = (json) => send(JSON.parse(json));

const jobs = {
  /** @param {LoadMessage} message */
  async load({ files, url, options }) {
    engine?.free();
    engine = undefined;
    const bytes = files ? await readFiles(files) : url ? await fetchModel(url) : undefined;
    send({ type: 'progress', what: 'Checking the GPU and uploading the model', done: 0, total: 0 });
    const settings = JSON.stringify(options ?? {});
    engine = bytes ? await wasm.Secateur.load(bytes, settings) : await wasm.Secateur.builtin(settings);
    send({ type: 'loaded', info: JSON.parse(engine.info()) });
  },
  /** @param {RunMessage} message */
  async run({ options }) {
    send({ type: 'trace', json: await engine.run(JSON.stringify({ attention: 'layers', ...options }), forward) });
  },
  /**
   * Resolves a request with this model; nothing runs.
   * @param {ResolveMessage} message
   */
  async resolve({ options }) {
    send({ type: 'resolved', json: engine.resolve(JSON.stringify(options)) });
  },
  async conformance() {
    const table = JSON.parse(await wasm.conformance(forward));
    send({ type: 'conformance', table });
  },
};

const TITLES = { load: 'The model could not be loaded', run: 'Decoding stopped', resolve: 'The request was refused', conformance: 'Conformance did not finish' };

/** @param {MessageEvent<ToWorker>} event */
onmessage = async ({ data }) => {
  if (data.do === 'stop') return engine?.stop();
  try {
    await jobs[data.do](data);
  } catch (error) {
    fail(TITLES[data.do], error);
  }
};

/** Reads the files that the user picked into {name: bytes}. */
async function readFiles(files) {
  const wanted = files.filter((file) => MODEL_FILES.test(file.name));
  if (!wanted.some((file) => /\.(safetensors|gguf)$/.test(file.name))) {
    throw new Error('No weights among these files: expected .safetensors or .gguf');
  }
  const total = wanted.reduce((sum, file) => sum + file.size, 0);
  const bytes = {};
  let done = 0;
  for (const file of wanted) {
    bytes[file.name] = await drain(file.stream(), file.size, (n) => report(file.name, (done += n), total));
  }
  return bytes;
}

/** Fetches a model directory from a server into {name: bytes}. */
async function fetchModel(url) {
  const bytes = {};
  const get = async (name, required) => {
    const response = await fetch(new URL(name, url));
    // Servers of single-page sites send their index page for a missing file.
    const missing = response.status === 404 || response.headers.get('content-type')?.startsWith('text/html');
    if (missing && !required) return;
    if (missing || !response.ok) throw new Error(`${response.url}: ${missing ? 'not found' : response.status}`);
    const size = Number(response.headers.get('content-length')) || 0;
    let done = 0;
    bytes[name] = await drain(response.body, size, (n) => report(name, (done += n), size));
  };
  await get('config.json', true);
  for (const name of ['generation_config.json', 'tokenizer.json', 'tokenizer_config.json', 'chat_template.jinja', 'secateur.json']) await get(name);
  await get('model.safetensors.index.json');
  const index = bytes['model.safetensors.index.json'];
  const weights = index ? new Set(Object.values(JSON.parse(new TextDecoder().decode(index)).weight_map)) : ['model.safetensors'];
  for (const name of weights) await get(name, true);
  return bytes;
}

/** Reads a stream into one array. `size` is what the sender announced; it may be 0, or wrong where the file is compressed. */
async function drain(stream, size, onBytes) {
  let all = new Uint8Array(size);
  let at = 0;
  for (const reader = stream.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) return at === all.length ? all : all.slice(0, at);
    if (at + value.length > all.length) {
      const grown = new Uint8Array(Math.max(2 * all.length, at + value.length));
      grown.set(all.subarray(0, at));
      all = grown;
    }
    all.set(value, at);
    at += value.length;
    onBytes(value.length);
  }
}

let reported = 0;
function report(what, done, total) {
  const now = performance.now();
  if (now - reported < 50 && done !== total) return;
  reported = now;
  send({ type: 'progress', what, done, total });
}

start();

// Owns the engine, so that the page stays responsive while it computes. messages.js declares every message.

import { TRIAL, fetchModel, fileSize, fromFiles, hasRoom, hubAddress } from './files.js';

/** @typedef {import('./messages.js').ToWorker} ToWorker */
/** @typedef {import('./messages.js').ToPage} ToPage */
/** @typedef {import('./messages.js').LoadMessage} LoadMessage */
/** @typedef {import('./messages.js').RunMessage} RunMessage */
/** @typedef {import('./messages.js').ResolveMessage} ResolveMessage */
/** @typedef {import('./messages.js').LogitsMessage} LogitsMessage */
/** @typedef {import('./messages.js').FollowMessage} FollowMessage */
/** @typedef {import('./messages.js').ReportMessage} ReportMessage */

/** Bytes that must be free for the cache beside the weights. The cache grows while the model runs. */
const CACHE = 64e6;
/** The milliseconds for which the engine must be idle before a model is rehearsed. */
const IDLE = 200;
/** A short run with probes, and thus with every kernel of a usual run. */
const REHEARSAL = { max_new_tokens: 8, probe_every: 4, window: 1, seed: 0 };
/** The files of the built-in model. */
const BUILTIN = ['config.json', 'generation_config.json', 'model.safetensors', 'tokenizer.json', 'tokenizer_config.json'];
const NO_WEBGPU = 'This browser does not give the page a GPU. Use a current Chrome, Edge, Safari or Firefox. WebGPU also needs ' +
  'a secure page (https:// or localhost). In Chrome on Linux, switch on chrome://flags/#enable-unsafe-webgpu.';

let wasm; // the module web/pkg/secateur.js
let memory; // of that module; it only grows, hence its size is the most that was ever used
let engine; // the loaded model, or undefined
let loading = Promise.resolve(); // of the latest model
let opened; // the GPU, once
let tested; // its kernels, once
let asked = 0; // how often the engine was asked for something
let rehearsing; // what is rehearsed and can be stopped, or undefined
let rehearsal = Promise.resolve(); // the latest one
let stopped = false; // whether the latest run was to be stopped

/**
 * Sends a message to the page.
 * @param {ToPage} message
 */
const send = (message) => postMessage(message);

/** Reports that the GPU was lost, whichever part of the engine opened it. */
function watchDevices() {
  if (!globalThis.GPUAdapter) return;
  const { requestDevice } = GPUAdapter.prototype;
  GPUAdapter.prototype.requestDevice = async function (...options) {
    const device = await requestDevice.apply(this, options);
    // If a trial allocation loses its device, there is no room. That is no error.
    if (options[0]?.label === TRIAL) return device;
    device.lost.then(({ reason, message }) => {
      if (reason !== 'destroyed') send({ type: 'lost', text: message || 'The browser gave no reason.' });
    });
    return device;
  };
}

async function start() {
  watchDevices();
  try {
    wasm = await import('./pkg/secateur.js');
    memory = (await wasm.default())?.memory;
  } catch (error) {
    return fail('The engine could not be loaded', `${error}\nRun './x web': it builds web/pkg and serves this page.`);
  }
  const adapter = await navigator.gpu?.requestAdapter();
  if (!adapter) return send({ type: 'error', kind: 'no-webgpu', title: 'No WebGPU', text: NO_WEBGPU });
  const { vendor, architecture, device, description } = adapter.info;
  send({
    type: 'ready',
    adapter: [vendor, architecture, device, description].filter(Boolean).join(' ') || 'unnamed adapter',
    maxBinding: adapter.limits.maxStorageBufferBindingSize,
    maxBuffer: adapter.limits.maxBufferSize,
    f16: adapter.features.has('shader-f16'),
  });
}

function fail(title, error, call) {
  send({ type: 'error', call, title, text: String(error?.message ?? error) });
}

/** Passes events of the engine on to the page, as answers to that call. Events come from wasm as JSON text. */
const forward = (call) => (json) => send({ call, ...JSON.parse(json) });

const openGpu = () => (opened ??= wasm.open_gpu());

/**
 * Tests the kernels of the first token on this GPU. Later calls share the test; after a failure, the next one repeats
 * it.
 */
function testKernels() {
  tested ??= openGpu().then(() => wasm.test_kernels());
  tested.catch(() => (opened = tested = undefined));
  return tested;
}

/** The files of the built-in model, which lie beside this one. */
async function builtinFiles() {
  const fetched = BUILTIN.map(async (name) => {
    const url = new URL(`./models/tiny-reasoner/${name}`, import.meta.url).href;
    const response = await fetch(url);
    if (!response.ok) throw new Error(`the built-in model is missing\n  at: ${url}\n  found: status ${response.status}\n  what to do: copy the folder models/ beside worker.js`);
    return [name, new Uint8Array(await response.arrayBuffer())];
  });
  return Object.fromEntries(await Promise.all(fetched));
}

// --- rehearsals -----------------------------------------------------------------------------------------------------
//
// A browser compiles a shader when it is first used, and that takes much longer than running it. So a model is run
// for a few tokens while the engine is idle: its shaders are compiled then, and not at the first question. The probes
// of such a run also test the kernels of pruning. A model that is fetched is rehearsed as soon as its headers are
// here: a small model with weights of the same types needs the same shaders.

/** Runs a model for a few tokens. A failure is ignored, because the first question reports the same error. */
async function rehearse(model) {
  rehearsing = model;
  const run = (prompt) => model.run(JSON.stringify({ ...prompt, ...REHEARSAL }), () => undefined);
  try {
    await run({ messages: [{ role: 'user', content: '1' }] }).catch(() => run({ ids: [0, 1, 2, 3], ignore_eos: true }));
  } catch {
    // see above
  } finally {
    if (rehearsing === model) rehearsing = undefined;
  }
}

/**
 * Compiles the shaders of a model while it is fetched, once the kernels are tested. A failure is ignored, because
 * loading the model reports it.
 * @param {object} checked - what is known of the model
 * @param {Promise<unknown>} trusted - the test
 */
function rehearseAhead(checked, trusted) {
  const before = rehearsal;
  rehearsing = checked;
  rehearsal = (async () => {
    await before;
    await trusted;
    await checked.rehearse();
  })().catch(() => undefined).finally(() => {
    if (rehearsing === checked) rehearsing = undefined;
    checked.free();
  });
}

/** Rehearses the loaded model as soon as the engine is idle. */
function rehearseSoon() {
  const before = asked;
  setTimeout(async () => {
    await rehearsal; // of the headers
    if (asked === before) rehearsal = rehearse(engine);
  }, IDLE);
}

/** Ends the rehearsal under way, and keeps the next one from beginning. Resolves when it has ended. */
function interrupt() {
  asked += 1;
  rehearsing?.stop();
  return rehearsal;
}

/** Tests the kernels and rehearses the built-in model, unless another message arrives meanwhile. */
async function prepare() {
  const before = asked;
  const files = builtinFiles();
  files.catch(() => undefined); // loading it says so
  await testKernels();
  if (asked !== before) return;
  const model = await wasm.Secateur.builtin(await files, '{}', () => undefined);
  if (asked === before) await (rehearsal = rehearse(model));
  model.free();
}

/** @param {LoadMessage} message */
async function load({ call, files, url, hub, options }) {
  interrupt();
  engine?.stop();
  engine?.free();
  engine = undefined;
  const report = progress(call);
  // The kernels are tested while the model is fetched.
  const trusted = testKernels();
  trusted.catch(() => undefined); // awaited below
  const settings = JSON.stringify(options ?? {});
  let need; // of the model on the GPU
  /** Refuses a model that this GPU cannot run or has no room for, before its weights are read. */
  const check = async (files) => {
    await openGpu();
    const checked = await wasm.Secateur.check(files, settings);
    need = JSON.parse(checked.need());
    const bytes = need.weights_bytes + Math.min(need.cache_bytes, CACHE);
    if (await hasRoom(bytes)) return rehearseAhead(checked, trusted);
    checked.free();
    throw new Error(
      `the GPU has no room for this model\n  expected: ${fileSize(bytes)}, of which the weights take ${fileSize(need.weights_bytes)}\n` +
        '  what to do: load it with smaller weights (q4), choose a smaller model, or close other tabs',
    );
  };
  let sources;
  if (files) {
    sources = fromFiles(files);
    await check({ ...sources });
  } else if (url || hub) {
    sources = await fetchModel(url ?? (await hubAddress(hub)), { report, check, note: (text) => send({ call, type: 'note', text }) });
    if (!need) await check({ ...sources });
  }
  const own = sources ? undefined : builtinFiles();
  own?.catch(() => undefined); // awaited below
  send({ call, type: 'progress', what: 'Checking the GPU and uploading the model', done: 0, total: 0 });
  await trusted;
  // Shaders that the rehearsal has not begun to compile are compiled when they are needed.
  rehearsing?.stop();
  /** The engine counts parts of the model; the page shows bytes. */
  const uploaded = (json) => {
    const { what, done, total } = JSON.parse(json);
    report(what, (done / total) * need.weights_bytes, need.weights_bytes);
  };
  engine = sources ? await wasm.Secateur.load(sources, settings, uploaded) : await wasm.Secateur.builtin(await own, settings, () => undefined);
  send({ call, type: 'loaded', info: JSON.parse(engine.info()), memory: memory?.buffer.byteLength });
  rehearseSoon();
}

const jobs = {
  /** @param {LoadMessage} message */
  async load(message) {
    // Models are loaded one after the other, because a second model must not take the memory that the first is about
    // to get.
    const before = loading;
    const own = before.then(() => load(message));
    loading = own.catch(() => undefined);
    await own;
  },
  async prepare({ call }) {
    await prepare();
    send({ call, type: 'prepared' });
  },
  /** @param {RunMessage} message */
  async run({ call, options }) {
    stopped = false;
    await interrupt();
    needModel();
    const running = engine.run(JSON.stringify(options), forward(call));
    // Stop was pressed during the rehearsal, before the run had begun.
    if (stopped) setTimeout(() => engine?.stop());
    send({ call, type: 'trace', json: await running });
  },
  /**
   * Resolves a request with this model; nothing runs.
   * @param {ResolveMessage} message
   */
  async resolve({ call, options }) {
    await interrupt();
    needModel();
    send({ call, type: 'resolved', json: engine.resolve(JSON.stringify(options)) });
  },
  /** @param {LogitsMessage} message */
  async logits({ call, ids }) {
    await interrupt();
    needModel();
    send({ call, type: 'logits', values: await engine.logits(ids) });
  },
  /** @param {FollowMessage} message */
  async follow({ call, options, ids }) {
    await interrupt();
    needModel();
    send({ call, type: 'followed', json: await engine.follow(JSON.stringify(options), ids) });
  },
  /** @param {ReportMessage} message */
  async report({ call, traces }) {
    send({ call, type: 'report', html: wasm.report(JSON.stringify(traces)) });
  },
  async conformance({ call }) {
    await interrupt();
    await openGpu();
    send({ call, type: 'conformance', table: JSON.parse(await wasm.conformance(forward(call))) });
  },
};

function needModel() {
  if (!engine) throw new Error('no model is loaded\n  what to do: load one first');
}

const TITLES = {
  load: 'The model could not be loaded',
  prepare: 'The GPU could not be prepared',
  run: 'Decoding stopped',
  resolve: 'The request was refused',
  logits: 'The logits could not be computed',
  follow: 'The text could not be followed',
  report: 'The report could not be made',
  conformance: 'Conformance did not finish',
};

/** @param {MessageEvent<ToWorker>} event */
onmessage = async ({ data }) => {
  if (data.do === 'stop') {
    stopped = true;
    return engine?.stop();
  }
  try {
    await jobs[data.do](data);
  } catch (error) {
    fail(TITLES[data.do], error, data.call);
  }
};

/** Reports progress to that call, a few times a second. */
function progress(call) {
  let reported = 0;
  return (what, done, total) => {
    const now = performance.now();
    if (now - reported < 50 && done !== total) return;
    reported = now;
    send({ call, type: 'progress', what, done, total });
  };
}

start();

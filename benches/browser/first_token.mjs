// How long it takes from the click on Send to the first token of the built-in model, with the page and the engine in
// the browser's cache.
//
//     ./x wasm                                      # or SECATEUR_PROFILE=page ./x wasm, as it is published
//     node benches/browser/first_token.mjs [--visits 5] [--after 0] [--web FOLDER]
//
// Each visit starts the browser anew, on the profile of the visits before; the first one fills the cache and does not
// count. Send is pressed `--after` seconds after it can be. `--web` names another build of the page, to compare with.
// `CHROMIUM` names the browser.
import { mkdtempSync, rmSync, statSync } from 'node:fs';
import { loadavg, tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';

import { Browser, ROOT, adapterOf, provenance, serve, spread } from './browser.mjs';

const { values: options } = parseArgs({
  options: {
    visits: { type: 'string', default: '5' },
    after: { type: 'string', default: '0' },
    web: { type: 'string', default: join(ROOT, 'web') },
  },
});
const QUESTION =
  'We count modulo 10. #1 d is 3. #2 r exceeds d by 9. #3 e equals r plus 7. #4 r drops by d. #5 c is r minus e. #6 h is 4. ' +
  '#7 c rises by 2. What is c?';

/** Presses Send and notes when tokens come. It runs in the page, before the page's own scripts. */
function watch(question, after) {
  // A conversation that an earlier visit left would be a part of the prompt.
  localStorage.clear();
  sessionStorage.clear();
  const times = { tokens: [] };
  globalThis.times = times;
  const now = () => performance.now();
  const timer = setInterval(() => {
    const button = document.getElementById('start');
    if (times.ready === undefined && button && !button.disabled) {
      times.ready = now();
      setTimeout(() => {
        document.getElementById('prompt').value = question;
        times.clicked = now();
        button.click();
      }, after);
    }
    const reply = globalThis.secateur?.replies[0];
    if (!reply) return;
    while (times.tokens.length < reply.pieces.length) times.tokens.push(now());
    if (times.tokens.length >= 16 || !document.getElementById('error').hidden) {
      times.over = true;
      clearInterval(timer);
    }
  }, 4);
}

const { site, close } = await serve((path) => join(options.web, path), { 'Cache-Control': 'no-cache' });
const profile = mkdtempSync(join(tmpdir(), 'first-token-'));
const visits = [];
console.log(provenance());
try {
  for (let visit = 0; visit <= Number(options.visits); visit++) {
    const browser = new Browser(profile);
    try {
      if (!visit) console.log(`engine of ${statSync(join(options.web, 'pkg/secateur_bg.wasm')).size} bytes, Send ${options.after} s after it can be pressed`);
      await browser.open(`${site}/`, `(${watch})(${JSON.stringify(QUESTION)}, ${1000 * Number(options.after)})`);
      await browser.until('globalThis.times?.over');
      if (!visit) console.log(await adapterOf(browser));
      const { ready, clicked, tokens } = await browser.eval('times');
      if (tokens.length < 16) throw new Error(await browser.eval("document.getElementById('error').innerText"));
      const seconds = (from, to) => (to - from) / 1000;
      const times = { ready: ready / 1000, first: seconds(clicked, tokens[0]), sixteenth: seconds(clicked, tokens[15]) };
      console.log(`${visit || 'first visit'}: Send can be pressed after ${times.ready.toFixed(2)} s; from the click to the first token ${times.first.toFixed(2)} s, to the 16th ${times.sixteenth.toFixed(2)} s; load average ${loadavg()[0].toFixed(1)}`);
      if (visit) visits.push(times);
    } finally {
      await browser.close();
    }
  }
  const of = (key) => spread(visits.map((times) => times[key]), 2);
  console.log(`medians of ${visits.length} visits (least to most): Send after ${of('ready')} s, first token ${of('first')} s, 16th token ${of('sixteenth')} s`);
} finally {
  close();
  rmSync(profile, { recursive: true, force: true, maxRetries: 5, retryDelay: 200 });
}

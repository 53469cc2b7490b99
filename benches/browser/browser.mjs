// What the measurements share: a server of files, and a headless browser that is driven over its DevTools protocol.
import { execFileSync, spawn } from 'node:child_process';
import { createReadStream, mkdtempSync, readFileSync, readdirSync, rmSync, statSync } from 'node:fs';
import { createServer } from 'node:http';
import { cpus, loadavg, tmpdir } from 'node:os';
import { extname, join, normalize } from 'node:path';
import { Transform } from 'node:stream';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';

export const HERE = fileURLToPath(new URL('.', import.meta.url));
export const ROOT = join(HERE, '../..');
/** The longest wait for an answer of the page, in milliseconds. */
const LONG = 300_000;
const TYPES = {
  '.css': 'text/css', '.html': 'text/html', '.js': 'text/javascript', '.json': 'application/json', '.mjs': 'text/javascript',
  '.wasm': 'application/wasm', '.woff2': 'font/woff2',
};

/** The value in the middle. */
export const median = (values) => values.toSorted((a, b) => a - b)[values.length >> 1];

/** The value in the middle, the least and the most, as text. */
export function spread(values, digits) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  return `${median(values).toFixed(digits)} (${low.toFixed(digits)} to ${high.toFixed(digits)})`;
}

/** A line that says where a result comes from: when, which commit, which machine, and what else the machine does. */
export function provenance() {
  const git = (...args) => {
    try {
      return execFileSync('git', ['-C', ROOT, ...args], { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] }).trim();
    } catch {
      return undefined; // without git, or outside of a clone
    }
  };
  const commit = git('rev-parse', '--short=10', 'HEAD');
  const changed = git('status', '--porcelain', '--untracked-files=no') ? ', with changes' : '';
  const machine = `${cpus().length} × ${cpus()[0]?.model.trim() ?? 'unknown processor'}`;
  const load = loadavg().map((average) => average.toFixed(1)).join(', ');
  return `${new Date().toISOString()}, commit ${commit ?? 'unknown'}${changed}, ${machine}, load average ${load}`;
}

/**
 * The adapter that WebGPU gives a page of this browser, and the version of the browser, as text.
 * @param {Browser} browser - with a page
 */
export async function adapterOf(browser) {
  const { product } = await browser.call('Browser.getVersion', {}, null);
  const adapter = await browser.eval(`navigator.gpu?.requestAdapter().then((adapter) => {
    if (!adapter) return 'no adapter';
    const { vendor, architecture, device, description } = adapter.info;
    return [vendor, architecture, device, description].filter(Boolean).join(' ') || 'unnamed adapter';
  }) ?? 'no WebGPU'`);
  return `${product} on ${adapter}`;
}

/** Passes bytes on, so many a second. */
function throttle(rate) {
  const begun = Date.now();
  let sent = 0;
  return new Transform({
    async transform(chunk, _, done) {
      sent += chunk.length;
      await sleep(begun + (1000 * sent) / rate - Date.now());
      done(null, chunk);
    },
  });
}

/**
 * Serves files on a free port, whole or in parts. `fileOf` maps a path to a file.
 * @param {(path: string) => string} fileOf
 * @param {Record<string, string>} headers - sent with every file
 * @param {(path: string) => number} rateOf - bytes of a file a second
 */
export async function serve(fileOf, headers, rateOf = () => Infinity) {
  const server = createServer((request, response) => {
    let file, stat, rate;
    try {
      const path = normalize(decodeURIComponent(new URL(request.url, 'http://x').pathname));
      rate = rateOf(path);
      file = fileOf(path);
      stat = statSync(file);
      if (stat.isDirectory()) stat = statSync((file = join(file, 'index.html')));
    } catch {
      return response.writeHead(404, headers).end();
    }
    const { size } = stat;
    const own = { ...headers, 'Accept-Ranges': 'bytes', 'Content-Type': TYPES[extname(file)] ?? 'application/octet-stream', ETag: `"${size}-${stat.mtimeMs}"` };
    if (request.headers['if-none-match'] === own.ETag) return response.writeHead(304, own).end();
    const range = /^bytes=(\d+)-(\d*)$/.exec(request.headers.range ?? '');
    const start = range ? Number(range[1]) : 0;
    const end = range?.[2] ? Math.min(Number(range[2]), size - 1) : size - 1;
    own['Content-Length'] = end + 1 - start;
    if (range) own['Content-Range'] = `bytes ${start}-${end}/${size}`;
    response.writeHead(range ? 206 : 200, own);
    if (request.method === 'HEAD' || size === 0) return response.end();
    const bytes = createReadStream(file, { start, end }).on('error', () => response.destroy());
    (rate < Infinity ? bytes.pipe(throttle(rate)) : bytes).pipe(response);
  });
  await new Promise((resolve) => server.listen(0, '127.0.0.1', () => resolve(undefined)));
  return { site: `http://127.0.0.1:${server.address().port}`, close: () => server.close() };
}

/** A headless browser with one tab. `CHROMIUM` names the program. */
export class Browser {
  #last = 0;
  #pending = new Map();
  #rest = '';
  #ownProfile;
  problems = [];

  /** @param {string} [profile] - a folder that stays; without it a new one, which goes with the browser */
  constructor(profile) {
    this.#ownProfile = !profile;
    this.profile = profile ?? mkdtempSync(join(tmpdir(), 'browser-'));
    this.process = spawn(process.env.CHROMIUM ?? 'chromium', [
      '--headless', '--remote-debugging-pipe', '--no-first-run', '--no-sandbox', '--disable-quic', '--disable-background-networking',
      '--disable-component-update', '--disable-sync', '--enable-unsafe-webgpu', '--window-size=1000,1100',
      `--user-data-dir=${this.profile}`, 'about:blank',
    ], { stdio: ['ignore', 'ignore', 'ignore', 'pipe', 'pipe'] });
    this.process.on('exit', () => {
      for (const { reject } of this.#pending.values()) reject(new Error('the browser ended'));
    });
    this.process.stdio[3].on('error', () => undefined); // it has ended, which its exit tells
    this.process.stdio[4].setEncoding('utf8').on('data', (text) => this.#take(text));
  }

  #take(text) {
    const messages = (this.#rest + text).split('\0');
    this.#rest = messages.pop();
    for (const { id, method, params, result, error } of messages.map((json) => JSON.parse(json))) {
      if (method === 'Runtime.exceptionThrown') this.problems.push(params.exceptionDetails.exception?.description ?? params.exceptionDetails.text);
      if (method === 'Inspector.targetCrashed') this.problems.push('the tab crashed');
      const pending = this.#pending.get(id);
      this.#pending.delete(id);
      if (error) pending?.reject(new Error(error.message));
      else pending?.resolve(result);
    }
  }

  /** Calls a method of the protocol: of the tab once there is one, else of the browser. */
  call(method, params = {}, sessionId = this.tab) {
    this.#last += 1;
    const id = this.#last;
    this.process.stdio[3].write(`${JSON.stringify({ id, method, params, sessionId: sessionId ?? undefined })}\0`);
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => reject(new Error(`${method}: no answer within ${LONG / 1000} s`)), LONG);
      const done = (settle) => (value) => {
        clearTimeout(timer);
        settle(value);
      };
      this.#pending.set(id, { resolve: done(resolve), reject: done(reject) });
    });
  }

  /** Opens a page. `script` runs before those of the page. */
  async open(url, script = '') {
    const { targetId } = await this.call('Target.createTarget', { url: 'about:blank' });
    this.tab = (await this.call('Target.attachToTarget', { targetId, flatten: true })).sessionId;
    await this.call('Page.enable');
    await this.call('Runtime.enable');
    if (script) await this.call('Page.addScriptToEvaluateOnNewDocument', { source: script });
    await this.call('Page.navigate', { url });
    await this.until(`location.href === ${JSON.stringify(url)} && document.readyState === 'complete'`);
  }

  /** The value of an expression in the page; promises are awaited. */
  async eval(expression) {
    const { result, exceptionDetails } = await this.call('Runtime.evaluate', { expression, awaitPromise: true, returnByValue: true });
    if (exceptionDetails) throw new Error(exceptionDetails.exception?.description ?? exceptionDetails.exception?.value ?? exceptionDetails.text);
    return result.value;
  }

  /** Waits until an expression in the page is true. */
  async until(expression) {
    const begun = Date.now();
    while (!(await this.eval(expression))) {
      if (Date.now() - begun > LONG) throw new Error(`\`${expression}\` did not come true`);
      await sleep(50);
    }
  }

  /** Bytes of all processes of the browser. Memory that several of them share is divided among them. Linux only. */
  memory() {
    const parents = new Map();
    const read = (pid, file) => {
      try {
        return readFileSync(`/proc/${pid}/${file}`, 'utf8');
      } catch {
        return ''; // it has ended meanwhile
      }
    };
    for (const entry of readdirSync('/proc').filter((name) => /^\d+$/.test(name))) {
      // The name in parentheses may contain spaces.
      const fields = read(entry, 'stat').split(') ').at(-1).split(' ');
      if (fields.length > 1) parents.set(Number(entry), Number(fields[1]));
    }
    const own = (pid) => pid === this.process.pid || (parents.has(pid) && own(parents.get(pid)));
    const pages = (pid) => Number(/^Pss:\s+(\d+)/m.exec(read(pid, 'smaps_rollup'))?.[1] ?? 0);
    return [...parents.keys()].filter(own).reduce((sum, pid) => sum + 1024 * pages(pid), 0);
  }

  async close() {
    const ended = new Promise((resolve) => this.process.once('exit', resolve));
    this.call('Browser.close', {}, null).catch(() => undefined);
    const patience = setTimeout(() => this.process.kill('SIGKILL'), 5000);
    await ended;
    clearTimeout(patience);
    if (this.#ownProfile) rmSync(this.profile, { recursive: true, force: true, maxRetries: 5, retryDelay: 200 });
  }
}

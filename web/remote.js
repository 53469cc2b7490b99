// The page's other engine: the server that serves the page (`secateur serve`). It has the interface of the engine in
// secateur.js and gives the same events, because the server makes them with the code that the engine in the browser
// has. It needs neither WebGPU nor WebAssembly.
//
// docs/server.md describes the requests. A run is a chat completion, or for a raw prompt a completion, whose stream
// has the events of the run (`secateur: {events: "run"}`).

import { Model, SecateurError } from './secateur.js';

/** @typedef {import('./messages.js').Message} Message */
/** @typedef {import('./messages.js').ModelInfo} ModelInfo */
/** @typedef {import('./messages.js').ProgressMessage} ProgressMessage */
/** @typedef {import('./messages.js').Request} Request */
/** @typedef {import('./messages.js').Resolved} Resolved */
/** @typedef {import('./messages.js').RunEvent} RunEvent */

/** The name under which the key of a server is stored until the tab is closed. The server's origin follows it. */
const KEY = 'secateur-api-key';
/** The seconds between two requests to a server that is loading its model, if it does not name a time. */
const PAUSE = 2;

/** The milliseconds that are waited for the end of a run that could not be stopped. */
const PATIENCE = 1000;

/** Fields of a request with the same name in OpenAI's interface or in other servers that have it. */
const SAME = ['ignore_eos', 'seed', 'temperature', 'top_k', 'top_p', 'min_p', 'repetition_penalty', 'frequency_penalty', 'presence_penalty', 'stop'];
/** Fields that have other names there. */
const RENAMED = {
  max_new_tokens: 'max_tokens', max_thinking_tokens: 'thinking_token_budget', stop_ids: 'stop_token_ids', include_stop: 'include_stop_str_in_output',
};
/** Fields that only secateur has. */
const OWN = ['greedy', 'policy', 'budget', 'window', 'probe_every', 'probe_text', 'scope', 'layers', 'normalise', 'positions', 'steps', 'attention', 'max_answer_tokens', 'draft'];
/** Fields that have a meaning only with the chat template. */
const TEMPLATE = ['system', 'think', 'tools', 'chat_template_kwargs'];
/** Fields of which a request has at most one. */
const PROMPTS = ['prompt', 'messages', 'ids'];
/** Fields that are translated below. */
const REWORDED = [...PROMPTS, ...TEMPLATE, 'raw', 'answer_format'];

/**
 * The form that an answer must have, in the fields that servers have for it.
 * @type {{[type: string]: (format: {[name: string]: any}) => object}}
 */
const FORMATS = {
  json_object: () => ({ response_format: { type: 'json_object' } }),
  json_schema: ({ schema }) => ({ response_format: { type: 'json_schema', json_schema: { name: 'answer', schema } } }),
  regex: ({ pattern }) => ({ structured_outputs: { regex: pattern } }),
  choice: ({ choices }) => ({ structured_outputs: { choice: choices } }),
};

/**
 * Asks for a key of the server.
 * @callback AskKey
 * @param {boolean} wrong - whether the server refused the last one
 * @returns {Promise<string | undefined>} nothing: there is none
 */

/**
 * The engine of a server. No request is sent yet.
 * @param {object} [options]
 * @param {string | URL} [options.server] - the address of the server; by default the one that serves the page
 * @param {AskKey} [options.askKey]
 * @returns {Promise<RemoteEngine>}
 */
export async function open(options) {
  return new RemoteEngine(options);
}

/** A server with a model. */
export class RemoteEngine {
  /** @type {AskKey | undefined} */
  #askKey;
  /** @type {ModelInfo & {settings: Resolved['settings']} | undefined} */
  #info;
  /** What ends the runs under way. @type {Set<() => void>} */
  #stops = new Set();
  #closed = new AbortController();

  /** @param {{server?: string | URL, askKey?: AskKey}} [options] */
  constructor({ server = new URL('./', location.href), askKey } = {}) {
    /** @readonly */
    this.server = new URL(server);
    this.#askKey = askKey;
    this.ready = Promise.resolve();
    /** A part of the interface that is never called: if a server fails, the request reports it. */
    this.onfailure = undefined;
  }

  /** The facts about the server's model, once it is loaded. */
  get info() {
    return this.#info;
  }

  /** The GPU, which the engine in the browser reports here. For a server, the model's info has it. */
  get adapter() {
    return undefined;
  }

  /**
   * Waits until the server has loaded its model. What to load is the server's choice.
   * @param {{onProgress?: (progress: ProgressMessage) => void, signal?: AbortSignal}} [options]
   * @returns {Promise<Model>}
   * @throws {SecateurError}
   */
  async load({ onProgress, signal } = {}) {
    for (;;) {
      try {
        const { secateur: info } = await (await this.#ask('The model could not be loaded', 'props', { signal })).json();
        this.#info = info;
        return new Model(this, info);
      } catch (error) {
        if (!(error instanceof ServerError) || error.code !== 'loading') throw error;
        onProgress?.({ type: 'progress', what: 'The server loads its model', done: 0, total: 0 });
        // If the wait is aborted, the next request fails with the reason.
        await pause(error.retryAfter ?? PAUSE, this.#until(signal));
      }
    }
  }

  /** Does nothing, because the server prepares itself. */
  async prepare() {}

  /**
   * @param {Request} request
   * @returns {Promise<Resolved>}
   */
  async resolve(request) {
    const { body } = this.#form(request);
    return (await this.#ask('The request was refused', 'v1/secateur/resolve', { body })).json();
  }

  /**
   * The report of one trace, or of two side by side: a page of HTML that needs nothing else.
   * @param {{name: string, trace: string}[]} traces
   * @returns {Promise<string>}
   */
  async report(traces) {
    const body = { traces: traces.map(({ name, trace }) => [name, trace]) };
    return (await this.#ask('The report could not be made', 'v1/secateur/report', { body })).text();
  }

  /** @returns {Promise<never>} */
  async conformance() {
    throw new SecateurError('engine', 'Conformance did not finish', "a server's kernels are compared where it runs\n  what to do: run `secateur conformance` there");
  }

  /** @returns {Promise<never>} */
  async logits() {
    throw new SecateurError('engine', 'The logits could not be computed', 'a server gives no logits\n  what to do: run the model in the browser');
  }

  /** @returns {Promise<never>} */
  async follow() {
    throw new SecateurError('engine', 'The text could not be followed', 'a server follows no texts\n  what to do: run the model in the browser');
  }

  /** Ends the runs under way after the tokens that are already being computed. */
  stop() {
    for (const stop of this.#stops) stop();
  }

  /**
   * @param {Request} request
   * @param {AbortSignal} [signal]
   * @returns {AsyncGenerator<RunEvent, void, undefined>}
   */
  async *run(request, signal) {
    const title = 'Decoding stopped';
    signal?.throwIfAborted();
    const connection = new AbortController();
    const abort = () => connection.abort();
    /** @type {string | undefined} */
    let id;
    let stopped = false;
    const stop = () => {
      stopped = true;
      // Before the server has told the id of the run, only the end of the connection ends it.
      if (id === undefined) abort();
      // A replica behind the same address may not know the run: then the end of the connection ends it too.
      else this.#ask(title, `v1/secateur/runs/${id}`, { method: 'DELETE' }).catch(() => setTimeout(abort, PATIENCE));
    };
    this.#stops.add(stop);
    signal?.addEventListener('abort', abort);
    let ended = false;
    try {
      const { path, body } = this.#form(request);
      const asked = { ...body, stream: true, secateur: { ...body.secateur, events: 'run' } };
      const response = await this.#ask(title, path, { body: asked, signal: connection.signal });
      for await (const data of serverSent(response, title)) {
        if (data === '[DONE]') break;
        const { id: own, error, secateur } = JSON.parse(data);
        id ??= own;
        // A run that was stopped here has ended before its answer was complete, as it should.
        if (error && !(ended && stopped)) throw new SecateurError('engine', title, error.message);
        for (const event of secateur?.events ?? []) {
          ended ||= event.type === 'trace';
          yield event;
          signal?.throwIfAborted();
        }
      }
      if (!ended) throw new SecateurError('unreachable', title, BROKEN);
    } catch (error) {
      signal?.throwIfAborted();
      if (this.#closed.signal.aborted) throw closed();
      if (!stopped || !connection.signal.aborted) throw error;
    } finally {
      this.#stops.delete(stop);
      signal?.removeEventListener('abort', abort);
      // Leaving the loop early also ends the run: the server notices that the connection is closed.
      if (!ended) abort();
    }
  }

  /** Ends the runs under way. No further requests are sent to the server. */
  close() {
    this.#closed.abort();
  }

  /**
   * A signal that ends a request: when the engine is closed, or when `signal` is aborted.
   * @param {AbortSignal} [signal]
   */
  #until(signal) {
    return AbortSignal.any([this.#closed.signal, ...(signal ? [signal] : [])]);
  }

  /**
   * A request in OpenAI's form, and where it is sent. Fields that this form would silently leave out are refused, as
   * the engine of the browser refuses them.
   * @param {Request} request
   * @returns {{path: string, body: {[name: string]: any}}}
   * @throws {SecateurError}
   */
  #form(request) {
    /** @type {{[name: string]: any}} */
    const given = Object.fromEntries(Object.entries(request).filter(([, value]) => value !== undefined && value !== null));
    const { ids, raw, prompt = '', system } = given;
    const found = (/** @type {string[]} */ names) => names.filter((name) => name in given);
    /** @type {{[name: string]: any}} */
    const body = { model: this.#info?.model, secateur: {} };
    for (const [name, value] of Object.entries(given)) {
      if (SAME.includes(name)) body[name] = value;
      else if (name in RENAMED) body[RENAMED[/** @type {keyof typeof RENAMED} */ (name)]] = value;
      else if (OWN.includes(name)) body.secateur[name] = value;
      else if (!REWORDED.includes(name)) throw refused(`a request to a server has no field \`${name}\``);
    }
    if (found(PROMPTS).length > 1) throw refused('a request has one prompt', found(PROMPTS));
    if (raw && ('messages' in given || 'ids' in given)) throw refused('only a prompt of text can be taken as it is', ['raw']);
    if (given.answer_format) {
      const words = FORMATS[given.answer_format.type];
      if (!words) throw refused(`a server has no format ${JSON.stringify(given.answer_format.type ?? given.answer_format)}: an object with the type ${Object.keys(FORMATS).join(', ')} is expected`, ['answer_format']);
      Object.assign(body, words(given.answer_format));
    }
    if (ids || raw) {
      if (found(TEMPLATE).length) throw refused('without the chat template this setting has no effect', found(TEMPLATE));
      // Completions have a limit of 16 tokens if they name none.
      body.max_tokens ??= this.#info?.settings.max_new_tokens;
      return { path: 'v1/completions', body: { ...body, prompt: ids ?? prompt } };
    }
    /** @type {Message[]} */
    const spoken = given.messages ?? [{ role: 'user', content: prompt }];
    const messages = system === undefined ? spoken : [{ role: 'system', content: system }, ...spoken];
    const { think: enable_thinking, tools, chat_template_kwargs } = given;
    return { path: 'v1/chat/completions', body: { ...body, enable_thinking, tools, chat_template_kwargs, messages } };
  }

  /**
   * Sends a request to the server. If the server needs a key, the user is asked for it first.
   * @param {string} title - what has failed if this fails
   * @param {string} path
   * @param {{method?: string, body?: object, signal?: AbortSignal}} [options]
   * @returns {Promise<Response>}
   * @throws {SecateurError}
   */
  async #ask(title, path, { method, body, signal } = {}) {
    const { origin } = this.server;
    let key = keptKey(origin);
    for (let wrong = false; ; wrong = true) {
      /** @type {Response} */
      let response;
      try {
        response = await fetch(new URL(path, this.server), {
          method: method ?? (body ? 'POST' : 'GET'),
          headers: { ...(body ? { 'content-type': 'application/json' } : {}), ...(key ? { authorization: `Bearer ${key}` } : {}) },
          body: body && JSON.stringify(body),
          signal: this.#until(signal),
        });
      } catch (error) {
        signal?.throwIfAborted();
        if (this.#closed.signal.aborted) throw closed();
        const found = error instanceof Error ? error.message : String(error);
        throw new SecateurError('unreachable', 'The server cannot be reached',
          `the server does not answer\n  at: ${this.server.host}\n  found: ${found}\n  what to do: start \`secateur serve\` there again, then try again here`);
      }
      // A key that is wrong is not kept.
      if (key !== undefined && response.status !== 401) keepKey(origin, key);
      if (response.ok) return response;
      if (response.status === 401) {
        let entered = await this.#askKey?.(wrong || key !== undefined);
        // A header can hold only these characters, and the keys of the server have no others.
        while (entered && !/^[\x21-\x7e]+$/.test(entered)) entered = await this.#askKey?.(true);
        if (entered) {
          key = entered;
          continue;
        }
      }
      throw await refusal(response, title);
    }
  }
}

const BROKEN = 'the connection to the server broke off before the answer was whole\n  what to do: look whether the server still runs, then try again';

const closed = () => new SecateurError('closed', 'The engine was closed', 'This engine was closed: open another one.');

/**
 * The error for a request that no server supports.
 * @param {string} what
 * @param {string[]} [fields]
 */
function refused(what, fields = []) {
  const at = fields.length ? `\n  at: ${fields.map((name) => `\`${name}\``).join(', ')}` : '';
  return new SecateurError('engine', 'The request was refused', what + at);
}

/**
 * Waits for this many seconds, or until `over` is aborted.
 * @param {number} seconds
 * @param {AbortSignal} over
 * @returns {Promise<void>}
 */
function pause(seconds, over) {
  return new Promise((resolve) => {
    setTimeout(resolve, seconds * 1000);
    if (over.aborted) resolve();
    else over.addEventListener('abort', () => resolve(), { once: true });
  });
}

/**
 * Statuses after which another attempt may succeed: of a server that has no place or cannot be reached, and of
 * proxies.
 */
const BUSY = [429, 502, 503, 504];

/** The error for a refusal of the server. */
class ServerError extends SecateurError {
  /**
   * @param {import('./secateur.js').FailureKind} kind
   * @param {string} title
   * @param {string} text
   * @param {{code?: string, retryAfter?: number}} told
   */
  constructor(kind, title, text, { code, retryAfter }) {
    super(kind, title, text);
    /** The error's name for programs. */
    this.code = code;
    /** The seconds after which another attempt is useful. */
    this.retryAfter = retryAfter;
  }
}

/**
 * The error for a response that is not an answer.
 * @param {Response} response
 * @param {string} title
 */
async function refusal(response, title) {
  const { status } = response;
  // A proxy may answer with a body that is not JSON.
  const { error } = (await response.json().catch(() => undefined)) ?? {};
  const retryAfter = Number(response.headers.get('retry-after')) || undefined;
  const text = error?.message ?? `the server answered with status ${status}`;
  const told = { code: error?.code ?? undefined, retryAfter };
  if (told.code === 'model_not_found') return new ServerError('unreachable', 'The server has another model now', `${text}\n  what to do: try again, with that model`, told);
  if (status === 401) return new ServerError('key', 'The server needs a key', text, told);
  if (!BUSY.includes(status)) return new ServerError('engine', title, text, told);
  const when = retryAfter === undefined ? 'try again later' : `try again in ${retryAfter} ${retryAfter === 1 ? 'second' : 'seconds'}`;
  return new ServerError('busy', 'The server is busy', `${text}\n  what to do: ${when}`, told);
}

/**
 * The data of the events of a stream.
 * @param {Response} response
 * @param {string} title - what has failed if the stream breaks
 * @returns {AsyncGenerator<string, void, undefined>}
 */
async function* serverSent(response, title) {
  const decoder = new TextDecoder();
  const reader = /** @type {ReadableStream<Uint8Array>} */ (response.body).getReader();
  let rest = '';
  try {
    for (;;) {
      const { done, value } = await reader.read().catch(() => {
        throw new SecateurError('unreachable', title, BROKEN);
      });
      if (done) return;
      const lines = (rest + decoder.decode(value, { stream: true })).split('\n');
      rest = lines.pop() ?? '';
      // Other lines are empty, or comments that keep the connection open.
      for (const line of lines) if (line.startsWith('data: ')) yield line.slice('data: '.length);
    }
  } finally {
    reader.cancel().catch(() => undefined);
  }
}

/** The keys of servers by their origin, for browsers that keep nothing. @type {Map<string, string>} */
const keys = new Map();

/**
 * @param {string} origin
 * @returns {string | undefined}
 */
function keptKey(origin) {
  try {
    return sessionStorage.getItem(`${KEY} ${origin}`) ?? keys.get(origin);
  } catch {
    return keys.get(origin);
  }
}

/**
 * @param {string} origin
 * @param {string} key
 */
function keepKey(origin, key) {
  keys.set(origin, key);
  try {
    sessionStorage.setItem(`${KEY} ${origin}`, key);
  } catch {
    // The browser has no storage.
  }
}

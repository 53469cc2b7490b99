// secateur in a web page: loads a reasoning model onto this browser's GPU, in a worker, and generates with it.
//
//     import { load } from './secateur.js';
//     const model = await load();
//     for await (const event of model.generate({ prompt: 'What is 17 + 25?', budget: 'tokens:512' })) {
//       if (event.type === 'token') console.log(event.text);
//     }
//
// A request has the fields of `Request` in src/engine/request.rs. The engine decides about every field that is
// absent, so the same request comes to the same settings here and on the command line.

/** @typedef {import('./messages.js').Adapter} Adapter */
/** @typedef {import('./messages.js').ConformanceTable} ConformanceTable */
/** @typedef {import('./messages.js').CaseMessage} CaseMessage */
/** @typedef {import('./messages.js').DoneEvent} DoneEvent */
/** @typedef {import('./messages.js').Message} Message */
/** @typedef {import('./messages.js').ModelInfo} ModelInfo */
/** @typedef {import('./messages.js').ModelSource} ModelSource */
/** @typedef {import('./messages.js').LoadOptions} LoadOptions */
/** @typedef {import('./messages.js').NoteEvent} NoteEvent */
/** @typedef {import('./messages.js').ProgressMessage} ProgressMessage */
/** @typedef {import('./messages.js').Request} Request */
/** @typedef {import('./messages.js').Resolved} Resolved */
/** @typedef {import('./messages.js').RunEvent} RunEvent */
/** @typedef {import('./messages.js').TokenEvent} TokenEvent */
/** @typedef {import('./messages.js').ToPage} ToPage */

/**
 * How a model is loaded.
 * @typedef {ModelSource & LoadOptions & {
 *   onProgress?: (progress: ProgressMessage | NoteEvent) => void,
 *   signal?: AbortSignal,
 * }} Load
 */

/**
 * Why something failed:
 * - `engine`: the engine refused it, or failed at it. What was loaded stays loaded, unless loading it failed;
 * - `no-webgpu`: this browser gives the page no GPU;
 * - `crashed`, `lost`: the engine crashed, or the GPU was lost. This engine is closed: open another one;
 * - `closed`: the engine was closed;
 * - `unreachable`, `busy`, `key`: of an engine that is a server (remote.js): it does not answer, cannot take the request now,
 *   or needs a key.
 * @typedef {'engine' | 'no-webgpu' | 'crashed' | 'lost' | 'closed' | 'unreachable' | 'busy' | 'key'} FailureKind
 */

/**
 * The methods that a model needs of its engine.
 * @typedef {Pick<Engine, 'run' | 'resolve' | 'logits' | 'follow' | 'stop' | 'conformance' | 'report' | 'close'>} AnyEngine
 */

/** An error of the engine. The message says what failed, where, and what to do. */
export class SecateurError extends Error {
  /**
   * @param {FailureKind} kind
   * @param {string} title - what failed, in a few words
   * @param {string} text - the whole message
   */
  constructor(kind, title, text) {
    super(text);
    this.name = 'SecateurError';
    /** @readonly */
    this.kind = kind;
    /** @readonly */
    this.title = title;
  }
}

/**
 * A call that waits for the worker's answer.
 * @typedef {object} Pending
 * @property {(message: ToPage) => boolean} on - takes in a message; true once it was the last one
 * @property {(error: Error) => void} fail
 */

/**
 * Starts the engine in a worker.
 * @param {object} [options]
 * @param {string | URL} [options.worker] - the address of worker.js; by default beside this file
 * @returns {Promise<Engine>}
 * @throws {SecateurError}
 */
export async function open({ worker = new URL('./worker.js', import.meta.url) } = {}) {
  const engine = new Engine(new Worker(worker, { type: 'module' }));
  await engine.ready;
  return engine;
}

/**
 * Starts an engine and loads a model: from files, from a server or from the hub; with none of these, the built-in
 * model. Closing the model closes the engine.
 * @param {Load & {worker?: string | URL}} [options]
 * @returns {Promise<Model>}
 * @throws {SecateurError}
 */
export async function load({ worker, ...options } = {}) {
  const engine = await open({ worker });
  try {
    return await engine.load(options);
  } catch (error) {
    engine.close();
    throw error;
  }
}

/** A worker with the engine. It holds one model at a time. */
export class Engine {
  /** @type {Worker} */
  #worker;
  #lastCall = 0;
  /** @type {Map<number, Pending>} */
  #pending = new Map();
  /** @type {SecateurError | undefined} */
  #ended;
  /** @type {Promise<unknown>} */
  #queue = Promise.resolve();

  /** @param {Worker} worker */
  constructor(worker) {
    this.#worker = worker;
    /**
     * The GPU, once `ready` is resolved.
     * @type {Adapter | undefined}
     */
    this.adapter = undefined;
    /**
     * Called once if the engine crashes or the GPU is lost.
     * @type {((error: SecateurError) => void) | undefined}
     */
    this.onfailure = undefined;
    /**
     * Resolved once the engine has started.
     * @type {Promise<void>}
     */
    this.ready = new Promise((resolve, reject) => {
      this.#pending.set(0, {
        on: (message) => {
          if (message.type === 'ready') {
            this.adapter = message;
            resolve();
          }
          return message.type === 'ready';
        },
        fail: reject,
      });
    });
    worker.onmessage = ({ data }) => this.#take(data);
    // After a panic in WebAssembly the state of the engine is unknown.
    worker.onerror = (event) => {
      event.preventDefault?.();
      this.#end(new SecateurError('crashed', 'The engine crashed', event.message ?? 'The worker could not be started.'), true);
    };
  }

  /** @param {ToPage} message */
  #take(message) {
    if (message.type === 'lost') {
      return this.#end(new SecateurError('lost', 'The GPU was lost', message.text), true);
    }
    // A message without a number belongs to the call that is running: the start of the engine, or the loading of a
    // model.
    const call = message.call ?? [...this.#pending.keys()][0];
    const pending = call === undefined ? undefined : this.#pending.get(call);
    if (call === undefined || !pending) return;
    if (message.type === 'error') {
      this.#pending.delete(call);
      const error = new SecateurError(message.kind ?? 'engine', message.title, message.text);
      pending.fail(error);
      if (call === 0) this.#end(error);
    } else if (pending.on(message)) {
      this.#pending.delete(call);
    }
  }

  /**
   * @param {SecateurError} error
   * @param {boolean} [unexpected]
   */
  #end(error, unexpected = false) {
    if (this.#ended) return;
    this.#ended = error;
    this.#worker.terminate();
    for (const { fail } of this.#pending.values()) fail(error);
    this.#pending.clear();
    if (unexpected) this.onfailure?.(error);
  }

  /**
   * Sends a message. Its answers go to `on`.
   * @param {object} message
   * @param {Pending} pending
   */
  #ask(message, pending) {
    if (this.#ended) return pending.fail(this.#ended);
    this.#lastCall += 1;
    this.#pending.set(this.#lastCall, pending);
    this.#worker.postMessage({ call: this.#lastCall, ...message });
  }

  /**
   * The answer of one type to a message; `onOther` gets those of other types.
   * @template {ToPage['type']} Type
   * @param {object} message
   * @param {Type} type
   * @param {(message: any) => void} [onOther]
   * @returns {Promise<Extract<ToPage, {type: Type}>>}
   */
  #answer(message, type, onOther) {
    return new Promise((resolve, reject) => {
      this.#ask(message, {
        on: (answer) => {
          if (answer.type === type) resolve(/** @type {any} */ (answer));
          else onOther?.(answer);
          return answer.type === type;
        },
        fail: reject,
      });
    });
  }

  /**
   * Loads a model in place of the one that is loaded. An abort closes the engine, because loading cannot be
   * interrupted in another way.
   * @param {Load} [options]
   * @returns {Promise<Model>}
   * @throws {SecateurError}
   */
  async load({ files, url, hub, onProgress, signal, ...options } = {}) {
    signal?.throwIfAborted();
    const abort = () => this.close();
    signal?.addEventListener('abort', abort);
    try {
      const { info } = await this.#answer({ do: 'load', files, url, hub, options }, 'loaded', onProgress);
      return new Model(this, info);
    } catch (error) {
      signal?.throwIfAborted();
      throw error;
    } finally {
      signal?.removeEventListener('abort', abort);
    }
  }

  /**
   * Prepares for the built-in model while the engine is idle: tests the kernels, and compiles the shaders that the
   * model needs. This is for a page that has just been opened and is likely to load that model. Other calls take
   * precedence.
   * @returns {Promise<void>}
   */
  async prepare() {
    await this.#answer({ do: 'prepare' }, 'prepared');
  }

  /**
   * Compares every kernel with its reference on the CPU.
   * @param {(progress: CaseMessage) => void} [onCase]
   * @returns {Promise<ConformanceTable>}
   */
  async conformance(onCase) {
    return (await this.#answer({ do: 'conformance' }, 'conformance', onCase)).table;
  }

  /**
   * The report of one trace, or of two side by side: a page of HTML that needs nothing else.
   * @param {{name: string, trace: string}[]} traces
   * @returns {Promise<string>}
   */
  async report(traces) {
    return (await this.#answer({ do: 'report', traces: traces.map(({ name, trace }) => [name, trace]) }, 'report')).html;
  }

  /**
   * @param {Request} request
   * @returns {Promise<Resolved>}
   */
  async resolve(request) {
    return JSON.parse((await this.#answer({ do: 'resolve', options: request }, 'resolved')).json);
  }

  /**
   * @param {Iterable<number>} ids
   * @returns {Promise<Float32Array>}
   */
  async logits(ids) {
    return (await this.#answer({ do: 'logits', ids: Uint32Array.from(ids) }, 'logits')).values;
  }

  /**
   * @param {Request} request
   * @param {Iterable<number>} ids
   * @returns {Promise<string>}
   */
  async follow(request, ids) {
    return (await this.#answer({ do: 'follow', options: request, ids: Uint32Array.from(ids) }, 'followed')).json;
  }

  /** Ends the run under way after the tokens that are already being computed. */
  stop() {
    if (!this.#ended) this.#worker.postMessage({ do: 'stop' });
  }

  /**
   * @param {Request} request
   * @param {AbortSignal} [signal]
   * @returns {AsyncGenerator<RunEvent, void, undefined>}
   */
  async *run(request, signal) {
    // The engine runs one request at a time: the others wait here, in order.
    const before = this.#queue;
    /** @type {() => void} */
    let release = () => {};
    this.#queue = new Promise((resolve) => (release = () => resolve(undefined)));
    try {
      await before;
      yield* this.#events(request, signal);
    } finally {
      release();
    }
  }

  /**
   * @param {Request} request
   * @param {AbortSignal} [signal]
   * @returns {AsyncGenerator<RunEvent, void, undefined>}
   */
  async *#events(request, signal) {
    signal?.throwIfAborted();
    /** @type {RunEvent[]} */
    let events = [];
    /** @type {Error | undefined} */
    let failure;
    let ended = false;
    let wake = () => {};
    /** @type {Promise<void>} */
    const over = new Promise((resolve) => {
      this.#ask({ do: 'run', options: request }, {
        on: (message) => {
          events.push(/** @type {RunEvent} */ (message));
          ended = message.type === 'trace';
          wake();
          if (ended) resolve();
          return ended;
        },
        fail: (error) => {
          failure = error;
          wake();
          resolve();
        },
      });
    });
    const abort = () => this.stop();
    signal?.addEventListener('abort', abort);
    try {
      for (;;) {
        const some = events;
        events = [];
        yield* some;
        signal?.throwIfAborted();
        if (events.length) continue;
        if (failure) throw failure;
        if (ended) return;
        await new Promise((resolve) => (wake = () => resolve(undefined)));
      }
    } finally {
      signal?.removeEventListener('abort', abort);
      // Leaving the loop early also ends the run.
      if (!ended && !failure) {
        this.stop();
        await over;
      }
    }
  }

  /** Ends the worker and frees the GPU's memory. */
  close() {
    this.#end(new SecateurError('closed', 'The engine was closed', 'This engine was closed: open another one.'));
  }
}

/**
 * A request whose trace has the attention at each probe, which the report shows, unless it says otherwise.
 * @param {Request} request
 * @returns {Request}
 */
const recorded = (request) => ({ attention: 'layers', ...request });

/** A model that is loaded: on this browser's GPU, or on a server. */
export class Model {
  /**
   * @param {AnyEngine} engine
   * @param {ModelInfo} info
   */
  constructor(engine, info) {
    /** @readonly */
    this.engine = engine;
    /** @readonly */
    this.info = info;
    /** Calls in the form of OpenAI's client. */
    this.chat = { completions: new Completions(this) };
  }

  /**
   * Generates. The last event is `trace`, after `done`. Requests run one after the other, in the order of the calls.
   * Leaving the loop ends the run; so does `signal`, upon which the loop throws the reason of the abort.
   * @param {Request} request
   * @param {{signal?: AbortSignal}} [options]
   * @returns {AsyncGenerator<RunEvent, void, undefined>}
   */
  generate(request, { signal } = {}) {
    return this.engine.run(recorded(request), signal);
  }

  /**
   * Resolves a request with this model, without running it.
   * @param {Request} request
   * @returns {Promise<Resolved>}
   */
  resolve(request) {
    return this.engine.resolve(recorded(request));
  }

  /**
   * The logits after each of these tokens, one row for each token. They serve to compare this device with another.
   * @param {Iterable<number>} ids
   * @returns {Promise<Float32Array>}
   */
  logits(ids) {
    return this.engine.logits(ids);
  }

  /**
   * Forwards these tokens behind the prompt as if the model had written them, and prunes as the request says. The
   * trace, which is JSON text, serves to compare the decisions of this device with those of another about the same
   * text.
   * @param {Request} request
   * @param {Iterable<number>} ids
   * @returns {Promise<string>}
   */
  follow(request, ids) {
    return this.engine.follow(request, ids);
  }

  /** Ends the run under way after the tokens that are already being computed; its last events still come. */
  stop() {
    this.engine.stop();
  }

  /**
   * @param {(progress: CaseMessage) => void} [onCase]
   * @returns {Promise<ConformanceTable>}
   */
  conformance(onCase) {
    return this.engine.conformance(onCase);
  }

  /**
   * The report of one trace or two as HTML.
   * @param {{name: string, trace: string}[]} traces
   * @returns {Promise<string>}
   */
  report(traces) {
    return this.engine.report(traces);
  }

  /** Ends the engine and frees the GPU's memory. */
  close() {
    this.engine.close();
  }
}

/**
 * A request in OpenAI's form. Fields that OpenAI does not have are those of {@link Request}: `budget`, `policy`, ….
 * @typedef {Omit<Request, 'prompt'> & {
 *   messages: Message[],
 *   model?: string,
 *   stream?: boolean,
 *   stream_options?: {include_usage?: boolean},
 *   max_tokens?: number,
 *   max_completion_tokens?: number,
 * }} CompletionRequest
 *
 * @typedef {object} Usage
 * @property {number} prompt_tokens
 * @property {number} completion_tokens
 * @property {number} total_tokens
 * @property {{reasoning_tokens: number}} completion_tokens_details
 *
 * @typedef {object} Chunk
 * @property {string} id
 * @property {'chat.completion.chunk'} object
 * @property {number} created
 * @property {string} model
 * @property {{index: 0, delta: {role?: 'assistant', content?: string, reasoning_content?: string},
 *   finish_reason: 'stop' | 'length' | null}[]} choices
 * @property {Usage | null} [usage]
 *
 * @typedef {object} Completion
 * @property {string} id
 * @property {'chat.completion'} object
 * @property {number} created
 * @property {string} model
 * @property {{index: 0, message: {role: 'assistant', content: string, reasoning_content: string},
 *   finish_reason: 'stop' | 'length'}[]} choices
 * @property {Usage} usage
 */

let completions = 0;

/** @param {DoneEvent} done @returns {'stop' | 'length'} */
const finishReason = ({ stop_reason: reason }) => (['max_new_tokens', 'max_answer_tokens', 'context_full'].includes(String(reason)) ? 'length' : 'stop');

/** @param {DoneEvent} done @returns {Usage} */
const usageOf = ({ totals }) => ({
  prompt_tokens: totals.prompt_tokens,
  completion_tokens: totals.generated_tokens,
  total_tokens: totals.prompt_tokens + totals.generated_tokens,
  completion_tokens_details: { reasoning_tokens: totals.thinking_tokens },
});

/** Whether a token is `<think>` or `</think>`. @param {TokenEvent} event */
const isTag = ({ role }) => role === 'think_open' || role === 'think_close';

class Completions {
  #model;

  /** @param {Model} model */
  constructor(model) {
    this.#model = model;
  }

  /**
   * Chat completion. What the model thinks is in `reasoning_content`, as in other servers of reasoning models.
   * @overload
   * @param {CompletionRequest & {stream: true}} request
   * @param {{signal?: AbortSignal}} [options]
   * @returns {Promise<AsyncGenerator<Chunk, void, undefined>>}
   */
  /**
   * @overload
   * @param {CompletionRequest & {stream?: false}} request
   * @param {{signal?: AbortSignal}} [options]
   * @returns {Promise<Completion>}
   */
  /**
   * @param {CompletionRequest} request
   * @param {{signal?: AbortSignal}} [options]
   * @returns {Promise<AsyncGenerator<Chunk, void, undefined> | Completion>}
   */
  async create({ model: _, stream, stream_options, max_tokens, max_completion_tokens, ...request }, { signal } = {}) {
    const most = max_completion_tokens ?? max_tokens ?? request.max_new_tokens;
    const asked = most === undefined ? request : { ...request, max_new_tokens: most };
    completions += 1;
    const head = { id: `chatcmpl-${completions}`, created: Math.floor(Date.now() / 1000), model: this.#model.info.model };
    const events = this.#model.generate(asked, { signal });
    if (stream) return chunks(head, events, stream_options?.include_usage === true);
    let [content, reasoning] = ['', ''];
    /** @type {DoneEvent | undefined} */
    let done;
    for await (const event of events) {
      if (event.type === 'token' && event.thinking) reasoning += isTag(event) ? '' : event.text;
      else if (event.type === 'token') content += event.text;
      else if (event.type === 'done') done = event;
    }
    if (!done) throw new SecateurError('engine', 'Decoding stopped', 'The run ended without a result.');
    content = done.message?.content ?? content.trim();
    return {
      ...head,
      object: 'chat.completion',
      choices: [{ index: 0, message: { role: 'assistant', content, reasoning_content: reasoning }, finish_reason: finishReason(done) }],
      usage: usageOf(done),
    };
  }
}

/**
 * @param {{id: string, created: number, model: string}} head
 * @param {AsyncGenerator<RunEvent, void, undefined>} events
 * @param {boolean} withUsage
 * @returns {AsyncGenerator<Chunk, void, undefined>}
 */
async function* chunks(head, events, withUsage) {
  /**
   * @param {Chunk['choices'][0]['delta']} delta
   * @param {'stop' | 'length' | null} [reason]
   * @returns {Chunk}
   */
  const chunk = (delta, reason = null) => ({ ...head, object: 'chat.completion.chunk', choices: [{ index: 0, delta, finish_reason: reason }] });
  for await (const event of events) {
    if (event.type === 'start') yield chunk({ role: 'assistant', content: '' });
    if (event.type === 'token' && event.text && !isTag(event)) yield chunk(event.thinking ? { reasoning_content: event.text } : { content: event.text });
    if (event.type === 'done') {
      if (event.tail) yield chunk({ content: event.tail });
      yield chunk({}, finishReason(event));
      if (withUsage) yield { ...head, object: 'chat.completion.chunk', choices: [], usage: usageOf(event) };
    }
  }
}

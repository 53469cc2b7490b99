// The messages between the page (app.js) and its worker (worker.js), as types. This file has no code and is never
// loaded: editors and `tsc --checkJs` read it. The worker passes on the events of the engine as they come from
// src/web.rs.

/**
 * A message to the worker.
 * @typedef {LoadMessage | RunMessage | ResolveMessage | StopMessage | ConformanceMessage} ToWorker
 *
 * Loads a model: from files, from a server, or, with neither, the built-in model. Answered by `progress`, then by
 * `loaded` or `error`.
 * @typedef {object} LoadMessage
 * @property {'load'} do
 * @property {File[]} [files] - the files of a model folder
 * @property {string} [url] - a model on a server: a folder in Hugging Face layout, or a GGUF file
 * @property {string} [hub] - a model by its name on huggingface.co: `ORG/NAME` or `ORG/NAME/FILE.gguf`
 * @property {LoadOptions} options
 *
 * @typedef {object} LoadOptions
 * @property {'f16' | 'f32'} [kv] - element type of the KV cache; f16 if absent
 * @property {'q8' | 'q6' | 'q4'} [weights] - precision to which weights are quantized; that of the files if absent
 * @property {number} [context] - positions to load for; the model's maximum, at most 32,768, if absent
 * @property {string} [name] - name to show
 *
 * Starts a run with the loaded model. Answered by the events `start`, `token`, `probe`, `note` and `done`, then by
 * `trace`, or by `error`.
 * @typedef {object} RunMessage
 * @property {'run'} do
 * @property {Request} options
 *
 * Asks which settings a request comes to, without running it. Answered by `resolved` or `error`.
 * @typedef {object} ResolveMessage
 * @property {'resolve'} do
 * @property {Request} options
 *
 * A request as src/engine/request.rs defines it, with the same fields. A field that is absent is decided by the
 * engine.
 * @typedef {{prompt?: string, [field: string]: unknown}} Request
 *
 * Ends the run after the tokens that are already being computed.
 * @typedef {object} StopMessage
 * @property {'stop'} do
 *
 * Compares every kernel with its reference on the CPU. Answered by `case` for each case, then by `conformance` or
 * `error`.
 * @typedef {object} ConformanceMessage
 * @property {'conformance'} do
 */

/**
 * A message to the page.
 * @typedef {ReadyMessage | ProgressMessage | LoadedMessage | EngineEvent | TraceMessage | ResolvedMessage |
 *   CaseMessage | ConformanceResult | ErrorMessage} ToPage
 *
 * The engine is there and the browser has a GPU.
 * @typedef {object} ReadyMessage
 * @property {'ready'} type
 * @property {string} adapter - name of the adapter
 * @property {number} maxBinding - largest storage buffer binding, in bytes
 * @property {number} maxBuffer - largest buffer, in bytes
 * @property {boolean} f16 - whether shaders can compute in f16
 *
 * @typedef {object} ProgressMessage
 * @property {'progress'} type
 * @property {string} what - what is being done or read
 * @property {number} done - bytes read
 * @property {number} total - bytes in all; 0 if unknown
 *
 * @typedef {object} LoadedMessage
 * @property {'loaded'} type
 * @property {number} [memory] - bytes of the engine's own memory, beside that of the GPU
 * @property {ModelInfo} info
 *
 * @typedef {object} ModelInfo
 * @property {string} model
 * @property {string} adapter
 * @property {string} backend
 * @property {string[]} [policies] - names of all policies
 * @property {{prompt?: string}} [suggested] - a prompt that this model can answer
 *
 * @typedef {object} TraceMessage
 * @property {'trace'} type
 * @property {string} json - the trace of the run, as docs/trace.md describes it
 *
 * @typedef {object} ResolvedMessage
 * @property {'resolved'} type
 * @property {string} json - the resolved request, `{prompt, settings, notes}`
 *
 * @typedef {object} CaseMessage
 * @property {'case'} type
 * @property {string} kernel - kernel of the next case
 * @property {number} done
 * @property {number} total
 *
 * @typedef {object} ConformanceResult
 * @property {'conformance'} type
 * @property {ConformanceTable} table
 *
 * @typedef {object} ConformanceTable
 * @property {string} backend
 * @property {string} adapter
 * @property {KernelResult[]} kernels
 * @property {number} passed - cases
 * @property {number} failed - cases
 *
 * @typedef {object} KernelResult
 * @property {string} kernel
 * @property {number} cases
 * @property {number | string} worst_error - as a fraction of the bound; text where it is not finite
 * @property {string} bound
 * @property {boolean} passed
 * @property {string[]} failures
 *
 * Something failed. The model stays loaded unless loading it failed.
 * @typedef {object} ErrorMessage
 * @property {'error'} type
 * @property {string} title
 * @property {string} text
 */

/**
 * An event of a run. Events that measure memory have its size in bytes.
 * @typedef {StartEvent | TokenEvent | ProbeEvent | NoteEvent | DoneEvent} EngineEvent
 *
 * @typedef {object} StartEvent
 * @property {'start'} type
 * @property {number} prompt_tokens
 * @property {string[]} [notes] - sentences about how the request was resolved
 * @property {number} [bytes_in_use]
 * @property {number} [bytes_reserved]
 *
 * @typedef {object} TokenEvent
 * @property {'token'} type
 * @property {number} id
 * @property {string} text - empty for a special token, and for a part of a character whose text comes with a later
 *   token
 * @property {boolean} thinking - whether it belongs to the thinking
 *
 * @typedef {object} ProbeEvent
 * @property {'probe'} type
 * @property {[start: number, end: number][]} evicted - ranges of bytes in the UTF-8 of the text so far
 * @property {number} cached_before - slots before the eviction
 * @property {number} cached_after - slots after it
 * @property {number} [bytes_in_use]
 * @property {number} [bytes_reserved]
 *
 * @typedef {object} NoteEvent
 * @property {'note'} type
 * @property {string} text - a sentence about the run, for example that its text repeats itself
 *
 * @typedef {object} DoneEvent
 * @property {'done'} type
 * @property {string | object} stop_reason - as in a trace
 * @property {boolean} [thinking_unfinished] - whether the run ended before the thinking did
 * @property {number | string} tokens_per_second
 * @property {string} tail - what an unfinished character at the end adds to the text
 * @property {number} [bytes_in_use]
 * @property {number} [bytes_reserved]
 */

export {};

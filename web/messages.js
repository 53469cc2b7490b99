// The messages between secateur.js and its worker (worker.js), as types. This file has no code and is never loaded:
// editors and `tsc` read it. The worker passes on the events of the engine as they come from src/web.rs, and
// remote.js those of a server; both come from src/report/events.rs.
//
// Every message to the worker but `stop` has a number, `call`, which its answers repeat. The first message of all,
// which the worker sends unasked, has none.

/**
 * A message to the worker.
 * @typedef {LoadMessage | PrepareMessage | RunMessage | ResolveMessage | LogitsMessage | FollowMessage | ReportMessage | StopMessage | ConformanceMessage} ToWorker
 *
 * Loads a model: from files, from a server or from the hub, or, with none of these, the built-in model. Answered by
 * `progress` and `note`, then by `loaded` or `error`.
 * @typedef {ModelSource & {do: 'load', call: number, options: LoadOptions}} LoadMessage
 *
 * @typedef {object} ModelSource
 * @property {File[]} [files] - the files of a model folder
 * @property {string} [url] - a model folder on a server, or a .gguf file
 * @property {string} [hub] - the name of a model on the Hugging Face Hub: ORG/NAME, ORG/NAME/FILE.gguf or ORG/NAME:Q4_K_M
 *
 * @typedef {object} LoadOptions
 * @property {'f16' | 'f32'} [kv] - element type of the KV cache; f16 if absent
 * @property {number} [context] - positions to load for; the model's maximum, at most 32,768, if absent
 * @property {'q8' | 'q6' | 'q4'} [weights] - the precision to which weights are quantized as they are loaded; if absent,
 *   they keep the types of the files
 * @property {string} [name] - name to show
 *
 * Tests the kernels and compiles the shaders of the built-in model, while no other message arrives. Answered by
 * `prepared` or `error`.
 * @typedef {object} PrepareMessage
 * @property {'prepare'} do
 * @property {number} call
 *
 * Starts a run with the loaded model. Answered by the events `start`, `token`, `probe`, `note` and `done`, then by
 * `trace`, or by `error`.
 * @typedef {object} RunMessage
 * @property {'run'} do
 * @property {number} call
 * @property {Request} options
 *
 * Resolves a request to its settings, without running it. Answered by `resolved` or `error`.
 * @typedef {object} ResolveMessage
 * @property {'resolve'} do
 * @property {number} call
 * @property {Request} options
 *
 * Asks for the logits after each of these tokens. Answered by `logits` or `error`.
 * @typedef {object} LogitsMessage
 * @property {'logits'} do
 * @property {number} call
 * @property {Uint32Array} ids
 *
 * Has the model read these tokens behind the prompt as if it had written them, and pruned as the request says.
 * Answered by `followed` or `error`.
 * @typedef {object} FollowMessage
 * @property {'follow'} do
 * @property {number} call
 * @property {Request} options
 * @property {Uint32Array} ids
 *
 * A request as src/engine/request.rs defines it, with the same fields. A field that is absent is decided by the
 * engine.
 * @typedef {object} Request
 * @property {string} [prompt] - the user's message. A request has one of `prompt`, `messages` and `ids`
 * @property {Message[]} [messages] - a conversation, whose last message is the user's
 * @property {number[]} [ids] - token ids to continue
 * @property {string} [system] - the system prompt, which precedes the conversation
 * @property {boolean} [raw] - whether `prompt` is taken as it is, without the chat template
 * @property {boolean} [think] - whether the model thinks before it answers, where its chat template has such a switch
 * @property {object[]} [tools] - descriptions of the tools that the model may call, in OpenAI's form
 * @property {Record<string, unknown>} [chat_template_kwargs] - further variables of the chat template
 * @property {number} [max_new_tokens]
 * @property {boolean} [ignore_eos] - whether generation goes on past the end-of-sequence tokens
 * @property {number} [seed] - of sampling, and of policies that evict at random; if absent, a new one
 * @property {boolean} [greedy] - whether the most likely token is always taken
 * @property {number} [temperature] - divides the logits; 0 means greedy
 * @property {number} [top_k] - draw from this many of the most likely tokens; 0 or -1: from all
 * @property {number} [top_p] - draw from the fewest tokens that reach this probability together
 * @property {number} [min_p] - draw from tokens that are at least this share as likely as the most likely one
 * @property {number} [repetition_penalty] - above 1, tokens that occurred before become less likely
 * @property {number} [frequency_penalty] - taken off the logit of a token for each time that it was generated
 * @property {number} [presence_penalty] - taken off the logit of a token that was generated, once
 * @property {string} [policy] - which tokens are evicted: `think-clearly`, `full`, …
 * @property {string} [budget] - how much stays: `tokens:512`, `ratio:0.5`, …
 * @property {number} [window] - the latest tokens that are never evicted
 * @property {number} [probe_every] - thinking tokens from one probe to the next
 * @property {string} [probe_text] - what is appended at a probe
 * @property {'shared' | 'layer' | 'head'} [scope] - which layers and heads share a kept set
 * @property {string} [layers] - the layers whose attention counts in a shared set
 * @property {'none' | 'per-head'} [normalise] - whether heads are brought to one scale before they are averaged
 * @property {'original' | 'compact'} [positions] - the positions of kept keys after an eviction
 * @property {'keywords' | 'paragraphs' | 'sentences' | 'auto'} [steps] - where steps of the thinking begin
 * @property {string | string[]} [stop] - texts, or one text, that end the answer, and are no part of it; they have no effect on the thinking
 * @property {number[]} [stop_ids] - ids of tokens that end the answer
 * @property {boolean} [include_stop] - whether the text or the token that ended the answer is part of it after all
 * @property {number} [max_thinking_tokens] - thinking tokens after which the engine ends the thinking
 * @property {number} [max_answer_tokens] - the most tokens outside the thinking
 * @property {object} [answer_format] - what the answer must look like; the engine in the browser refuses it
 * @property {number} [logprobs] - reports the probability of each token and of so many of the most likely ones
 * @property {number} [prompt_logprobs] - the same for the tokens of the prompt
 * @property {number} [draft] - tokens that each decode step drafts from the text so far, at most 7
 * @property {'off' | 'layers' | 'heads'} [attention] - how much of each probe's attention the trace records
 *
 * @typedef {object} Message
 * @property {string} role - `system`, `user`, `assistant` or `tool`
 * @property {string} content
 *
 * A request with nothing left open.
 * @typedef {object} Resolved
 * @property {object} prompt
 * @property {{[name: string]: any, policy: string, budget: string, window: number, seed: number,
 *   sampling: {[name: string]: number}}} settings
 * @property {string[]} notes - sentences about how the request was resolved
 *
 * Makes the report of one trace or two. Answered by `report` or `error`.
 * @typedef {object} ReportMessage
 * @property {'report'} do
 * @property {number} call
 * @property {[name: string, trace: string][]} traces
 *
 * Ends the run after the tokens that are already being computed.
 * @typedef {object} StopMessage
 * @property {'stop'} do
 *
 * Compares every kernel with its reference on the CPU. Answered by `case` for each case, then by `conformance` or
 * `error`.
 * @typedef {object} ConformanceMessage
 * @property {'conformance'} do
 * @property {number} call
 */

/**
 * A message to the page. `call` is that of the message which it answers.
 * @typedef {(ReadyMessage | LostMessage | ProgressMessage | LoadedMessage | PreparedMessage | RunEvent | ResolvedMessage | LogitsResult | FollowedMessage | ReportResult |
 *   CaseMessage | ConformanceResult | ErrorMessage) & {call?: number}} ToPage
 *
 * The engine has started and the browser has a GPU.
 * @typedef {Adapter & {type: 'ready'}} ReadyMessage
 *
 * @typedef {object} Adapter
 * @property {string} adapter - name of the adapter
 * @property {number} maxBinding - largest storage buffer binding, in bytes
 * @property {number} maxBuffer - largest buffer, in bytes
 * @property {boolean} f16 - whether shaders can compute in f16
 *
 * The browser took the GPU away. This engine can no longer be used.
 * @typedef {object} LostMessage
 * @property {'lost'} type
 * @property {string} text
 *
 * @typedef {object} ProgressMessage
 * @property {'progress'} type
 * @property {number} [call]
 * @property {string} what - what is being done or read
 * @property {number} done - bytes read
 * @property {number} total - bytes in all; 0 if unknown
 *
 * @typedef {object} LoadedMessage
 * @property {'loaded'} type
 * @property {number} [call]
 * @property {number} [memory] - bytes of the engine's own memory, beside that of the GPU
 * @property {ModelInfo} info
 *
 * @typedef {object} PreparedMessage
 * @property {'prepared'} type
 *
 * @typedef {object} ModelInfo
 * @property {string} model
 * @property {string} adapter
 * @property {string} backend
 * @property {string[]} [policies] - names of all policies
 * @property {number} [context] - positions that the model is loaded for
 * @property {number} [slot_bytes] - bytes of one cached token, all layers together
 * @property {number | null} [most_slots] - cached tokens of which one buffer of the device can hold a layer; null if there is no such
 *   limit
 * @property {{prompt?: string}} [suggested] - a prompt that this model can answer
 * @property {Resolved['settings']} [settings] - of a server: those of a request that leaves everything open
 *
 * @typedef {object} TraceMessage
 * @property {'trace'} type
 * @property {string} json - the trace of the run, as docs/trace.md describes it
 *
 * @typedef {object} ResolvedMessage
 * @property {'resolved'} type
 * @property {string} json - the resolved request, `{prompt, settings, notes}`
 *
 * @typedef {object} LogitsResult
 * @property {'logits'} type
 * @property {Float32Array} values - a row for each token, with as many values as the vocabulary has tokens
 *
 * @typedef {object} FollowedMessage
 * @property {'followed'} type
 * @property {string} json - a trace, as docs/trace.md describes it
 *
 * @typedef {object} ReportResult
 * @property {'report'} type
 * @property {string} html - a page that needs nothing else
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
 * @property {'no-webgpu' | 'crashed'} [kind] - what kind of failure, if it is a particular one
 * @property {string} title
 * @property {string} text
 */

/**
 * What a run reports: its events, then its trace.
 * @typedef {EngineEvent | TraceMessage} RunEvent
 *
 * An event of a run. Events that measure memory have its size in bytes.
 * @typedef {StartEvent | TokenEvent | ProbeEvent | NoteEvent | DoneEvent | PartialEvent} EngineEvent
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
 * @property {'thinking' | 'think_open' | 'think_close' | 'answer'} [role] - its part of the text
 *
 * @typedef {object} ProbeEvent
 * @property {'probe'} type
 * @property {number} [at_token] - generated tokens before the probe
 * @property {number} [thinking_tokens] - thinking tokens before the probe
 * @property {[start: number, end: number][]} evicted - ranges of bytes in the UTF-8 of the text so far
 * @property {number} cached_before - slots before the eviction
 * @property {number} cached_after - slots after it
 * @property {ProbedStep[]} [steps] - the steps of the thinking so far, in order
 * @property {AttentionMap | null} [map] - how much `</think>` attends to each step
 * @property {{asked: number, kept: number} | null} [budget_missed] - tokens, where protection made the budget unreachable
 * @property {number} [probe_us] - time that it took, in microseconds
 * @property {number} [bytes_in_use]
 * @property {number} [bytes_reserved]
 *
 * @typedef {object} ProbedStep
 * @property {number} start - where it begins, in bytes of the text
 * @property {number} end
 * @property {number} tokens
 * @property {number} cached - of them, tokens in the cache before the eviction
 * @property {number | null} importance - mean score of the cached tokens; null if the policy measures none
 * @property {number} evicted - tokens that this probe evicted
 *
 * A map as draw/grid.js draws it.
 * @typedef {object} AttentionMap
 * @property {number[]} columns - indices into the probe's steps
 * @property {{largest: number, cells: string, spread: ({gini: number, top_tenth: number} | null)[]}} layers
 * @property {object[]} [heads] - in a report, a grid for each layer; empty in an event
 * @property {boolean} [heads_left_out] - whether a trace has the heads and a report leaves them out
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
 * @property {Message | null} message - the answer as the next message of the conversation; null if none came, and then
 *   the conversation continues without the question too
 * @property {Totals} totals
 * @property {number} [bytes_in_use]
 * @property {number} [bytes_reserved]
 */

/**
 * A run failed after it had begun: its trace until then. The error follows.
 * @typedef {object} PartialEvent
 * @property {'partial'} type
 * @property {string} json - the trace
 */

/**
 * Sums over a run, as in a trace.
 * @typedef {object} Totals
 * @property {number} prompt_tokens
 * @property {number} generated_tokens
 * @property {number} thinking_tokens
 * @property {number} evicted_tokens
 * @property {number} peak_cached - most slots at any time
 * @property {number} [final_cached] - slots at the end
 * @property {number} [repeated_tokens] - tokens that complete a run of twelve tokens which the model had written before
 * @property {number} peak_kv_bytes
 * @property {number} [prefill_us] - times in microseconds
 * @property {number} [decode_us]
 * @property {number} [probe_us]
 * @property {number} [probability_missed] - the largest share of the probability that lay outside the candidates of a
 *   draw; absent: 0. A note before the end says so where it is more than a thousandth
 */

export {};

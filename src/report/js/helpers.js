// What every part of the report's page needs: the data, and its types.
//
// The files of this folder and of web/draw are ES modules for editors and type checkers. The page loads nothing, so
// src/report/html.rs puts them into one script, in the order draw, chart, grid, helpers, figures, reasoning, page,
// and drops `import` lines and the word `export`. They therefore share one scope: a top-level name may exist only
// once. Text from a trace only ever becomes the content of a text node.

/**
 * The types are those of the structs in src/report/html.rs, field by field. A `| null` is an `Option` there.
 *
 * @typedef {object} TraceView
 * @property {string} name - file name, or another name that tells two traces apart
 * @property {string} model
 * @property {string} device
 * @property {string} secateur - the version that wrote the trace
 * @property {SettingsView} settings
 * @property {string} stop - why the run ended, in words
 * @property {Totals} totals
 * @property {string | null} prompt - text of the prompt
 * @property {number | null} slot_bytes - bytes of keys and values that one slot takes in all layers
 * @property {StepView[]} steps
 * @property {string | null} step_note - says that steps are not cut at keywords where one would expect them to be
 * @property {string | null} sampling_note - says how much probability lay outside the candidates of a draw
 * @property {string} answer
 * @property {ProbeView[]} probes
 *
 * @typedef {object} SettingsView
 * @property {string} policy
 * @property {string} budget
 * @property {number} window - latest tokens that are never evicted
 * @property {number} probe_every - thinking tokens from one probe to the next; 0 where text was generated elsewhere
 * @property {string} probe_text
 * @property {string} scope - shared, layer or head
 * @property {string} layers - all, or numbers and ranges
 * @property {string} normalise - none or per-head
 * @property {string} positions - original or compact
 * @property {string} steps - keywords, paragraphs, sentences or auto
 * @property {string[]} changed - the names of the settings that differ from the default
 *
 * @typedef {object} StepView
 * @property {RunView[]} runs - the tokens of the step in order, cut where their fate changes
 *
 * @typedef {object} RunView
 * @property {string} text
 * @property {number} tokens
 * @property {number | null} evicted_by - index of the probe that evicted these tokens
 *
 * @typedef {object} ProbeView
 * @property {number} at_token - generated tokens before the probe
 * @property {number} thinking_tokens - thinking tokens before the probe
 * @property {number} cached_before - slots before the eviction
 * @property {number} cached_after - slots after it
 * @property {number} evicted - tokens that it evicted
 * @property {number | null} target - thinking tokens that the budget allows, where the budget counts tokens
 * @property {{asked: number, kept: number} | null} infeasible - where protection made the budget unreachable
 * @property {{probe_us: number, plan_us: number, gather_us: number}} timings
 * @property {DeviceBytes} bytes_before
 * @property {DeviceBytes} bytes_after
 * @property {number} known_steps - steps of the text so far
 * @property {ProbedStep[]} steps - those with cached tokens
 * @property {MapView | null} map
 * @property {string} kept - base64; a row for each layer, a byte for each known step: 255 where all of it is cached.
 *   Empty in scope `shared`.
 *
 * @typedef {object} DeviceBytes
 * @property {number} in_use
 * @property {number} reserved
 *
 * @typedef {object} ProbedStep
 * @property {number} index - into the steps of the trace
 * @property {number | null} importance
 * @property {number} cached - tokens in the cache before the eviction
 * @property {number} evicted - tokens that the probe evicted
 *
 * @typedef {object} MapView
 * @property {number[]} columns - indices of the steps
 * @property {Grid} layers - a row for each layer
 * @property {Grid[]} heads - for each layer, a row for each query head; empty where they are not in the page
 * @property {boolean} heads_left_out - the trace has them, the page does not
 *
 * @typedef {object} Grid
 * @property {number} largest - the largest weight
 * @property {string} cells - base64; rows of bytes, 255 for the largest weight and 1 for DECADES powers of ten below
 *   it
 * @property {(Spread | null)[]} spread - of each row; null for a row without attention
 *
 * @typedef {object} Spread
 * @property {number} gini
 * @property {number} top_tenth - share of the attention that the top tenth of tokens hold
 *
 * @typedef {object} Totals
 * @property {number} prompt_tokens
 * @property {number} generated_tokens
 * @property {number} thinking_tokens
 * @property {number} evicted_tokens
 * @property {number} peak_cached
 * @property {number} final_cached
 * @property {number} peak_kv_bytes
 * @property {number} prefill_us
 * @property {number} decode_us
 * @property {number} probe_us
 * @property {number} [probability_missed]
 * @property {number} [draft_steps]
 */

/** @type {TraceView[]} */
export const traces = JSON.parse(document.getElementById('data').textContent);

/** The tokens of a step. */
export const tokensOf = (step) => step.runs.reduce((sum, run) => sum + run.tokens, 0);

/** The text of a step. */
export const textOf = (step) => step.runs.map((run) => run.text).join('');

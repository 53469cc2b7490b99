// The page in which compare.mjs runs one engine. Each engine loads the model and generates from the same text,
// greedily. All times are taken here, so they include what an engine needs to bring a token to the page.

/**
 * What a run gave: when each token came, in milliseconds after the call, and the ids where the engine tells them.
 * @typedef {{prompt_tokens: number, at: number[], ids?: number[], text: string, own?: object}} Run
 *
 * `generate` makes `tokens` tokens. With `wantIds`, time does not matter, but ids do. `encode` gives the ids of a text.
 * @typedef {{text: string, ids: number[]}} Prompt
 * @typedef {{about: object, generate: (prompt: Prompt, tokens: number, wantIds: boolean) => Promise<Run>,
 *   encode?: (text: string) => Promise<number[]>}} Loaded
 */

/** Positions that each engine is loaded for. */
const CONTEXT = 512;

/** @type {Record<string, (url: string, options: any) => Promise<Loaded>>} */
const ENGINES = {
  async secateur(url) {
    const { load } = await import('/web/secateur.js');
    const model = await load({ url, context: CONTEXT });
    return {
      about: { adapter: model.engine.adapter.adapter },
      async encode(text) {
        for await (const event of model.generate({ prompt: text, raw: true, max_new_tokens: 1 })) {
          if (event.type === 'trace') return JSON.parse(event.json).prompt_ids;
        }
      },
      async generate({ text }, tokens) {
        const request = { prompt: text, raw: true, policy: 'full', greedy: true, ignore_eos: true, max_new_tokens: tokens, attention: 'off' };
        const run = { prompt_tokens: 0, at: [], ids: [], text: '' };
        const begun = performance.now();
        for await (const event of model.generate(request)) {
          if (event.type === 'start') run.prompt_tokens = event.prompt_tokens;
          if (event.type === 'done') run.own = { tokens_per_second: event.tokens_per_second };
          if (event.type !== 'token') continue;
          run.at.push(performance.now() - begun);
          run.ids.push(event.id);
          run.text += event.text;
        }
        return run;
      },
    };
  },

  async wllama(url, { threads, gpu }) {
    // Without it, it would compute on the CPU, and not say so.
    if (gpu && !(await navigator.gpu?.requestAdapter())?.features.has('shader-f16')) {
      throw new Error("llama.cpp's WebGPU backend needs shader-f16, which this adapter does not have");
    }
    const { Wllama, LoggerWithoutDebug } = await import('/node_modules/@wllama/wllama/esm/index.js');
    const said = [];
    const keep = (...words) => said.push(words.join(' '));
    const wllama = new Wllama({ default: '/node_modules/@wllama/wllama/esm/wasm/wllama.wasm' }, { logger: { ...LoggerWithoutDebug, debug: keep, log: keep, warn: keep } });
    await wllama.loadModelFromUrl(url, { n_ctx: CONTEXT, n_threads: threads, n_gpu_layers: gpu ? 99999 : 0 });
    return {
      about: {
        llama_cpp: Wllama.getLibllamaVersion(),
        threads: wllama.getNumThreads(),
        said: said.filter((line) => /backend|offload|webgpu|system_info|KV buffer|model buffer/i.test(line)),
      },
      async generate({ text: prompt }, tokens, wantIds) {
        const run = { prompt_tokens: 0, at: [], text: '' };
        const begun = performance.now();
        const onData = (chunk) => {
          const { text, logprobs } = chunk.choices[0];
          if (wantIds && logprobs) run.ids = [...(run.ids ?? []), ...logprobs.content.map(({ id }) => id)];
          // The last chunk has no token, but the times that llama.cpp took.
          if (chunk.timings?.predicted_n && chunk.choices[0].finish_reason) {
            run.prompt_tokens = chunk.timings.prompt_n;
            run.own = chunk.timings;
          } else run.at.push(performance.now() - begun);
          run.text += text;
        };
        await wllama.createCompletion({ prompt, max_tokens: tokens, temperature: 0, ignore_eos: true, cache_prompt: false, stream: true, onData, ...(wantIds ? { logprobs: 1 } : {}) });
        return run;
      },
    };
  },

  // Its ONNX file, which to_onnx.py makes, holds the same weights as f32.
  async transformers(_, { device, dtype, threads }) {
    const { AutoModelForCausalLM, BaseStreamer, Tensor, env } = await import('/node_modules/@huggingface/transformers/dist/transformers.min.js');
    Object.assign(env, { allowRemoteModels: false, allowLocalModels: true, localModelPath: '/onnx/', useBrowserCache: false });
    Object.assign(env.backends.onnx.wasm, { wasmPaths: '/node_modules/onnxruntime-web/dist/', numThreads: threads });
    const model = await AutoModelForCausalLM.from_pretrained('smollm2', { device, dtype });
    return {
      about: { version: env.version, device, dtype, threads },
      async generate({ ids }, tokens) {
        const run = { prompt_tokens: ids.length, at: [], ids: [], text: '' };
        const begun = performance.now();
        class Streamer extends BaseStreamer {
          prompt = true;
          put([values]) {
            // The first call has the prompt.
            if (!this.prompt) {
              run.at.push(performance.now() - begun);
              run.ids.push(...values.map(Number));
            }
            this.prompt = false;
          }
          end() {}
        }
        const input_ids = new Tensor('int64', BigInt64Array.from(ids, BigInt), [1, ids.length]);
        const attention_mask = new Tensor('int64', new BigInt64Array(ids.length).fill(1n), [1, ids.length]);
        await model.generate({ input_ids, attention_mask, max_new_tokens: tokens, min_new_tokens: tokens, do_sample: false, streamer: new Streamer() });
        return run;
      },
    };
  },
};

/** @type {Loaded} */
let loaded;
globalThis.bench = {
  /** Loads the model with an engine. */
  async load(engine, url, options) {
    const begun = performance.now();
    loaded = await ENGINES[engine](new URL(url, location.href).href, options);
    return { ms: performance.now() - begun, isolated: crossOriginIsolated, ...loaded.about };
  },
  generate: (prompt, tokens, wantIds = false) => loaded.generate(prompt, tokens, wantIds),
  encode: (text) => loaded.encode(text),
};

// The tests' server puts this before the first line of worker.js. Records what the browser's shader compiler (Tint,
// in Chromium) and its WebGPU implementation say about our work, so that a shader which only logs an error cannot
// pass.
globalThis.gpuWatch = { devices: 0, modules: 0, pipelines: 0, submits: 0, pending: 0, problems: [] };
if (globalThis.GPUAdapter) {
  const watch = globalThis.gpuWatch;
  const problem = (text) => watch.problems.push(text);
  const settle = (promise, look) => {
    watch.pending += 1;
    promise.then(look, (error) => problem(String(error))).finally(() => (watch.pending -= 1));
  };
  addEventListener('error', ({ message }) => problem(`exception: ${message}`));
  addEventListener('unhandledrejection', ({ reason }) => problem(`unhandled rejection: ${reason}`));
  /** Calls `after(result, self, args)` behind every call of a method. */
  const wrap = (type, method, after, before = () => {}) => {
    const original = type.prototype[method];
    type.prototype[method] = function (...args) {
      before(this);
      return after(original.apply(this, args), this, args);
    };
  };

  wrap(GPUAdapter, 'requestDevice', async (promise) => {
    const device = await promise;
    watch.devices += 1;
    device.addEventListener('uncapturederror', ({ error }) => problem(`uncaptured: ${error.message}`));
    device.lost.then(({ reason, message }) => reason !== 'destroyed' && problem(`device lost (${reason}): ${message}`));
    return device;
  });

  wrap(GPUDevice, 'createShaderModule', (module, _device, [{ code, label }]) => {
    watch.modules += 1;
    settle(module.getCompilationInfo(), ({ messages }) => {
      for (const { type, lineNum, linePos, message } of messages) {
        const line = code.split('\n')[lineNum - 1] ?? '';
        problem(`${type} in shader ${label ?? ''} ${lineNum}:${linePos}: ${message}\n    ${line.trim()}`);
      }
    });
    return module;
  });

  for (const method of ['createComputePipeline', 'createComputePipelineAsync']) {
    wrap(
      GPUDevice,
      method,
      (pipeline, device) => {
        watch.pipelines += 1;
        settle(device.popErrorScope(), (error) => error && problem(`pipeline: ${error.message}`));
        return pipeline;
      },
      (device) => device.pushErrorScope('validation'),
    );
  }

  wrap(GPUQueue, 'submit', (result) => {
    watch.submits += 1;
    return result;
  });
}

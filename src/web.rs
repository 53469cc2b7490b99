//! The browser's front-end: JavaScript → [`Engine`] → callbacks. `web/worker.js` calls it, and the page draws the
//! events.
//!
//! Requests and events are JSON text; [files](files) are in memory or read in pieces. A call that fails rejects with
//! the text of the [`Error`](crate::Error), which the page shows unchanged.
#![allow(unsafe_code, reason = "the linker defines one function, and wasm_bindgen writes code of its own")]
use crate::dtype::Dtype;
use std::cell::{OnceCell, RefCell};
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use js_sys::{Float32Array, Function, Object, Promise};
use serde::Deserialize;
use serde_json::{Value, json};
use wasm_bindgen::prelude::*;
use wasm_bindgen_futures::future_to_promise;

use crate::cache::CacheShape;
use crate::device::ComputeDevice;
use crate::engine::{Engine, Event, LoadOptions, PreparedModel, Rehearsal, Request, Resolved};
use crate::kernels::cases;
use crate::model::required;
use crate::report::events::{RunEvents, model_info, number};
use crate::report::html;
use crate::trace::Trace;
use crate::weights::precision::Precision;
use crate::weights::{ModelSource, Weights};
use crate::{Error, ErrorKind, Result, builtin, conformance as suite, quality};

mod files;

unsafe extern "C" {
    /// Defined by the linker. It runs the constructors of statics, by which cubecl registers its operations.
    fn __wasm_call_ctors();
}

#[wasm_bindgen(start)]
fn start() {
    // SAFETY: the linker defines it with this signature; this is the module's first code to run, and it runs once.
    //
    // Without a call to it somewhere, the linker takes the module for a command, which ends after one call, and has
    // *every* call from JavaScript run all constructors first: hundreds, a hundred times a token.
    unsafe { __wasm_call_ctors() };
    console_error_panic_hook::set_once();
    // cubecl logs a shader that the browser refuses and does nothing else: the log goes to the console.
    console_log::init_with_level(log::Level::Warn).ok();
}

/// The options of [`Secateur::load`].
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Load {
    /// Element type of the KV cache: `f16` (the default) or `f32`.
    kv: Option<String>,
    /// Positions to load for, as in [`LoadOptions`].
    context: Option<usize>,
    /// The precision to which weights are quantized as they are loaded: `q8`, `q6` or `q4`; by default the element
    /// types of the files.
    weights: Option<Precision>,
    /// The name of the model, for the page and the trace.
    name: Option<String>,
}

impl Load {
    fn options(&self) -> Result<LoadOptions> {
        let kv = self.kv.as_deref().map_or(Ok(LoadOptions::default().kv), Dtype::for_cache)?;
        Ok(LoadOptions { kv, context: self.context, weights: self.weights, ..LoadOptions::default() })
    }
}

/// A model whose weights have not been read yet, with what loading it would take.
#[wasm_bindgen]
pub struct Checked {
    need: Value,
    /// The rehearsal; `None` for a model whose shaders cannot be compiled without its weights.
    rehearsal: Option<Rc<Rehearsal>>,
    stop: Arc<AtomicBool>,
}

#[wasm_bindgen]
impl Checked {
    /// The numbers for a decision before the weights are read: `{weights_bytes, cache_bytes, context, architecture}`
    /// as JSON text. `cache_bytes` is the size of a cache that is full at all positions.
    pub fn need(&self) -> String {
        self.need.to_string()
    }

    /// Compiles the shaders that the model needs, by running a small model with weights of the same types. It may go
    /// on while the weights are fetched. It begins with the shaders of the first token, and ends at the next
    /// opportunity after [`stop`](Self::stop).
    pub fn rehearse(&self) -> Promise {
        let (rehearsal, stop) = (self.rehearsal.clone(), self.stop.clone());
        promise(async move {
            let stopped = || stop.load(Ordering::Relaxed);
            if let Some(rehearsal) = rehearsal.filter(|_| !stopped()) {
                let device = trusted_device().await?;
                rehearsal.run(&device, stopped).await?;
                device.burn.memory_cleanup();
            }
            Ok(Value::Null)
        })
    }

    /// Ends the rehearsal that is under way, and makes later ones do nothing.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// See [`Secateur::check`].
async fn check(source: &ModelSource, options: &Load) -> Result<Checked> {
    let load = options.options()?;
    let model = PreparedModel::new(source, "model", &load)?;
    let device = device().await?;
    // Memory that an earlier model has left would count against this one.
    device.burn.memory_cleanup();
    model.check_device(&device)?;
    let (config, context) = (model.config(), model.context());
    let weights = Weights::open(source)?;
    required::check(config, &weights, load.weights)?;
    required::check_expert_size(config, &weights, load.weights, &device)?;
    let need = json!({
        "weights_bytes": required::device_bytes(&weights, load.weights)?,
        "cache_bytes": CacheShape::new(config, load.kv, 1, 1)?.bytes_for(context),
        "context": context,
        "architecture": config.architecture.class_name(),
    });
    // If there is no rehearsal, the shaders are compiled later. Errors in the model are reported when it is loaded.
    let rehearsal = Rehearsal::new(&model, &weights).ok().flatten().map(Rc::new);
    Ok(Checked { need, rehearsal, stop: Arc::default() })
}

fn parse<'a, T: Deserialize<'a>>(options: &'a str) -> Result<T> {
    serde_json::from_str(options).map_err(|e| Error::new(ErrorKind::Input, "these options are not understood").found(e))
}

/// A model on this browser's GPU.
#[wasm_bindgen]
pub struct Secateur {
    /// `None` while a run is under way, so that `stop` and `info` still work.
    engine: Rc<RefCell<Option<Engine>>>,
    info: serde_json::Value,
    stop: Arc<AtomicBool>,
}

#[wasm_bindgen]
impl Secateur {
    /// Loads a model from its [files](files::source). `on_event` is called with
    /// `{type: "progress", what, done, total}`, with the parts of the model that are on the device, of all parts.
    pub async fn load(files: Object, options: String, on_event: Function) -> Result<Secateur, JsError> {
        let load = async { Secateur::from_source(&files::source(&files)?, parse(&options)?, "model", &on_event).await };
        load.await.map_err(|e| rejection(&e))
    }

    /// The resources that loading a model would take. Reads the small files and the headers of the weights.
    ///
    /// Rejects for a model that cannot be run on this browser's GPU, as [`load`](Self::load) would.
    pub async fn check(files: Object, options: String) -> Result<Checked, JsError> {
        let check = async { check(&files::source(&files)?, &parse(&options)?).await };
        check.await.map_err(|e| rejection(&e))
    }

    /// Loads the model that comes with secateur, from its files as in [`load`](Self::load).
    pub async fn builtin(files: Object, options: String, on_event: Function) -> Result<Secateur, JsError> {
        let load = async {
            let source = builtin::with_suggestions(files::source(&files)?);
            Secateur::from_source(&source, parse(&options)?, builtin::NAME, &on_event).await
        };
        let mut loaded = load.await.map_err(|e| rejection(&e))?;
        loaded.info["suggested"] = json!({"prompt": builtin::EXAMPLE});
        Ok(loaded)
    }

    /// The facts about the model that the page shows, as `model_info` in `src/report/events.rs` describes them, as
    /// JSON text. [`resolve`](Self::resolve) returns the model's settings.
    pub fn info(&self) -> String {
        self.info.to_string()
    }

    /// Resolves a request for this model, without running it: `{prompt, settings, notes}` as JSON text. `request` is
    /// a [`Request`](crate::engine::Request) as JSON.
    pub fn resolve(&self, request: String) -> Result<String, JsError> {
        let engine = self.engine.borrow();
        let resolved = engine.as_ref().ok_or_else(under_way).and_then(|engine| {
            let resolved = engine.resolve(&Request::from_json(&request)?)?;
            serde_json::to_string(&resolved).map_err(|e| Error::new(ErrorKind::Internal, "no JSON form").found(e))
        });
        resolved.map_err(|e| rejection(&e))
    }

    /// Generates what `request`, a [`Request`](crate::engine::Request) as JSON, asks for. `on_event` is called with
    /// the events that `src/report/events.rs` describes, each JSON text. If a run fails after it has begun, its last
    /// event is `partial`, and the promise then rejects.
    ///
    /// Resolves to the run's trace, JSON text.
    pub fn run(&self, request: String, on_event: Function) -> Promise {
        let slot = self.engine.clone();
        promise(async move {
            let request = Request::from_json(&request)?;
            let mut engine = slot.borrow_mut().take().ok_or_else(under_way)?;
            // A refused request leaves the engine unchanged.
            let result = match engine.resolve(&request) {
                Ok(resolved) => run(&mut engine, &resolved, &on_event).await,
                Err(e) => Err(e),
            };
            *slot.borrow_mut() = Some(engine);
            result
        })
    }

    /// The logits after each of the tokens `ids`, one row for each token. They serve to compare this device with
    /// another.
    pub fn logits(&self, ids: Vec<u32>) -> Promise {
        let slot = self.engine.clone();
        future_to_promise(async move {
            let engine = slot.borrow_mut().take().ok_or_else(|| rejection(&under_way()))?;
            let logits = quality::logits(engine.model(), &ids).await;
            *slot.borrow_mut() = Some(engine);
            logits.map(|values| Float32Array::from(&values[..]).into()).map_err(|e| rejection(&e).into())
        })
    }

    /// Forwards `ids` behind the prompt of `request` as if the model had written them, and prunes as the request
    /// says. The trace, which is JSON text, serves to compare the decisions of this device with those of another.
    pub fn follow(&self, request: String, ids: Vec<u32>) -> Promise {
        let slot = self.engine.clone();
        promise(async move {
            let request = Request::from_json(&request)?;
            let mut engine = slot.borrow_mut().take().ok_or_else(under_way)?;
            let trace = match engine.resolve(&request) {
                Ok(Resolved { prompt, settings, .. }) => engine.follow(&prompt, &settings, &ids).await,
                Err(e) => Err(e),
            };
            *slot.borrow_mut() = Some(engine);
            trace?.to_json().map(Value::String)
        })
    }

    /// Ends the run under way after the tokens already being computed.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Secateur {
    async fn from_source(source: &ModelSource, options: Load, name: &str, on_event: &Function) -> Result<Self> {
        let load = options.options()?;
        let device = trusted_device().await?;
        let name = options.name.as_deref().unwrap_or(name);
        let prepared = PreparedModel::new(source, name, &load)?;
        if prepared.config().experts.is_some() {
            suite::test_others(&device, || false).await?;
        }
        device.burn.memory_cleanup();
        let mut progress = |done: usize, total: usize| {
            let what = "Uploading the model to the GPU";
            send(on_event, &json!({"type": "progress", "what": what, "done": done, "total": total}));
        };
        let mut engine = prepared.load(source, &device, &mut progress)?;
        // The next message of a conversation repeats the earlier ones, so their cache is kept.
        engine.keep_prompts(256 << 20);
        let info = model_info(&engine, name, None);
        let stop = engine.stop_flag();
        Ok(Self { engine: Rc::new(RefCell::new(Some(engine))), info, stop })
    }
}

/// Opens the GPU. All other calls open it too, but two calls at the same time would open two devices.
#[wasm_bindgen]
pub async fn open_gpu() -> Result<(), JsError> {
    device().await.map(drop).map_err(|e| rejection(&e))
}

/// Tests the kernels of the first token on the GPU, once, before models are loaded. It may run while a model is
/// fetched. The other kernels are tested before anything relies on them.
#[wasm_bindgen]
pub async fn test_kernels() -> Result<(), JsError> {
    trusted_device().await.map(drop).map_err(|e| rejection(&e))
}

/// The report of one trace or two, as a page of its own. `traces` are pairs of a name and the text of a trace, as
/// JSON: `[["run", "{…}"]]`.
#[wasm_bindgen]
pub fn report(traces: String) -> Result<String, JsError> {
    let read = || {
        let traces: Vec<(String, String)> = parse(&traces)?;
        let traces = traces.into_iter().map(|(name, text)| Ok((name, Trace::from_json(&text)?)));
        html::page(&traces.collect::<Result<Vec<_>>>()?)
    };
    read().map_err(|e| rejection(&e))
}

/// Runs every kernel case on this browser's GPU. `on_event` is called with `{type: "case", kernel, done, total}`.
/// Resolves to `{backend, adapter, kernels: [{kernel, cases, worst_error, bound, passed, failures}], passed,
/// failed}`, JSON text, with `worst_error` as a fraction of the bound.
#[wasm_bindgen]
pub fn conformance(on_event: Function) -> Promise {
    promise(async move {
        let device = device().await?;
        let cases = cases::all();
        let report = suite::run(&device, &cases, |done, total| {
            let kernel = cases.get(done).map_or("", |case| case.kernel);
            send(&on_event, &json!({"type": "case", "kernel": kernel, "done": done, "total": total}));
        });
        let report = report.await?;
        let kernels = report.kernels.iter().map(|k| {
            json!({
                "kernel": k.kernel,
                "cases": k.cases,
                "worst_error": number(k.worst_of_bound),
                "bound": k.bounds.join(", "),
                "passed": k.failures.is_empty(),
                "failures": k.failures,
            })
        });
        Ok(json!({
            "backend": report.device.backend,
            "adapter": report.device.name,
            "kernels": kernels.collect::<Vec<_>>(),
            "passed": report.passed,
            "failed": report.failed,
        }))
    })
}

thread_local! {
    static DEVICE: OnceCell<ComputeDevice> = const { OnceCell::new() };
    static TRUSTED: OnceCell<()> = const { OnceCell::new() };
}

/// The browser's adapter, opened once.
async fn device() -> Result<ComputeDevice> {
    if let Some(device) = DEVICE.with(|d| d.get().cloned()) {
        return Ok(device);
    }
    let device = ComputeDevice::open("auto").await?;
    Ok(DEVICE.with(|d| d.get_or_init(|| device).clone()))
}

/// The adapter, after the kernels of the first token have passed a self-test on it once. If a browser miscompiles or
/// refuses a shader, the result is stale data without an error. Without this test, a broken driver would produce
/// nonsense.
async fn trusted_device() -> Result<ComputeDevice> {
    let device = device().await?;
    if TRUSTED.with(|t| t.get().is_none()) {
        suite::test_first(&device).await?;
        TRUSTED.with(|t| t.set(()).ok());
    }
    Ok(device)
}

async fn run(engine: &mut Engine, resolved: &Resolved, on_event: &Function) -> Result<Value> {
    let device = engine.model().device().clone();
    if resolved.settings.needs_other_kernels() {
        suite::test_others(&device, || false).await?;
    }
    let mut notes = resolved.notes.clone();
    notes.extend(engine.cache_note(&resolved.prompt, &resolved.settings)?);
    let mut events = RunEvents::new(notes);
    let mut on = |event: Event<'_>| {
        if let Some(event) = events.event(&event, &device) {
            send(on_event, &event);
        }
    };
    let result = engine.run(&resolved.prompt, &resolved.settings, &mut on).await?;
    for event in events.ending(&result) {
        send(on_event, &event);
    }
    match result.error {
        Some(e) => Err(e),
        None => result.trace.to_json().map(Value::String),
    }
}

/// Calls `on_event`. An exception in the callback is ignored, because it must not end a run.
fn send(on_event: &Function, event: &Value) {
    on_event.call1(&JsValue::NULL, &event.to_string().into()).ok();
}

/// Runs `work` as a promise of its own, so that no object that JavaScript owns stays borrowed meanwhile. Resolves to
/// JSON text, or to the text itself if `work` returns one.
fn promise(work: impl Future<Output = Result<Value>> + 'static) -> Promise {
    future_to_promise(async move {
        match work.await {
            Ok(Value::String(text)) => Ok(text.into()),
            Ok(value) => Ok(value.to_string().into()),
            Err(error) => Err(rejection(&error).into()),
        }
    })
}

fn under_way() -> Error {
    Error::new(ErrorKind::Input, "a run is under way").help("stop it, or wait until it is done")
}

fn rejection(error: &Error) -> JsError {
    JsError::new(&error.to_string())
}

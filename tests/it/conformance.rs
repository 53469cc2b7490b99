//! Every kernel case on every adapter of this machine, compared with the CPU twins. `SECATEUR_REQUIRE=cpu,llvmpipe`
//! names backends or parts of names; an adapter that is named and missing is a failure, so nothing passes because it
//! did not run.
use secateur::device::Tuning;
use secateur::device::{self, ComputeDevice, DeviceInfo as AdapterInfo};
use secateur::engine::{Engine, LoadOptions, PreparedModel, Rehearsal, RunResult};
use secateur::expert::conformance::{self, Report};
use secateur::expert::kernels::variant::hooks;
use secateur::expert::kernels::{cases, variants};
use secateur::expert::weights::Weights;
use secateur::expert::weights::precision::Precision;
use secateur::{ModelSource, Request, Result, builtin};

use crate::common::{beside_others_in_shared_pages, block_on, gpu};

#[test]
fn every_case_on_every_adapter() {
    let _one = beside_others_in_shared_pages();
    let cases = cases::all();
    assert!(cases.len() >= 90, "only {} cases", cases.len());
    // Compiling shaders takes most of the time, on one thread for each adapter.
    let one = |info: &AdapterInfo| -> Option<Report> {
        if let Some(reason) = info.unfit() {
            println!("SKIPPED {}: {reason}", info.line());
            return None;
        }
        // Some drivers list an adapter that they refuse to open, such as NVIDIA's OpenGL without a display. If it is
        // required, it counts as missing.
        let device = pollster::block_on(ComputeDevice::open_info(info));
        let device = device.inspect_err(|e| println!("SKIPPED {}: {e}", info.line())).ok()?;
        Some(pollster::block_on(conformance::run(&device, &cases, |_, _| ())).expect("readable"))
    };
    let infos = pollster::block_on(device::list());
    let reports: Vec<Report> = std::thread::scope(|scope| {
        let runs: Vec<_> = infos.iter().map(|info| scope.spawn(|| one(info))).collect();
        runs.into_iter().filter_map(|run| run.join().expect("no adapter panics")).collect()
    });
    println!("{}", conformance::table(&reports));
    let required = std::env::var("SECATEUR_REQUIRE").unwrap_or_default();
    assert_eq!(conformance::missing(&reports, required.split(',')), [""; 0], "required adapters are missing");
    for report in &reports {
        assert_eq!(report.passed + report.failed, cases.len(), "{}", report.device.line());
        assert_eq!(report.failed, 0, "{}: see the table", report.device.line());
        for kernel in &report.kernels {
            assert!(kernel.cases > 0 && kernel.outputs >= kernel.cases, "{} did not run", kernel.kernel);
        }
    }
}

/// The built-in model on a device of its own, whose kernels of the first token have been tested.
fn first_tested() -> Option<(ComputeDevice, Engine)> {
    let device = block_on(ComputeDevice::open_info(&gpu()?.info)).expect("it was opened before");
    let load = LoadOptions { context: Some(512), ..LoadOptions::default() };
    block_on(conformance::test_first(&device)).expect("the kernels are right");
    let engine = Engine::load(&builtin::source(), "built-in", &device, &load, &mut |_, _| ()).expect("it loads");
    Some((device, engine))
}

fn run(engine: &mut Engine, tokens: usize) -> Result<RunResult> {
    let request = Request {
        max_new_tokens: Some(tokens),
        probe_every: Some(8),
        window: Some(4),
        ignore_eos: Some(true),
        ..Request::prompting(builtin::EXAMPLE)
    };
    let resolved = engine.resolve(&request).expect("a good request");
    let result = block_on(engine.run(&resolved.prompt, &resolved.settings, &mut |_| ()))?;
    result.error.clone().map_or(Ok(result), Err)
}

/// In a browser, most of the time until the first token is spent on compiling shaders. So exactly the shaders that
/// the built-in model runs before a probe are tested before the first token.
#[test]
fn what_is_tested_first_is_what_the_built_in_model_runs() {
    let _one = beside_others_in_shared_pages();
    let Some((device, mut engine)) = first_tested() else { return };
    let (tested, of_test) = hooks::with(None, || block_on(conformance::test_first(&device)));
    tested.expect("the kernels are right");
    // Long enough for the cache to grow once.
    let request = Request {
        max_new_tokens: Some(16),
        ignore_eos: Some(true),
        policy: Some(secateur::policy::Full.into()),
        ..Request::prompting(builtin::EXAMPLE)
    };
    let resolved = engine.resolve(&request).expect("a good request");
    let (result, of_run) =
        hooks::with(None, || block_on(engine.run(&resolved.prompt, &resolved.settings, &mut |_| ())));
    result.expect("it runs");
    let needed = |variant| of_run.iter().any(|launch| launch.variant == variant);
    let unneeded: Vec<_> = of_test.iter().map(|l| &l.variant).filter(|v| !needed((*v).clone())).collect();
    assert!(unneeded.is_empty(), "{:?}", unneeded.iter().map(|v| (v.kernel, &v.constants)).collect::<Vec<_>>());
    assert!(of_test.len() >= 9, "only {} shaders were tested", of_test.len());
}

/// The shaders of a model are compiled before its weights are there: a small model with weights of the same types
/// launches every shader that a run of the model launches, including a run that is longer than a tile of attention.
#[test]
fn a_rehearsal_launches_what_the_model_launches() {
    let _one = beside_others_in_shared_pages();
    let Some(gpu) = gpu() else { return };
    for (folder, weights) in
        [("qwen2-bf16", None), ("qwen3-f32", Some(Precision::Q4)), ("phi3-long-f16", None), ("gguf-llama-q4", None)]
    {
        let path = format!("{}/tests/golden/{folder}", env!("CARGO_MANIFEST_DIR"));
        let gguf = format!("{path}/model.gguf");
        let path = if std::path::Path::new(&gguf).exists() { gguf } else { path };
        let source = ModelSource::open(&path).expect("committed");
        // Each run exceeds a tile of attention, which has 256 or 64 slots.
        for (tuning, prompt, tokens) in [(Tuning::CPU, 200, 70), (Tuning::GPU, 40, 50)] {
            let mut device = gpu.clone();
            device.tuning = tuning;
            let load = LoadOptions { context: Some(400), weights, ..LoadOptions::default() };
            let prepared = PreparedModel::new(&source, folder, &load).expect("a good model");
            let headers = Weights::open(&source).expect("a good model");
            let rehearsal = Rehearsal::new(&prepared, &headers).expect("a good model").expect("it has no experts");
            let (rehearsed, of_rehearsal) = hooks::with(None, || block_on(rehearsal.run(&device, || false)));
            rehearsed.expect("it runs");
            let mut engine = prepared.load(&source, &device, &mut |_, _| ()).expect("it loads");
            let request = Request {
                ids: Some(vec![3; prompt]),
                max_new_tokens: Some(tokens),
                probe_every: Some(20),
                ignore_eos: Some(true),
                ..Request::default()
            };
            let resolved = engine.resolve(&request).expect("a good request");
            let (result, of_run) =
                hooks::with(None, || block_on(engine.run(&resolved.prompt, &resolved.settings, &mut |_| ())));
            result.expect("it runs");
            let compiled = |variant| of_rehearsal.iter().any(|launch| launch.variant == variant);
            let later: Vec<_> = of_run.iter().map(|l| &l.variant).filter(|v| !compiled((*v).clone())).collect();
            let later: Vec<_> = later.iter().map(|v| (v.kernel, &v.constants)).collect();
            assert!(later.is_empty(), "{folder}, {tuning:?}: {later:?}");
            assert!(of_run.len() >= 9, "{folder}: only {} shaders ran", of_run.len());
        }
    }
}

/// A kernel whose test was put off is tested before a run relies on it. If its results are wrong, the error names it,
/// and the next run tests it again.
#[test]
fn what_was_put_off_is_tested_before_the_first_probe() {
    let _one = beside_others_in_shared_pages();
    let Some((device, mut engine)) = first_tested() else { return };
    assert!(!block_on(conformance::test_others(&device, || true)).expect("nothing was tested"), "nothing was put off");
    let text = variants().into_iter().find(|v| v.kernel == "attention_row").expect("listed").text;
    let wrong = text.replace("exp(dots[j] - lse[", "exp(dots[j] - 0.0 * lse[");
    assert_ne!(wrong, text, "attention_row.wgsl has changed");
    let (failed, _) = hooks::with(Some(("attention_row", wrong)), || run(&mut engine, 24));
    let Err(error) = failed else { panic!("the run relied on a wrong kernel") };
    let error = error.to_string();
    assert!(error.contains("wrong results in attention_row"), "{error}");
    // A run that needs no probe still runs.
    run(&mut engine, 4).expect("it runs");
    assert!(!block_on(conformance::test_others(&device, || true)).expect("nothing was tested"), "tested too early");
    let result = run(&mut engine, 24).expect("it runs");
    assert!(!result.trace.probes.is_empty(), "there was no probe");
    assert!(block_on(conformance::test_others(&device, || true)).expect("nothing was tested"), "not all were tested");
}

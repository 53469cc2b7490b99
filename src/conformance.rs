//! Conformance of a device: runs every kernel case on it and compares the outputs with the CPU twins.
use std::collections::{HashMap, HashSet};

use serde::Serialize;

use crate::device::{ComputeDevice, DeviceInfo, Tuning};
use crate::dtype::Dtype;
use crate::kernels::cases::{self, Bound, Case};
use crate::kernels::{KERNELS, Mode, memory};
use crate::{Error, ErrorKind, Result};

/// The result of one kernel's cases on one device.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct KernelResult {
    /// Name of the kernel.
    pub kernel: &'static str,
    /// Number of cases that ran.
    pub cases: usize,
    /// Number of outputs that were compared.
    pub outputs: usize,
    /// The largest error of any output, as a fraction of its bound.
    pub worst_of_bound: f64,
    /// The bounds of its outputs, as text.
    pub bounds: Vec<String>,
    /// Each failure with case, output and place.
    pub failures: Vec<String>,
}

/// The results of all cases on one device.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// The device that ran them.
    pub device: DeviceInfo,
    /// One entry for each kernel, in the order of the cases.
    pub kernels: Vec<KernelResult>,
    /// Cases that passed.
    pub passed: usize,
    /// Cases that failed.
    pub failed: usize,
}

impl Report {
    fn new(device: DeviceInfo) -> Self {
        Self { device, kernels: Vec::new(), passed: 0, failed: 0 }
    }

    fn entry(&mut self, kernel: &'static str) -> &mut KernelResult {
        if self.kernels.last().is_none_or(|k| k.kernel != kernel) {
            self.kernels.push(KernelResult {
                kernel,
                cases: 0,
                outputs: 0,
                worst_of_bound: 0.0,
                bounds: Vec::new(),
                failures: Vec::new(),
            });
        }
        self.kernels.last_mut().expect("just pushed")
    }
}

/// A bound as text.
fn bound_text(bound: Bound) -> String {
    match bound {
        Bound::Exact => "exact".into(),
        Bound::Absolute(v) => format!("{v:.1e} absolute"),
        Bound::Relative(v) => format!("{v:.1e} of the row's largest"),
        Bound::RelativeSum { factor, .. } => format!("{factor:.1e}·√cols of the row's largest"),
        Bound::Mixed(v) | Bound::FloatWords(v) => format!("{v:.1e} of 1+|x|"),
        Bound::HalfUlps(n) => format!("{n} half ulp"),
    }
}

/// Runs `cases` on `device` and compares every output with that of the twin. Calls `progress(cases done, cases in
/// all)`.
///
/// # Errors
/// When the device cannot be read. A wrong result is no error: the report contains it.
pub async fn run(device: &ComputeDevice, cases: &[Case], mut progress: impl FnMut(usize, usize)) -> Result<Report> {
    let cpu = ComputeDevice::cpu();
    let mut report = Report::new(device.info.clone());
    for (done, case) in cases.iter().enumerate() {
        progress(done, cases.len());
        let expected = case.run(&cpu.burn);
        memory::poison_outputs(true);
        let found = case.run(&device.burn);
        memory::poison_outputs(false);
        let mut failures = Vec::new();
        let (mut worst, mut bounds) = (0f64, Vec::new());
        if expected.is_empty() || expected.len() != found.len() {
            return Err(Error::new(ErrorKind::Internal, "a conformance case compares no outputs").at(&case.name));
        }
        for (want, got) in expected.iter().zip(&found) {
            let (want_words, got_words) = (want.read().await?, got.read().await?);
            match cases::compare(&want_words, &got_words, want.row, want.bound) {
                Ok(error) => worst = worst.max(error),
                Err(what) => failures.push(format!("{}, {}: {what}", case.name, want.name)),
            }
            bounds.push(format!("{} {}", want.name, bound_text(want.bound)));
        }
        *if failures.is_empty() { &mut report.passed } else { &mut report.failed } += 1;
        let entry = report.entry(case.kernel);
        entry.cases += 1;
        entry.outputs += found.len();
        entry.worst_of_bound = entry.worst_of_bound.max(worst);
        entry.failures.extend(failures);
        for bound in bounds {
            if !entry.bounds.contains(&bound) {
                entry.bounds.push(bound);
            }
        }
    }
    progress(cases.len(), cases.len());
    Ok(report)
}

/// The `required` names that match no report. A name is `cpu`, a backend, `lavapipe`, or a part of an adapter's name.
/// A missing name means that the run has failed: a device must not pass because it did not run.
pub fn missing<'a>(reports: &[Report], required: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let adapter = |name: &str| if name == "lavapipe" { "llvmpipe" } else { name }.to_string();
    let ran = |name: &str| reports.iter().any(|r| r.passed + r.failed > 0 && r.device.matches(&adapter(name)));
    required.into_iter().map(str::trim).filter(|n| !n.is_empty() && !ran(n)).map(String::from).collect()
}

/// The kernels that compute the first token of a model without experts, and the one that moves the cache as it grows.
const FIRST: [&str; 9] =
    ["embed", "matvec", "matmul", "rms_norm", "rope_append", "attention", "cache_gather", "top_k", "sample"];

/// The element types of most models. For these, every way in which a product writes its output is tested. To test
/// every way for all types would take three times as long, because more shaders are compiled.
const USUAL: [Dtype; 6] = [Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::Q8_0, Dtype::Q4K, Dtype::Q6K];

/// Which kernels a [`self_test`] runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SelfTest {
    /// One case of each kernel that computes the first token of a model without experts, and of each way in which
    /// products write their output there.
    FirstToken,
    /// One case of this kernel, and of each way in which it writes its output.
    Kernel(&'static str),
    /// One case of each kernel, usual element type and way in which products write their output. Each of the other
    /// element types has one case of each kernel; the ways of writing take turns from type to type.
    ElementTypes,
}

impl SelfTest {
    /// The cases for a device of this tuning. If several would do, preferred is the one that normalises its input if
    /// models do so on this device, then the one tiled for the device, then the one with the element types of most
    /// models: bf16 for weights and f16 for the cache. Compiling a shader takes long, and the model probably needs the
    /// shader of such a case as well.
    pub fn cases(self, tuning: Tuning) -> Vec<Case> {
        // The name of a case begins with its element type, if it has one.
        let dtype = |case: &Case| case.name.split(' ').next().unwrap_or_default().to_string();
        let rank = |case: &Case| {
            // A product that adds reads the output of attention or SwiGLU, which is never normalised.
            let normed = tuning.norm_in_product && case.mode != Some(Mode::Add);
            let tiling = case.tiled_for.map_or(1, |tiled| if tiled == tuning.kind { 0 } else { 2 });
            let usual = ["BF16", "F16"].iter().position(|usual| *usual == dtype(case)).unwrap_or(2);
            (case.normed != normed, tiling, usual)
        };
        let wanted = |name: &str| match self {
            Self::FirstToken => FIRST.contains(&name),
            Self::Kernel(kernel) => name == kernel,
            Self::ElementTypes => true,
        };
        let mut all = Vec::new();
        for kernel in KERNELS.iter().filter(|kernel| wanted(kernel.name)) {
            let mut cases = (kernel.cases)();
            cases.sort_by_key(rank);
            if self != Self::ElementTypes {
                let mut seen = HashSet::new();
                // Gate and up of different types are rare.
                let needed = |case: &Case| self != Self::FirstToken || case.mode != Some(Mode::Gated);
                cases.retain(|case| needed(case) && seen.insert(case.mode));
                all.extend(cases);
                continue;
            }
            let mut modes: HashMap<String, Vec<Option<Mode>>> = HashMap::new();
            cases.retain(|case| {
                let seen = modes.entry(dtype(case)).or_default();
                let is_new = !seen.contains(&case.mode);
                seen.extend(is_new.then_some(case.mode));
                is_new
            });
            cases.retain(|case| {
                let name = dtype(case);
                let turn = Dtype::ALL.iter().position(|dtype| format!("{dtype:?}") == name).unwrap_or(0);
                let modes = &modes[&name];
                USUAL.iter().any(|usual| format!("{usual:?}") == name) || case.mode == modes[turn % modes.len()]
            });
            all.extend(cases);
        }
        all
    }
}

/// Runs a small part of the cases. Some devices do not report that a kernel failed to compile (in browsers, cubecl
/// only logs it), and some drivers compile wrongly, so this should run before a device is relied on. `progress` is
/// called with the number of cases done and of all cases.
///
/// # Errors
/// [`ErrorKind::Device`] when a kernel computes wrong results, with the kernels and the first wrong value.
pub async fn self_test(device: &ComputeDevice, what: SelfTest, progress: impl FnMut(usize, usize)) -> Result<()> {
    let report = run(device, &what.cases(device.tuning), progress).await?;
    let failures: Vec<&str> = report.kernels.iter().flat_map(|k| &k.failures).map(String::as_str).collect();
    if failures.is_empty() {
        return Ok(());
    }
    let wrong: Vec<&str> = report.kernels.iter().filter(|k| !k.failures.is_empty()).map(|k| k.kernel).collect();
    Err(Error::new(ErrorKind::Device, format!("this adapter computes wrong results in {}", wrong.join(", ")))
        .at(device.info.line())
        .found(failures[0])
        .help("update the graphics driver or the browser; please report the output of a conformance run"))
}

/// Tests the kernels that compute the first token of a model without experts, and puts off the test of the others
/// until the first probe. The caller must call [`test_others`] earlier for a model with experts, and for settings that
/// need others of them (`Settings::needs_other_kernels`). Putting off the tests shortens the time until the first token
/// where compiling a shader takes long.
///
/// # Errors
/// Those of [`self_test`].
pub async fn test_first(device: &ComputeDevice) -> Result<()> {
    self_test(device, SelfTest::FirstToken, |_, _| ()).await?;
    *device.untested() = KERNELS.iter().map(|kernel| kernel.name).filter(|name| !FIRST.contains(name)).collect();
    Ok(())
}

/// Tests the kernels whose test was put off, one after the other, until `stop` returns true. Returns whether all have
/// been tested. A later call continues where this one ended.
///
/// # Errors
/// Those of [`self_test`]. The kernel that failed is tested again by the next call.
pub async fn test_others(device: &ComputeDevice, stop: impl Fn() -> bool) -> Result<bool> {
    loop {
        let Some(kernel) = device.untested().first().copied() else { return Ok(true) };
        if stop() {
            return Ok(false);
        }
        self_test(device, SelfTest::Kernel(kernel), |_, _| ()).await?;
        device.untested().retain(|other| *other != kernel);
    }
}

/// A table as text. Rows are kernels, columns are devices; a cell has the number of cases and the largest error as a
/// fraction of its bound.
pub fn table(reports: &[Report]) -> String {
    let Some(first) = reports.first() else { return String::new() };
    let mut rows = vec![vec!["kernel".to_string(), "bounds".to_string()]];
    rows[0].extend(reports.iter().map(|r| format!("{} [{}]", r.device.name, r.device.backend)));
    for (i, kernel) in first.kernels.iter().enumerate() {
        let mut row = vec![kernel.kernel.to_string(), kernel.bounds.join(", ")];
        for report in reports {
            row.push(report.kernels.get(i).map_or("did not run".into(), |k| match k.failures.len() {
                0 => format!("{} cases, worst {:.3}", k.cases, k.worst_of_bound),
                n => format!("{n} of {} FAIL", k.cases),
            }));
        }
        rows.push(row);
    }
    let mut row = vec!["total".to_string(), String::new()];
    row.extend(reports.iter().map(|r| format!("{} passed, {} failed", r.passed, r.failed)));
    rows.push(row);
    let mut out = crate::table::aligned(&rows);
    for failure in reports.iter().flat_map(|r| r.kernels.iter().flat_map(|k| &k.failures)).take(20) {
        out.push_str(&format!("FAIL {failure}\n"));
    }
    out
}

/// Translates shader variants for every graphics API.
#[cfg(not(target_family = "wasm"))]
pub mod shaders {
    use serde::Serialize;

    use crate::kernels::variant::{Variant, launched_variants};

    /// The result of translating the shader variants that were launched.
    #[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
    pub struct Translations {
        /// Number of variants that naga validated and translated to SPIR-V, MSL, HLSL and GLSL.
        pub translated: usize,
        /// Each variant that naga refused: kernel, constants, message.
        pub failures: Vec<String>,
    }

    /// Translates every variant that this process has launched.
    pub fn translate_launched() -> Translations {
        let mut all = Translations::default();
        for variant in launched_variants() {
            match translate(&variant) {
                Ok(_) => all.translated += 1,
                Err(e) => all.failures.push(format!("{} {:?}: {e}", variant.kernel, variant.constants)),
            }
        }
        all
    }

    /// The capabilities that shaders may use: core WGSL. naga requires a capability for `unpack2x16float`, which is
    /// part of core WebGPU.
    pub const CAPABILITIES: naga::valid::Capabilities = naga::valid::Capabilities::SHADER_FLOAT16_IN_FLOAT32;

    /// Validates a variant with naga and translates it to SPIR-V, MSL, HLSL and GLSL (ES 3.1), as wgpu does on the
    /// respective platforms. Returns the sizes of the four in bytes.
    ///
    /// # Errors
    /// The message of the first step that fails.
    pub fn translate(variant: &Variant) -> std::result::Result<[usize; 4], String> {
        use naga::back;
        use naga::valid::{ValidationFlags, Validator};
        let text = variant.source();
        let module = naga::front::wgsl::parse_str(&text).map_err(|e| e.emit_to_string(&text))?;
        let mut validator = Validator::new(ValidationFlags::all(), CAPABILITIES);
        let info = validator.validate(&module).map_err(|e| e.emit_to_string(&text))?;
        let say = |what: &str, e: &dyn std::fmt::Debug| format!("{what}: {e:?}");
        let spv = back::spv::write_vec(&module, &info, &back::spv::Options::default(), None)
            .map_err(|e| say("SPIR-V", &e))?;
        let (msl, _) = back::msl::write_string(
            &module,
            &info,
            &back::msl::Options { lang_version: (2, 0), fake_missing_bindings: true, ..Default::default() },
            &back::msl::PipelineOptions::default(),
        )
        .map_err(|e| say("MSL", &e))?;
        let mut hlsl = String::new();
        let options = back::hlsl::Options { fake_missing_bindings: true, ..Default::default() };
        back::hlsl::Writer::new(&mut hlsl, &options, &back::hlsl::PipelineOptions::default())
            .write(&module, &info, None)
            .map_err(|e| say("HLSL", &e))?;
        let mut glsl = String::new();
        let options = back::glsl::Options {
            version: back::glsl::Version::Embedded { version: 310, is_webgl: false },
            ..Default::default()
        };
        let pipeline = back::glsl::PipelineOptions {
            shader_stage: naga::ShaderStage::Compute,
            entry_point: "main".into(),
            multiview: None,
        };
        back::glsl::Writer::new(&mut glsl, &module, &info, &options, &pipeline, Default::default())
            .and_then(|mut w| w.write())
            .map_err(|e| say("GLSL", &e))?;
        Ok([spv.len() * 4, msl.len(), hlsl.len(), glsl.len()])
    }
}

//! Finding and opening a compute device: a GPU through wgpu, or burn's CPU backend with the twins.
#[cfg(not(target_family = "wasm"))]
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
#[cfg(not(target_family = "wasm"))]
use std::sync::{OnceLock, Weak};

use burn::tensor::Device;
use burn::tensor::wgpu::{MemoryConfiguration, WgpuSetup, wgpu};
use serde::{Deserialize, Serialize};

use crate::{Error, ErrorKind, Result};

/// The names and limits of a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DeviceInfo {
    /// The adapter's name as its driver gives it; `CPU twin` for the reference backend.
    pub name: String,
    /// `vulkan`, `metal`, `dx12`, `gl`, `webgpu` or `cpu`.
    pub backend: String,
    /// `discrete`, `integrated`, `virtual`, `software` or `unknown`.
    pub kind: String,
    /// The driver and its version; empty if the platform does not report them, as in browsers.
    pub driver: String,
    /// The largest buffer that a shader can bind, in bytes. It bounds a weight shard and a layer's cache.
    pub max_binding_bytes: u64,
    /// Bytes of the memory of a GPU, of all its heaps together; `None` where the graphics API does not report them
    /// (every API except Vulkan). Less may be free.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Storage buffers a shader may bind.
    pub max_storage_buffers: u32,
    /// Workgroup memory in bytes.
    pub workgroup_memory: u32,
    /// Invocations of a workgroup.
    pub max_invocations: u32,
}

impl DeviceInfo {
    fn cpu() -> Self {
        Self {
            name: "CPU twin".into(),
            backend: "cpu".into(),
            kind: "software".into(),
            driver: "burn-flex".into(),
            max_binding_bytes: u64::MAX,
            memory_bytes: None,
            max_storage_buffers: u32::MAX,
            workgroup_memory: u32::MAX,
            max_invocations: u32::MAX,
        }
    }

    fn from_adapter(adapter: &wgpu::Adapter) -> Self {
        let (info, limits) = (adapter.get_info(), adapter.limits());
        Self {
            name: if info.name.is_empty() { "unnamed adapter".into() } else { info.name },
            backend: backend_name(info.backend).into(),
            kind: match info.device_type {
                wgpu::DeviceType::DiscreteGpu => "discrete",
                wgpu::DeviceType::IntegratedGpu => "integrated",
                wgpu::DeviceType::VirtualGpu => "virtual",
                wgpu::DeviceType::Cpu => "software",
                wgpu::DeviceType::Other => "unknown",
            }
            .into(),
            driver: [info.driver, info.driver_info].join(" ").trim().into(),
            max_binding_bytes: limits.max_storage_buffer_binding_size.min(limits.max_buffer_size),
            // Adapters that are not discrete GPUs also use the memory of the machine, so the size of their own heaps
            // is not a limit.
            memory_bytes: heap_bytes(adapter).filter(|_| info.device_type == wgpu::DeviceType::DiscreteGpu),
            max_storage_buffers: limits.max_storage_buffers_per_shader_stage,
            workgroup_memory: limits.max_compute_workgroup_storage_size,
            max_invocations: limits.max_compute_invocations_per_workgroup,
        }
    }

    /// The reason why this adapter cannot run the kernels, which need the WebGPU baseline; `None` if it can.
    pub fn unfit(&self) -> Option<String> {
        let needs = [
            ("storage buffers a shader", self.max_storage_buffers, 6),
            ("invocations a workgroup", self.max_invocations, 256),
            ("bytes of workgroup memory", self.workgroup_memory, 16_384),
        ];
        let lacking = needs.iter().find(|(_, has, wants)| has < wants);
        lacking.map(|(what, has, wants)| format!("offers {has} {what}, {wants} are needed"))
    }

    /// A warning for a user who asked for a GPU (`auto`) and got a software adapter, which computes on the CPU.
    /// `None` for a GPU.
    pub fn software_warning(&self) -> Option<String> {
        let adapter = self.kind == "software" && self.backend != "cpu";
        adapter.then(|| {
            let name = self.name.split(" (").next().unwrap_or(&self.name);
            format!(
                "no GPU was found; {name} computes on the CPU, which is slow. If there is a GPU, install its driver."
            )
        })
    }

    /// The most launches that are submitted to the device at once. On a slow GPU that also draws the screen, one
    /// submission must not take long: Windows resets a GPU that has worked on one submission for two seconds, and a
    /// prompt's chunk has some hundreds of launches. 32 is the number that cubecl chooses where nothing is known of
    /// the device.
    fn most_in_a_submission(&self) -> usize {
        if self.kind == "integrated" { 32 } else { 512 }
    }

    /// One line: `name (backend, kind, driver)`.
    pub fn line(&self) -> String {
        let parts = [&self.backend, &self.kind, &self.driver];
        let parts: Vec<&str> = parts.iter().map(|s| s.as_str()).filter(|s| !s.is_empty()).collect();
        format!("{} ({})", self.name, parts.join(", "))
    }

    /// The same description with the browser's name of the adapter. wgpu leaves that name out, and most browsers
    /// report nothing else.
    #[cfg(target_family = "wasm")]
    fn named_by(mut self, device: &wgpu::Device) -> Self {
        let get = |of: &js_sys::wasm_bindgen::JsValue, key: &str| js_sys::Reflect::get(of, &key.into()).ok();
        let Some(info) = device.as_webgpu().and_then(|d| get(d.as_ref(), "adapterInfo")) else { return self };
        let parts = ["vendor", "architecture", "device", "description"].map(|key| get(&info, key)?.as_string());
        let parts: Vec<String> = parts.into_iter().flatten().filter(|part| !part.is_empty()).collect();
        if !parts.is_empty() {
            self.name = parts.join(" ");
        }
        if self.name.contains("swiftshader") {
            self.kind = "software".into();
        }
        self
    }

    /// The order of preference, lowest first. OpenGL comes after the APIs made for compute.
    fn rank(&self) -> (usize, bool) {
        let kinds = ["discrete", "integrated", "virtual", "unknown", "software"];
        (kinds.iter().position(|k| *k == self.kind).unwrap_or(kinds.len()), self.backend == "gl")
    }

    /// Whether `select` names this device: `auto`, its backend, or a part of its name in any case.
    pub fn matches(&self, select: &str) -> bool {
        let part = !select.is_empty() && self.name.to_lowercase().contains(&select.to_lowercase());
        select == "auto" || self.backend == select || part
    }
}

/// The size of the device-local heaps in bytes, as Vulkan reports it.
#[cfg(any(target_os = "linux", target_os = "windows", target_os = "android", target_os = "freebsd"))]
#[allow(unsafe_code, reason = "wgpu does not tell the sizes of the heaps, so Vulkan is asked")]
fn heap_bytes(adapter: &wgpu::Adapter) -> Option<u64> {
    /// `VK_MEMORY_HEAP_DEVICE_LOCAL_BIT`.
    const DEVICE_LOCAL: u32 = 1;
    // SAFETY: the adapter is only asked for a property, and the guard lives until the answer has been read.
    let heaps = unsafe {
        let vulkan = adapter.as_hal::<wgpu::hal::api::Vulkan>()?;
        let instance = vulkan.shared_instance().raw_instance();
        instance.get_physical_device_memory_properties(vulkan.raw_physical_device())
    };
    let count = (heaps.memory_heap_count as usize).min(heaps.memory_heaps.len());
    let own = heaps.memory_heaps[..count].iter().filter(|heap| heap.flags.as_raw() & DEVICE_LOCAL != 0);
    Some(own.map(|heap| heap.size).sum()).filter(|bytes| *bytes > 0)
}

/// Other graphics APIs do not report the size.
#[cfg(not(any(target_os = "linux", target_os = "windows", target_os = "android", target_os = "freebsd")))]
fn heap_bytes(_: &wgpu::Adapter) -> Option<u64> {
    None
}

fn backend_name(backend: wgpu::Backend) -> &'static str {
    match backend {
        wgpu::Backend::Vulkan => "vulkan",
        wgpu::Backend::Metal => "metal",
        wgpu::Backend::Dx12 => "dx12",
        wgpu::Backend::Gl => "gl",
        wgpu::Backend::BrowserWebGpu => "webgpu",
        wgpu::Backend::Noop => "noop",
    }
}

/// Bytes that the device's allocator reports.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceBytes {
    /// Bytes of live tensors.
    pub in_use: u64,
    /// Bytes taken from the driver: at least `in_use`, plus pages held for reuse.
    pub reserved: u64,
}

/// What executes a device's invocations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProcessorKind {
    /// A software adapter: an invocation is a lane of a CPU's vector unit. Burn's CPU backend counts as one.
    Cpu,
    /// A GPU: an invocation is a hardware thread.
    Gpu,
}

/// How kernels are tiled for a device. It changes nothing in the results of a kernel except the order of sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tuning {
    /// Chooses between tilings made for CPUs and for GPUs.
    pub kind: ProcessorKind,
    /// Invocations that share a row of weights in `matvec`: a power of two, at most 64.
    pub matvec_lanes: u32,
    /// Whether `matvec` normalises the rows of the residual stream that it reads. Otherwise `rms_norm` is launched
    /// before it. The results differ in their last bits only.
    pub norm_in_product: bool,
}

impl Tuning {
    /// For software adapters; 8 lanes were the fastest on lavapipe. There, the sums of squares of all workgroups take
    /// longer than a launch.
    pub const CPU: Self = Self { kind: ProcessorKind::Cpu, matvec_lanes: 8, norm_in_product: false };
    /// For GPUs: the lanes of a subgroup share a row. Norms in products would spare launches, but each workgroup would
    /// read the row and the weights of the norm once more, which is much beside quantized weights. They are off until a
    /// GPU has been measured (`cargo bench --bench decode` compares both).
    pub const GPU: Self = Self { kind: ProcessorKind::Gpu, matvec_lanes: 32, norm_in_product: false };

    /// Whether invocations are lanes of a CPU's vector unit.
    pub fn is_cpu(self) -> bool {
        self.kind == ProcessorKind::Cpu
    }
}

/// An opened device.
#[derive(Debug, Clone)]
pub struct ComputeDevice {
    /// Burn's handle, on which tensors are created.
    pub burn: Device,
    /// Its name and limits.
    pub info: DeviceInfo,
    /// How kernels are tiled for it.
    pub tuning: Tuning,
    /// Kernels whose test was put off ([`conformance::test_first`](crate::conformance::test_first)).
    untested: Arc<Mutex<Vec<&'static str>>>,
    /// The first error that the graphics library reported, such as a lack of memory. It arrives on another thread,
    /// long after the call that led to it.
    #[cfg(not(target_family = "wasm"))]
    fault: Arc<OnceLock<String>>,
    /// For tests: loses the device while it is at work.
    #[cfg(not(target_family = "wasm"))]
    loss: Option<Arc<Loss>>,
    /// The queue of a GPU, to count what is submitted to it.
    #[cfg(not(target_family = "wasm"))]
    queue: Option<wgpu::Queue>,
}

/// Destroys a device after a number of decode steps: `SECATEUR_LOSE_DEVICE=N`. Tests use it for what happens when a
/// driver restarts or a card is removed. Only the first device of a process is lost, so that the next one can be
/// used.
#[cfg(not(target_family = "wasm"))]
#[derive(Debug)]
struct Loss {
    device: wgpu::Device,
    steps: AtomicU64,
}

#[cfg(not(target_family = "wasm"))]
impl Loss {
    fn from_env(device: &wgpu::Device) -> Option<Arc<Self>> {
        static FIRST: AtomicBool = AtomicBool::new(true);
        let steps = std::env::var("SECATEUR_LOSE_DEVICE").ok()?.parse().ok()?;
        if !FIRST.swap(false, Ordering::Relaxed) {
            return None;
        }
        Some(Arc::new(Self { device: device.clone(), steps: AtomicU64::new(steps) }))
    }
}

impl ComputeDevice {
    /// The reference backend: every kernel's twin, in f64, on one core. It is slow and exact, and needs no driver.
    pub fn cpu() -> Self {
        Self {
            burn: Device::flex(),
            info: DeviceInfo::cpu(),
            tuning: Tuning::CPU,
            untested: Arc::default(),
            #[cfg(not(target_family = "wasm"))]
            fault: Arc::default(),
            #[cfg(not(target_family = "wasm"))]
            loss: None,
            #[cfg(not(target_family = "wasm"))]
            queue: None,
        }
    }

    /// Opens the device that `select` names: `auto` (the best adapter), `cpu` (the twins), a backend (`vulkan`,
    /// `metal`, `dx12`, `gl`, `webgpu`), a part of an adapter's name, or an index in [`list`].
    ///
    /// OpenGL is opened if `select` names it or is an index, or if no other API offers an adapter that matches and
    /// can run the kernels. For `auto` it is also opened where the best such adapter is a software one, so that
    /// `auto` finds a GPU whose only driver is OpenGL.
    ///
    /// # Errors
    /// If there is no adapter, none matches, or the adapter cannot run the kernels. The message lists the adapters.
    pub async fn open(select: &str) -> Result<Self> {
        if select == "cpu" {
            return Ok(Self::cpu());
        }
        let index: Option<usize> = select.parse().ok();
        let mut found = match (select, index) {
            ("gl", _) => adapters(wgpu::Backends::GL).await,
            (_, Some(_)) => all_adapters().await,
            _ => adapters(without_gl()).await,
        };
        if let Some(index) = index {
            // The CPU comes last in the list. A larger number may still be a part of a name.
            if index == found.len() {
                return Ok(Self::cpu());
            } else if index < found.len() {
                return Self::from_adapter(found.swap_remove(index)).await;
            }
        }
        let fits = |a: &Found| a.info.matches(select) && a.info.unfit().is_none();
        let best = found.iter().find(|a| fits(a)).map(|a| &a.info);
        if select != "gl" && index.is_none() && wants_gl(select, best) {
            found.extend(adapters(wgpu::Backends::GL).await);
            found.sort_by_key(|a| a.info.rank());
        }
        if found.is_empty() {
            return Err(no_adapter());
        }
        let Some(best) = found.iter().position(fits).or_else(|| found.iter().position(|a| a.info.matches(select)))
        else {
            let names: Vec<String> = found.iter().map(|a| a.info.line()).collect();
            return Err(Error::new(ErrorKind::Device, format!("no adapter matches {select:?}"))
                .at("`device`")
                .expected("auto, cpu, vulkan, metal, dx12, gl, a part of an adapter's name, or its index in the list of devices")
                .found(names.join("; "))
                .help("`secateur devices` lists the devices of this machine"));
        };
        let best = found.swap_remove(best);
        if select == "auto"
            && let Some(warning) = best.info.software_warning()
        {
            log::warn!("{warning}");
        }
        Self::from_adapter(best).await
    }

    /// Opens the device that [`list`] described: the adapter of this name and backend, since a machine may offer one
    /// card under several backends. Of several adapters of one name and backend, the first is opened.
    ///
    /// # Errors
    /// If the adapter is no longer present, or cannot run the kernels.
    pub async fn open_info(wanted: &DeviceInfo) -> Result<Self> {
        if wanted.backend == "cpu" {
            return Ok(Self::cpu());
        }
        let backends = if wanted.backend == "gl" { wgpu::Backends::GL } else { without_gl() };
        let found = adapters(backends).await;
        match found.into_iter().find(|a| a.info.name == wanted.name && a.info.backend == wanted.backend) {
            Some(adapter) => Self::from_adapter(adapter).await,
            None => Err(Error::new(ErrorKind::Device, "the adapter is no longer present").at(wanted.line())),
        }
    }

    async fn from_adapter(Found { info, adapter, instance }: Found) -> Result<Self> {
        if let Some(reason) = info.unfit() {
            return Err(Error::new(ErrorKind::Device, "the adapter cannot run the kernels")
                .at(info.line())
                .found(reason)
                .help("choose another `device`, or `device` cpu"));
        }
        let failed = |e: &dyn std::fmt::Display| {
            Error::new(ErrorKind::Device, "the adapter could not be opened")
                .at(info.line())
                .found(e)
                .help("update the driver, choose another `device`, or use `device` cpu")
        };
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("secateur"),
            required_features: adapter.features() & wgpu::Features::TIMESTAMP_QUERY,
            required_limits: adapter.limits(),
            memory_hints: wgpu::MemoryHints::MemoryUsage,
            ..Default::default()
        };
        let (device, queue) = adapter.request_device(&descriptor).await.map_err(|e| failed(&e))?;
        #[cfg(target_family = "wasm")]
        let named = info.clone().named_by(&device);
        let backend = adapter.get_info().backend;
        #[cfg(not(target_family = "wasm"))]
        let (watched, loss, submitted) = (device.clone(), Loss::from_env(&device), queue.clone());
        let setup = WgpuSetup { instance, adapter, device, queue, backend };
        let mut options = Device::wgpu_options().setup(setup).tasks_max(info.most_in_a_submission());
        if exclusive_pages() {
            options = options.memory_config(MemoryConfiguration::ExclusivePages);
        }
        let burn = options.init().map_err(|e| failed(&e))?;
        #[cfg(target_family = "wasm")]
        let info = named;
        let tuning = if info.kind == "software" { Tuning::CPU } else { Tuning::GPU };
        #[cfg(not(target_family = "wasm"))]
        let fault: Arc<OnceLock<String>> = {
            // This handler replaces that of cubecl, which panics in a thread of its own.
            let fault = Arc::new(OnceLock::new());
            let told = fault.clone();
            watched.on_uncaptured_error(Arc::new(move |error| {
                if let Err(later) = told.set(error.to_string()) {
                    log::debug!("after the first error of the device: {later}");
                }
            }));
            let mut faults = FAULTS.lock().unwrap_or_else(PoisonError::into_inner);
            faults.retain(|(_, fault)| fault.strong_count() > 0);
            faults.push((burn.clone(), Arc::downgrade(&fault)));
            fault
        };
        Ok(Self {
            burn,
            info,
            tuning,
            untested: Arc::default(),
            #[cfg(not(target_family = "wasm"))]
            fault,
            #[cfg(not(target_family = "wasm"))]
            loss,
            #[cfg(not(target_family = "wasm"))]
            queue: Some(submitted),
        })
    }

    /// The kernels whose test was put off until something relies on their results.
    pub(crate) fn untested(&self) -> MutexGuard<'_, Vec<&'static str>> {
        self.untested.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a decode step. Tests can have the device destroyed after a number of steps.
    pub(crate) fn note_step(&self) {
        #[cfg(not(target_family = "wasm"))]
        if let Some(loss) = &self.loss
            && loss.steps.fetch_sub(1, Ordering::Relaxed) == 1
        {
            loss.device.destroy();
        }
    }

    /// Waits until the device has finished all work that was launched.
    ///
    /// # Errors
    /// [`ErrorKind::Device`] if it has run out of memory or failed otherwise.
    #[cfg(not(target_family = "wasm"))]
    pub fn wait_until_done(&self) -> Result<()> {
        let synced = self.burn.sync().map_err(|e| failure(&format!("{e:?}")).at(self.info.line()));
        self.fault().map_or(synced, Err)
    }

    /// Submits nothing to the queue of a GPU, and returns the number of submissions so far, this one included. `None`
    /// on the CPU, in a browser, and if wgpu does not tell.
    pub(crate) fn submissions(&self) -> Option<u64> {
        #[cfg(not(target_family = "wasm"))]
        return submission_number(&format!("{:?}", self.queue.as_ref()?.submit([])));
        #[cfg(target_family = "wasm")]
        None
    }

    /// Marks the device as failed, although the graphics library has reported no error.
    pub(crate) fn give_up(&self, error: &Error) {
        log::warn!("the device is given up: {error}");
        #[cfg(not(target_family = "wasm"))]
        self.fault.set(error.to_string()).ok();
    }

    /// Whether the device was lost or has failed otherwise, so that nothing can be computed on it any more.
    #[cfg(not(target_family = "wasm"))]
    pub fn has_failed(&self) -> bool {
        self.fault().is_some()
    }

    /// The error of a device that has failed. A loss of the device comes before any other error, because after a loss
    /// every later call fails with an error of its own.
    #[cfg(not(target_family = "wasm"))]
    fn fault(&self) -> Option<Error> {
        let lost = self.burn.sync().err().map(|e| format!("{e:?}")).filter(|said| is_loss(said));
        Some(failure(lost.as_ref().or_else(|| self.fault.get())?).at(self.info.line()))
    }

    /// If the device has failed, returns the failure, which is the cause of `error`. Otherwise returns `error` with
    /// the name of the device. An error that is not about the device is returned unchanged.
    pub fn explained(&self, error: Error) -> Error {
        if error.kind() != ErrorKind::Device {
            return error;
        }
        #[cfg(not(target_family = "wasm"))]
        if let Some(fault) = self.fault() {
            return fault;
        }
        // A lost device may be noticed in what was read from it before the graphics library reports the loss.
        if error.what() == LOST {
            self.give_up(&error);
        }
        error.or_at(self.info.line())
    }

    /// The memory that the allocator holds; zero on the CPU, whose tensors are ordinary memory.
    pub fn bytes(&self) -> DeviceBytes {
        let usage = self.burn.memory_pool_usage();
        usage.map_or(DeviceBytes::default(), |u| DeviceBytes { in_use: u.bytes_in_use, reserved: u.bytes_reserved })
    }
}

/// The errors that the graphics library has reported, for each open device. [`check`] looks them up by the device of
/// a tensor.
#[cfg(not(target_family = "wasm"))]
static FAULTS: Mutex<Vec<(Device, Weak<OnceLock<String>>)>> = Mutex::new(Vec::new());

/// Returns the error of a device that has failed. Results that were computed after a failure, for example by a kernel
/// whose output could not be allocated, are wrong although they can still be read.
#[cfg(not(target_family = "wasm"))]
pub(crate) fn check(device: &Device) -> Result<()> {
    let faults = FAULTS.lock().unwrap_or_else(PoisonError::into_inner);
    let fault = faults.iter().find(|(open, _)| open == device).and_then(|(_, fault)| fault.upgrade());
    match fault.as_deref().and_then(OnceLock::get) {
        Some(said) => Err(failure(said)),
        None => Ok(()),
    }
}

/// Browsers do not report errors that no call has returned, so this check always passes.
#[cfg(target_family = "wasm")]
pub(crate) fn check(_: &Device) -> Result<()> {
    Ok(())
}

/// The number in wgpu's index of a submission, which wgpu counts up by one and shows only in its text for debugging.
#[cfg(not(target_family = "wasm"))]
fn submission_number(index: &str) -> Option<u64> {
    index.strip_prefix("SubmissionIndex { index: ")?.strip_suffix(" }")?.parse().ok()
}

/// The error for a device that has failed, from the message of the graphics library.
pub(crate) fn failure(said: &str) -> Error {
    let error = if said.to_lowercase().contains("out of memory") {
        Error::new(ErrorKind::Device, "the device is out of memory").help(
            "`secateur inspect` tells how much memory a model takes; `weights` q4, a smaller `context` or `device` cpu \
             need less",
        )
    } else if is_loss(said) {
        Error::new(ErrorKind::Device, LOST).help(
            "its driver was restarted, or it was removed or switched off: run the same again; if that does not help, \
             update the driver, choose another `device`, or use `device` cpu",
        )
    } else {
        Error::new(ErrorKind::Device, "the device has failed")
            .help("update the driver, choose another `device`, or use `device` cpu")
    };
    error.found(causes(said))
}

/// The text of the error for a device that no longer exists.
const LOST: &str = "the device was lost";

/// Whether a message of the graphics library means that the device no longer exists.
fn is_loss(said: &str) -> bool {
    let said = said.to_lowercase();
    // A lost device makes buffers that are invalid, and the library reports this only when such a buffer is used.
    // Other reasons for an invalid buffer, such as a lack of memory, have been reported before.
    let made_by_lost = said.contains("buffer with '") && said.contains("label is invalid");
    // If mapping a valid buffer fails, the device is lost: a lack of memory, too, has been reported before.
    made_by_lost
        || ["is lost", "poisoned", "device lost", "could not be mapped"].iter().any(|words| said.contains(words))
}

/// The message of the graphics library on one line, without headings and without the backtrace.
fn causes(said: &str) -> String {
    let lines = said.lines().map(str::trim).take_while(|line| !line.starts_with("Backtrace"));
    let lines = lines.map(|line| line.trim_end_matches([':', ' ']));
    let headings = ["", "Validation Error", "Caused by"];
    lines.filter(|line| !headings.contains(line)).collect::<Vec<_>>().join(": ")
}

/// Whether every allocation gets a page of its own, as in browsers: `SECATEUR_EXCLUSIVE_PAGES=1`. For tests, so that
/// faults that would otherwise occur only in browsers are found natively.
fn exclusive_pages() -> bool {
    std::env::var_os("SECATEUR_EXCLUSIVE_PAGES").is_some_and(|value| value == "1")
}

/// Whether [`ComputeDevice::open`] looks for adapters of OpenGL as well. `best` is the best adapter of the other APIs
/// that matches `select` and can run the kernels.
fn wants_gl(select: &str, best: Option<&DeviceInfo>) -> bool {
    match select {
        "auto" => best.is_none_or(|best| best.kind == "software"),
        _ => best.is_none(),
    }
}

/// Every device of this machine, best first, the CPU backend last. An index in this list selects a device for
/// [`ComputeDevice::open`].
pub async fn list() -> Vec<DeviceInfo> {
    let found = all_adapters().await.into_iter().map(|a| a.info);
    found.chain([DeviceInfo::cpu()]).collect()
}

/// An adapter that was found, and the instance that it belongs to.
struct Found {
    info: DeviceInfo,
    adapter: wgpu::Adapter,
    instance: wgpu::Instance,
}

/// The adapters that `backends` offer, best first.
async fn adapters(backends: wgpu::Backends) -> Vec<Found> {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor {
        backends,
        ..wgpu::InstanceDescriptor::new_without_display_handle()
    });
    let found = enumerate(&instance, backends).await.into_iter();
    let mut found: Vec<Found> = found
        .map(|adapter| Found { info: DeviceInfo::from_adapter(&adapter), adapter, instance: instance.clone() })
        .collect();
    found.sort_by_key(|a| a.info.rank());
    found
}

/// The adapters of every backend, best first.
async fn all_adapters() -> Vec<Found> {
    let mut found = adapters(without_gl()).await;
    found.extend(adapters(wgpu::Backends::GL).await);
    found.sort_by_key(|a| a.info.rank());
    found
}

fn without_gl() -> wgpu::Backends {
    wgpu::Backends::all() - wgpu::Backends::GL
}

#[cfg(not(target_family = "wasm"))]
async fn enumerate(instance: &wgpu::Instance, backends: wgpu::Backends) -> Vec<wgpu::Adapter> {
    instance.enumerate_adapters(backends).await
}

/// A browser offers one adapter, on request, and no OpenGL.
#[cfg(target_family = "wasm")]
async fn enumerate(instance: &wgpu::Instance, backends: wgpu::Backends) -> Vec<wgpu::Adapter> {
    if backends == wgpu::Backends::GL {
        return Vec::new();
    }
    let options =
        wgpu::RequestAdapterOptions { power_preference: wgpu::PowerPreference::HighPerformance, ..Default::default() };
    instance.request_adapter(&options).await.into_iter().collect()
}

/// How to get a driver on this platform, for messages.
pub fn driver_help() -> &'static str {
    if cfg!(target_family = "wasm") {
        "use a browser with WebGPU (Chrome or Edge 113+, Safari 26+, Firefox 141+ on Windows); on Linux Chrome may need \
         chrome://flags/#enable-unsafe-webgpu"
    } else if cfg!(target_os = "linux") {
        "install a Vulkan driver: `apt-get install mesa-vulkan-drivers libvulkan1` covers AMD, Intel and machines without a \
         GPU (lavapipe); NVIDIA's driver brings its own. Or run on the CPU: `device` cpu (slow)"
    } else {
        "update the graphics driver, or run on the CPU: `device` cpu (slow)"
    }
}

fn no_adapter() -> Error {
    Error::new(ErrorKind::Device, "no GPU adapter was found")
        .expected("a Vulkan, Metal, DX12, GL or WebGPU adapter")
        .found("none")
        .help(driver_help())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_graphics_library_says_becomes_one_line() {
        let lost = "Validation Error\n\nCaused by:\n  In Device::create_buffer\n    Parent device is lost\n";
        let poisoned = "The device is poisoned\nCaused by:\n  Destroyed: \nBacktrace:\nNo backtrace available";
        let memory =
            "Out of Memory\n\nCaused by:\n  In Device::create_buffer, label = 'x'\n    Not enough memory left.\n";
        for (said, what, found) in [
            (lost, "the device was lost", "In Device::create_buffer: Parent device is lost"),
            (poisoned, "the device was lost", "The device is poisoned: Destroyed"),
            (memory, "the device is out of memory", "Out of Memory: In Device::create_buffer, label = 'x': Not enough"),
            ("In Queue::write_buffer: Buffer with '' label is invalid", "the device was lost", "label is invalid"),
            ("the staging buffer could not be mapped: x", "the device was lost", "could not be mapped"),
            ("Buffer is too small", "the device has failed", "Buffer is too small"),
        ] {
            let error = failure(said);
            assert_eq!((error.kind(), error.what()), (ErrorKind::Device, what));
            assert!(error.to_string().contains(found), "{error}");
        }
    }

    /// If the output of a kernel could not be allocated, the kernel writes nothing, and no call fails.
    #[cfg(not(target_family = "wasm"))]
    #[test]
    fn nothing_is_read_from_a_device_that_has_failed() {
        let fit: Vec<DeviceInfo> = pollster::block_on(list()).into_iter().filter(|i| i.unfit().is_none()).collect();
        let Some(info) = fit.iter().find(|info| info.backend != "cpu") else {
            assert!(std::env::var_os("SECATEUR_REQUIRE").is_none(), "an adapter is required, and there is none");
            println!("SKIPPED: there is no adapter");
            return;
        };
        let [failed, other] =
            [(), ()].map(|()| pollster::block_on(ComputeDevice::open_info(info)).expect("it is listed"));
        let read = |device: &ComputeDevice| {
            let tensor = crate::kernels::u32_tensor(vec![7; 4], &device.burn);
            pollster::block_on(crate::kernels::readback::read_u32(&[&tensor]))
        };
        assert!(read(&failed).is_ok());
        failed.fault.set("Out of Memory".into()).expect("the first fault");
        assert_eq!(read(&failed).expect_err("it has failed").what(), "the device is out of memory");
        assert!(read(&other).is_ok(), "another device of the same adapter has not failed");
    }

    #[test]
    fn submissions_have_a_number() {
        assert_eq!(submission_number("SubmissionIndex { index: 12 }"), Some(12));
        for other in ["SubmissionIndex(12)", "SubmissionIndex { index: x }", ""] {
            assert_eq!(submission_number(other), None);
        }
    }

    #[test]
    fn a_gpu_that_may_be_slow_gets_its_work_in_small_parts() {
        let of = |kind: &str| DeviceInfo { kind: kind.into(), ..DeviceInfo::cpu() }.most_in_a_submission();
        assert_eq!((of("integrated"), of("discrete"), of("unknown")), (32, 512, 512));
    }

    #[test]
    fn auto_looks_for_opengl_only_where_it_may_be_better() {
        let of = |kind: &str| DeviceInfo { kind: kind.into(), backend: "vulkan".into(), ..DeviceInfo::cpu() };
        let (gpu, software) = (of("integrated"), of("software"));
        assert!(!wants_gl("auto", Some(&gpu)));
        assert!(wants_gl("auto", Some(&software)) && wants_gl("auto", None));
        // If a name was given, an adapter of another API is enough, and OpenGL is the last resort.
        assert!(!wants_gl("llvmpipe", Some(&software)) && wants_gl("llvmpipe", None));
        // If OpenGL then offers a GPU, the GPU comes before the software adapter.
        let gl = DeviceInfo { backend: "gl".into(), ..of("unknown") };
        assert!(gl.rank() < software.rank() && gpu.rank() < gl.rank());
    }
}

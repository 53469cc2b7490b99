//! Finding and opening a compute device: a GPU through wgpu, or burn's CPU backend with the twins.
use burn::tensor::Device;
use burn::tensor::wgpu::{MemoryConfiguration, WgpuSetup, wgpu};
use serde::Serialize;

use crate::{Error, ErrorKind, Result};

/// What a person needs to know about a device, and what the engine needs to know of its limits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DeviceInfo {
    /// The adapter's name as its driver gives it; `CPU twin` for the reference backend.
    pub name: String,
    /// `vulkan`, `metal`, `dx12`, `gl`, `webgpu` or `cpu`.
    pub backend: String,
    /// `discrete`, `integrated`, `virtual`, `software` or `unknown`.
    pub kind: String,
    /// The driver and its version; empty where the platform does not say (browsers).
    pub driver: String,
    /// Largest buffer that a shader can bind, in bytes: bounds a weight shard and a layer's cache.
    pub max_binding_bytes: u64,
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
            max_storage_buffers: u32::MAX,
            workgroup_memory: u32::MAX,
            max_invocations: u32::MAX,
        }
    }

    fn of(adapter: &wgpu::Adapter) -> Self {
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
            max_storage_buffers: limits.max_storage_buffers_per_shader_stage,
            workgroup_memory: limits.max_compute_workgroup_storage_size,
            max_invocations: limits.max_compute_invocations_per_workgroup,
        }
    }

    /// Why this adapter cannot run the kernels, if it cannot. They need the WebGPU baseline.
    pub fn unfit(&self) -> Option<String> {
        let needs = [
            ("storage buffers a shader", self.max_storage_buffers, 6),
            ("invocations a workgroup", self.max_invocations, 256),
            ("bytes of workgroup memory", self.workgroup_memory, 16_384),
        ];
        let lacking = needs.iter().find(|(_, has, wants)| has < wants);
        lacking.map(|(what, has, wants)| format!("offers {has} {what}, {wants} are needed"))
    }

    /// One line: `name (backend, kind, driver)`.
    pub fn line(&self) -> String {
        let parts = [&self.backend, &self.kind, &self.driver];
        let parts: Vec<&str> = parts.iter().map(|s| s.as_str()).filter(|s| !s.is_empty()).collect();
        format!("{} ({})", self.name, parts.join(", "))
    }

    /// With what the browser tells of the adapter: wgpu leaves that out, and most browsers have no more than this.
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

    /// Best first. OpenGL comes after the APIs made for compute.
    fn rank(&self) -> (usize, bool) {
        let kinds = ["discrete", "integrated", "virtual", "unknown", "software"];
        (kinds.iter().position(|k| *k == self.kind).unwrap_or(kinds.len()), self.backend == "gl")
    }

    /// Whether `select` names it: `auto`, its backend, or a part of its name in any case.
    pub fn matches(&self, select: &str) -> bool {
        let part = !select.is_empty() && self.name.to_lowercase().contains(&select.to_lowercase());
        select == "auto" || self.backend == select || part
    }
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

/// Bytes the device's allocator holds, measured, not computed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
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

/// How kernels are tiled for a device. It never changes what a kernel computes but for the order of sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tuning {
    /// Chooses between tilings made for CPUs and for GPUs.
    pub kind: ProcessorKind,
    /// Invocations that share a row of weights in `matvec`: a power of two, at most 64.
    pub matvec_lanes: u32,
}

impl Tuning {
    /// For software adapters; 8 lanes were the fastest on lavapipe.
    pub const CPU: Self = Self { kind: ProcessorKind::Cpu, matvec_lanes: 8 };
    /// For GPUs: the lanes of a subgroup share a row.
    pub const GPU: Self = Self { kind: ProcessorKind::Gpu, matvec_lanes: 32 };

    /// Whether invocations are lanes of a CPU's vector unit.
    pub fn is_cpu(self) -> bool {
        self.kind == ProcessorKind::Cpu
    }
}

/// An opened device.
#[derive(Debug, Clone)]
pub struct ComputeDevice {
    /// Burn's handle: where tensors are made.
    pub burn: Device,
    /// What it is.
    pub info: DeviceInfo,
    /// How kernels are tiled for it.
    pub tuning: Tuning,
}

impl ComputeDevice {
    /// The reference backend: every kernel's twin, in f64, on one core. Slow, exact, needs no driver.
    pub fn cpu() -> Self {
        Self { burn: Device::flex(), info: DeviceInfo::cpu(), tuning: Tuning::CPU }
    }

    /// Opens the device that `select` names: `auto` (the best adapter), `cpu` (the twins), a backend (`vulkan`, `metal`,
    /// `dx12`, `gl`, `webgpu`), or a part of an adapter's name.
    ///
    /// # Errors
    /// No adapter, none that matches, or one that cannot run the kernels; the message lists what there is.
    pub async fn open(select: &str) -> Result<Self> {
        if select == "cpu" {
            return Ok(Self::cpu());
        }
        let instance = instance();
        let mut adapters: Vec<_> = enumerate(&instance).await.into_iter().map(|a| (DeviceInfo::of(&a), a)).collect();
        adapters.sort_by_key(|(info, _)| info.rank());
        if adapters.is_empty() {
            return Err(no_adapter());
        }
        // Of several that match, one that can run the kernels.
        let matching = || adapters.iter().filter(|(info, _)| info.matches(select));
        let Some((info, adapter)) = matching().find(|(i, _)| i.unfit().is_none()).or_else(|| matching().next()) else {
            let names: Vec<String> = adapters.iter().map(|(info, _)| info.line()).collect();
            return Err(Error::new(ErrorKind::Device, format!("no adapter matches `{select}`"))
                .at("--device")
                .expected("auto, cpu, vulkan, metal, dx12, gl, or a part of an adapter's name")
                .found(names.join("; "))
                .help("`secateur devices` lists what this machine offers"));
        };
        Self::from_adapter(instance.clone(), adapter.clone(), info.clone()).await
    }

    /// Opens the device that [`list`] described: the adapter of this name and backend. A machine may offer one card under
    /// several backends, which a name alone does not tell apart.
    ///
    /// # Errors
    /// When it is gone, or cannot run the kernels.
    pub async fn open_info(wanted: &DeviceInfo) -> Result<Self> {
        if wanted.backend == "cpu" {
            return Ok(Self::cpu());
        }
        let instance = instance();
        let mut adapters = enumerate(&instance).await.into_iter().map(|a| (DeviceInfo::of(&a), a));
        match adapters.find(|(info, _)| info.name == wanted.name && info.backend == wanted.backend) {
            Some((info, adapter)) => Self::from_adapter(instance.clone(), adapter, info).await,
            None => Err(Error::new(ErrorKind::Device, "the adapter is no longer there").at(wanted.line())),
        }
    }

    async fn from_adapter(instance: wgpu::Instance, adapter: wgpu::Adapter, info: DeviceInfo) -> Result<Self> {
        if let Some(reason) = info.unfit() {
            return Err(Error::new(ErrorKind::Device, "the adapter cannot run the kernels")
                .at(info.line())
                .found(reason)
                .help("choose another one with --device, or --device cpu"));
        }
        let failed = |e: &dyn std::fmt::Display| {
            Error::new(ErrorKind::Device, "the adapter refused to open")
                .at(info.line())
                .found(e)
                .help("update the driver, choose another adapter with --device, or use --device cpu")
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
        let setup = WgpuSetup { instance, adapter, device, queue, backend };
        let mut options = Device::wgpu_options().setup(setup).tasks_max(512);
        if exclusive_pages() {
            options = options.memory_config(MemoryConfiguration::ExclusivePages);
        }
        let burn = options.init().map_err(|e| failed(&e))?;
        #[cfg(target_family = "wasm")]
        let info = named;
        let tuning = if info.kind == "software" { Tuning::CPU } else { Tuning::GPU };
        Ok(Self { burn, info, tuning })
    }

    /// What the allocator holds. Zero on the CPU, whose tensors are ordinary memory.
    pub fn bytes(&self) -> DeviceBytes {
        let usage = self.burn.memory_pool_usage();
        usage.map_or(DeviceBytes::default(), |u| DeviceBytes { in_use: u.bytes_in_use, reserved: u.bytes_reserved })
    }
}

/// Whether every allocation is to have a page of its own, as in browsers: `SECATEUR_EXCLUSIVE_PAGES=1`. For tests, so that
/// what only breaks there is seen natively.
fn exclusive_pages() -> bool {
    std::env::var_os("SECATEUR_EXCLUSIVE_PAGES").is_some_and(|value| value == "1")
}

/// Every device of this machine, best first, the CPU twin last.
pub async fn list() -> Vec<DeviceInfo> {
    let mut found: Vec<DeviceInfo> = enumerate(&instance()).await.iter().map(DeviceInfo::of).collect();
    found.sort_by_key(DeviceInfo::rank);
    found.push(DeviceInfo::cpu());
    found
}

fn instance() -> wgpu::Instance {
    wgpu::Instance::new(wgpu::InstanceDescriptor {
        backends: wgpu::Backends::all(),
        ..wgpu::InstanceDescriptor::new_without_display_handle()
    })
}

#[cfg(not(target_family = "wasm"))]
async fn enumerate(instance: &wgpu::Instance) -> Vec<wgpu::Adapter> {
    instance.enumerate_adapters(wgpu::Backends::all()).await
}

/// A browser offers one adapter, on request.
#[cfg(target_family = "wasm")]
async fn enumerate(instance: &wgpu::Instance) -> Vec<wgpu::Adapter> {
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
         GPU (lavapipe); NVIDIA's driver brings its own. Or run on the CPU with --device cpu (slow)"
    } else {
        "update the graphics driver, or run on the CPU with --device cpu (slow)"
    }
}

fn no_adapter() -> Error {
    Error::new(ErrorKind::Device, "no GPU adapter was found")
        .expected("a Vulkan, Metal, DX12, GL or WebGPU adapter")
        .found("none")
        .help(driver_help())
}

//! Every specialisation of every shader is valid, can be translated for every graphics API, and is within the WebGPU
//! baseline. The files of `shaders/` and of `src/kernels/` correspond to each other.
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use crate::common::*;
use naga::{AddressSpace, StorageAccess};
use secateur::expert::conformance::shaders::{CAPABILITIES, translate};
use secateur::expert::kernels::uniform::Member;
use secateur::expert::kernels::variant::{Variant, hooks};
use secateur::expert::kernels::{KERNELS, cases, state, variants};

/// Stems of the files of `directory` that end in `.extension`.
fn stems(directory: &str, extension: &str) -> BTreeSet<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(directory);
    let files = std::fs::read_dir(path).expect("part of the repository").map(|f| f.expect("readable").path());
    let named = files.filter(|f| f.extension().is_some_and(|e| e == extension));
    named.map(|f| f.file_stem().expect("a name").to_string_lossy().into_owned()).collect()
}

/// Texts that kernels share.
const SHARED: [&str; 5] = ["common", "dots", "keys", "rows", "weights"];

#[test]
fn shaders_and_kernels_name_each_other() {
    // The stem of a shared text, of a kernel with two passes, and of two kernels with two tilings.
    let of_kernel = |stem: &str| match stem {
        "attention_combine" => "attention".to_string(),
        "matmul_rows" => "matmul".to_string(),
        "experts_rows" => "experts".to_string(),
        other => other.to_string(),
    };
    let shaders = stems("shaders", "wgsl");
    let shared = |stem: &str| SHARED.contains(&stem);
    assert!(SHARED.iter().all(|stem| shaders.contains(*stem)), "a shared text is gone");
    let registered = || KERNELS.iter().map(|kernel| kernel.name.to_string());
    let named: BTreeSet<String> = shaders.iter().filter(|s| !shared(s)).map(|s| of_kernel(s)).collect();
    let own: BTreeSet<String> = registered().collect();
    assert_eq!(own.len(), registered().count(), "a kernel is registered twice");
    assert_eq!(named, own, "shaders/*.wgsl against the registry");
    assert!(own.is_subset(&stems("src/kernels", "rs")), "a kernel without a file of its own");
    let listed: BTreeSet<String> = variants().iter().map(|v| v.kernel.to_string()).collect();
    assert_eq!(listed, shaders.into_iter().filter(|s| !shared(s)).collect(), "files against specialisations");
    let tried: BTreeSet<String> = cases::all().iter().map(|c| c.kernel.to_string()).collect();
    assert_eq!(tried, own, "kernels without conformance cases");
    // The launched text is the text of the file.
    for variant in variants() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("shaders").join(variant.kernel).with_extension("wgsl");
        assert_eq!(variant.text, std::fs::read_to_string(path).expect("listed"), "{}", variant.kernel);
    }
}

/// The declarations of a variant.
struct Shape {
    /// Storage buffers.
    storage: usize,
    /// Members of its uniform.
    members: usize,
}

/// Compares the uniform as naga lays it out with its Rust struct: names, types and offsets of the members, and the
/// size.
fn check_uniform(module: &naga::Module, ty: naga::Handle<naga::Type>, rust: &[Member]) -> Result<(), String> {
    let naga::TypeInner::Struct { members, span } = &module.types[ty].inner else {
        return Err("the uniform is not a struct".into());
    };
    if members.len() != rust.len() || *span as usize != 4 * rust.len() {
        return Err(format!("the uniform has {} members and {span} bytes, in Rust {}", members.len(), rust.len()));
    }
    for (wgsl, rust) in members.iter().zip(rust) {
        let scalar = match module.types[wgsl.ty].inner {
            naga::TypeInner::Scalar(naga::Scalar::U32) => "u32",
            naga::TypeInner::Scalar(naga::Scalar::F32) => "f32",
            _ => "another type",
        };
        let name = wgsl.name.as_deref().unwrap_or("?");
        if (name, scalar, wgsl.offset as usize) != (rust.name, rust.scalar, rust.offset) {
            return Err(format!("uniform member {name}: {scalar} at {}, in Rust {rust:?}", wgsl.offset));
        }
    }
    Ok(())
}

fn shape(variant: &Variant) -> Result<Shape, String> {
    let text = variant.source();
    let module = naga::front::wgsl::parse_str(&text).map_err(|e| e.emit_to_string(&text))?;
    let mut validator = naga::valid::Validator::new(naga::valid::ValidationFlags::all(), CAPABILITIES);
    let info = validator.validate(&module).map_err(|e| e.emit_to_string(&text))?;
    let [entry] = &module.entry_points[..] else { return Err("one entry point, please".into()) };
    if entry.name != "main" || entry.stage != naga::ShaderStage::Compute {
        return Err("the entry point is not compute `main`".into());
    }
    let (mut storage, mut uniforms, mut shared) = (BTreeSet::new(), BTreeMap::new(), 0);
    for (handle, variable) in module.global_variables.iter() {
        let name = variable.name.as_deref().unwrap_or("?");
        if info.get_entry_point(0)[handle].is_empty() {
            return Err(format!("{name} is never used: the driver's layout would lack it"));
        }
        let size = module.types[variable.ty].inner.size(module.to_ctx()) as usize;
        match variable.space {
            AddressSpace::Storage { access } => {
                if access != StorageAccess::LOAD | StorageAccess::STORE {
                    return Err(format!("{name} is not read_write, as which every buffer is bound"));
                }
                let binding = variable.binding.as_ref().ok_or("a buffer without a binding")?;
                if binding.group != 0 || !storage.insert(binding.binding) {
                    return Err(format!("{name}: group 0, each binding once"));
                }
            }
            AddressSpace::Uniform => {
                check_uniform(&module, variable.ty, variant.uniform)?;
                uniforms.insert(variable.binding.as_ref().ok_or("no binding")?.binding, size);
            }
            AddressSpace::WorkGroup => shared += size,
            _ => {}
        }
    }
    if storage.iter().copied().ne(0..storage.len() as u32) {
        return Err(format!("storage bindings {storage:?} are not 0, 1, 2 .."));
    }
    if uniforms.keys().copied().ne([storage.len() as u32]) {
        return Err(format!("the uniform is not the last binding: {uniforms:?}"));
    }
    let invocations: u32 = entry.workgroup_size.iter().product();
    if storage.len() > 8 || invocations > 256 || shared > 16_384 {
        return Err(format!(
            "beyond WebGPU: {} buffers, {invocations} invocations, {shared} bytes shared",
            storage.len()
        ));
    }
    let constant = |name: &str| variant.constants.iter().find(|c| c.0 == name).map(|c| c.1);
    if constant("THREADS") != Some(invocations) || entry.workgroup_size[0] != invocations {
        return Err(format!("{invocations} invocations, THREADS says {:?}", constant("THREADS")));
    }
    Ok(Shape { storage: storage.len(), members: variant.uniform.len() })
}

#[test]
fn every_specialisation_translates_for_every_api() {
    let list = variants();
    assert!(list.len() >= 500, "only {} specialisations", list.len());
    let mut bytes: BTreeMap<&str, (usize, [usize; 4])> = BTreeMap::new();
    for variant in &list {
        let sizes = translate(variant).unwrap_or_else(|e| panic!("{} {:?}: {e}", variant.kernel, variant.constants));
        assert!(sizes.iter().all(|size| *size > 300), "{}: {sizes:?} bytes", variant.kernel);
        shape(variant).unwrap_or_else(|e| panic!("{} {:?}: {e}", variant.kernel, variant.constants));
        let entry = bytes.entry(variant.kernel).or_default();
        entry.0 += 1;
        entry.1 = std::array::from_fn(|i| entry.1[i].max(sizes[i]));
    }
    for (kernel, (count, [spv, msl, hlsl, glsl])) in bytes {
        println!(
            "{kernel}: {count} specialisations; at most {spv} bytes of SPIR-V, {msl} MSL, {hlsl} HLSL, {glsl} GLSL"
        );
    }
}

/// Records the arguments that the launcher passes in every case of every kernel.
#[test]
fn launches_pass_what_shaders_declare() {
    let _one = beside_others();
    let Some(device) = gpu() else { return };
    let cases = cases::all();
    let run = || cases.iter().for_each(|case| drop(case.run(&device.burn)));
    let ((), launches) = hooks::with(None, run);
    let kernels: BTreeSet<&str> = launches.iter().map(|l| l.variant.kernel).collect();
    assert_eq!(kernels, variants().iter().map(|v| v.kernel).collect(), "kernels that no case launches");
    for launch in &launches {
        let shape = shape(&launch.variant).unwrap_or_else(|e| panic!("{}: {e}", launch.variant.kernel));
        translate(&launch.variant).unwrap_or_else(|e| panic!("{}: {e}", launch.variant.kernel));
        let (declared, passed) = ((shape.storage, shape.members), (launch.buffers, launch.uniform.len()));
        assert_eq!(declared, passed, "{}: declared and passed", launch.variant.kernel);
        assert_eq!(launch.variant.uniform, launch.uniform, "{}: another uniform is passed", launch.variant.kernel);
    }
    println!("{} kinds of launches of {} kernels on {}", launches.len(), kernels.len(), device.info.name);
}

/// Every uniform, member by member, against naga's view of `struct Info`: name, type and offset.
#[test]
fn uniforms_are_laid_out_as_shaders_read_them() {
    let mut members: BTreeMap<&str, usize> = BTreeMap::new();
    for variant in variants() {
        let Shape { members: n, .. } = shape(&variant).unwrap_or_else(|e| panic!("{}: {e}", variant.kernel));
        assert_eq!(*members.entry(variant.kernel).or_insert(n), n, "{}: one uniform a shader", variant.kernel);
    }
    assert_eq!(members.len(), stems("shaders", "wgsl").len() - SHARED.len(), "shaders but for shared texts");
    println!("{} uniforms with {} members", members.len(), members.values().sum::<usize>());
}

/// The layout of the device's state, against the constants of `common.wgsl`: each is in both.
#[test]
fn the_state_is_laid_out_as_shaders_read_it() {
    let text = variants().into_iter().find(|v| v.kernel == "rms_norm").expect("listed").source();
    let module = naga::front::wgsl::parse_str(&text).expect("valid");
    let mut declared = BTreeMap::new();
    for (_, constant) in module.constants.iter() {
        let name = constant.name.as_deref().unwrap_or_default();
        if ["SEQ", "ROW", "DRAFTED"].contains(&name.split('_').next().expect("one part at least")) {
            let naga::Expression::Literal(naga::Literal::U32(value)) = module.global_expressions[constant.init] else {
                panic!("{name} is not a literal")
            };
            declared.insert(name, value as usize);
        }
    }
    assert_eq!(declared, state::CONSTANTS.iter().copied().collect(), "common.wgsl against kernels::state");
    println!("{} constants of the state", declared.len());
}

/// The check for each kind of error must refuse the broken text.
#[test]
fn broken_shaders_are_refused() {
    let good = variants().into_iter().find(|v| v.kernel == "rms_norm").expect("listed");
    let broken = |from: &str, to: &str| {
        assert!(good.text.contains(from), "{from:?} is not in the shader any more");
        Variant { text: Box::leak(good.text.replace(from, to).into_boxed_str()), ..good.clone() }
    };
    for (what, variant) in [
        ("a syntax error", broken("var sum = 0.0;", "var sum = ;")),
        ("a type error", broken("var sum = 0.0;", "var sum = 0u;")),
        ("a missing function", broken("sqrt(", "sqroot(")),
    ] {
        assert!(translate(&variant).is_err() || shape(&variant).is_err(), "{what} passes");
    }
    for (what, variant) in [
        ("a read-only buffer", broken("var<storage, read_write> x", "var<storage, read> x")),
        ("an unused buffer", broken(" * weight[c];", ";")),
        ("a hole in the bindings", broken("@binding(2)", "@binding(7)")),
        ("a uniform before the buffers", broken("@binding(3)", "@binding(9)")),
        ("too much shared memory", broken("array<f32, THREADS>", "array<f32, 5000>")),
        ("another workgroup size", broken("@workgroup_size(THREADS)", "@workgroup_size(32)")),
        ("two members of one type exchanged", broken("n: u32, cols: u32", "cols: u32, n: u32")),
        ("two members of two types exchanged", broken("eps: f32, first_row: u32", "first_row: u32, eps: f32")),
        ("a member of another type", broken("eps: f32", "eps: u32")),
        ("a member too many", broken("first_row: u32 }", "first_row: u32, pad0: vec4<u32> }")),
        ("a second dimension", broken("@workgroup_size(THREADS)", "@workgroup_size(32, 2)")),
    ] {
        assert!(shape(&variant).is_err(), "{what} passes");
    }
    assert!(shape(&good).is_ok() && translate(&good).is_ok());
}

/// Tint, the compiler of Chromium and Dawn, if it is installed. (The browser test compiles the shaders with it in any
/// case.)
#[test]
fn tint_takes_every_specialisation() {
    if Command::new("tint").arg("--version").output().is_err() {
        println!("SKIPPED: no `tint` on the PATH");
        return;
    }
    let directory = tempfile::tempdir().expect("a temporary directory");
    let tint = |source: &str| {
        let file = directory.path().join("kernel.wgsl");
        std::fs::write(&file, source).expect("writable");
        let out = Command::new("tint").args(["--format", "wgsl"]).arg(&file).output().expect("it ran before");
        if out.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&out.stderr).into_owned()) }
    };
    let list = variants();
    for variant in &list {
        tint(&variant.source()).unwrap_or_else(|said| panic!("{} {:?}: {said}", variant.kernel, variant.constants));
    }
    // naga accepts a barrier that only some invocations reach.
    let norm = list.iter().find(|v| v.kernel == "rms_norm").expect("listed").source();
    let divergent = norm.replace("if (!inside) { return; }", "if (thread == 0u) { workgroupBarrier(); }");
    assert!(divergent != norm && tint(&divergent).is_err(), "a barrier in divergent control flow passes");
    println!("tint took {} specialisations", list.len());
}

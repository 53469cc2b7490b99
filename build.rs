//! For the feature `page`: lists the files of the browser's page, which `./x wasm` has made, so that the program
//! embeds them. Without that feature there is nothing to do.
use std::fmt::Write;
use std::path::{Path, PathBuf};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var_os("CARGO_FEATURE_PAGE").is_some() {
        let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo names a folder"));
        std::fs::write(out.join("page.rs"), listing()).expect("the folder can be written");
    }
}

/// A Rust expression: the names and the bytes of all files.
fn listing() -> String {
    let web = Path::new(&std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo names the crate's folder")).join("web");
    let list = web.join("FILES");
    println!("cargo:rerun-if-changed={}", list.display());
    let names = std::fs::read_to_string(&list).unwrap_or_else(|e| {
        panic!("{}: {e}. The feature `page` works in secateur's repository alone.", list.display());
    });
    let mut files = String::from("&[\n");
    for name in names.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).chain(["_headers"]) {
        // Without npm there are no libraries for Markdown and formulas, and the page does without.
        if name == "vendor/" && !web.join(name).exists() {
            continue;
        }
        for file in below(&web.join(name)) {
            let name = file.strip_prefix(&web).expect("below it").to_string_lossy().replace('\\', "/");
            println!("cargo:rerun-if-changed={}", file.display());
            let _ = writeln!(files, "    ({name:?}, include_bytes!({:?})),", file.display().to_string());
        }
    }
    files + "]\n"
}

/// The file, or all files of the folder, in order.
fn below(path: &Path) -> Vec<PathBuf> {
    let missing = |e| panic!("{}: {e}. `./x wasm` makes the page's files.", path.display());
    if !std::fs::metadata(path).unwrap_or_else(missing).is_dir() {
        return vec![path.to_path_buf()];
    }
    let entries = std::fs::read_dir(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry of the folder").path()).collect();
    paths.sort();
    paths.iter().flat_map(|path| below(path)).collect()
}

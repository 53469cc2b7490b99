//! `secateur-bindgen ENGINE.wasm FOLDER`: what `wasm-bindgen --target web --out-name secateur` does.
use wasm_bindgen_cli_support::Bindgen;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [wasm, folder] = &args[..] else {
        eprintln!("usage: secateur-bindgen ENGINE.wasm FOLDER");
        std::process::exit(2);
    };
    let mut bindgen = Bindgen::new();
    let written = bindgen
        .web(true)
        .and_then(|bindgen| bindgen.input_path(wasm).typescript(true).out_name("secateur").generate(folder));
    if let Err(error) = written {
        eprintln!("error: {error:#}");
        std::process::exit(1);
    }
}

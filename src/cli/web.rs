//! `secateur web`: serves the browser's page from the executable, with a model for it.
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use secateur::engine::{LoadOptions, PreparedModel};
use secateur::serve::Names;
use secateur::serve::page::{self, ModelFiles};
use secateur::{Error, ErrorKind, Result};

use super::model::ModelArgs;
use super::serve::{address_of, listen};
use super::signals;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// The address to listen on. Browsers give a GPU only to pages of this machine, or through a proxy with https.
    #[arg(long, value_name = "ADDRESS", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    host: IpAddr,
    /// The port to listen on; 0 takes a free one, which is printed.
    #[arg(long, value_name = "PORT", default_value_t = 8000)]
    port: u16,
    /// Further names by which browsers may call this server, separated by commas; `*` for all.
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    allow_host: Vec<String>,
    /// Do not open the browser.
    #[arg(long)]
    no_open: bool,
    /// Print only the address.
    #[arg(long, short)]
    quiet: bool,
}

pub fn main(args: &Args) -> Result<ExitCode> {
    let files = page::files().ok_or_else(|| {
        Error::new(ErrorKind::Input, "this program was built without the page").help(
            "in secateur's repository, `./x web` builds it with the page; so does --features page after `./x wasm`",
        )
    })?;
    let listener = listen(SocketAddr::new(args.host, args.port))?;
    let model = match args.model.path(args.quiet)? {
        None => None,
        Some(path) => {
            // A model that the page could not run is refused here, where the reason can be read.
            let source = secateur::ModelSource::open(&path)?;
            PreparedModel::new(&source, path.to_string_lossy(), &LoadOptions::default())?;
            Some(ModelFiles::at(&path)?)
        }
    };
    signals::install()?;
    let stop = Arc::new(AtomicBool::new(false));
    signals::stop_on_signal(&stop);
    let query = model.as_ref().map_or(String::new(), |model| format!("?model={}", model.address()));
    let address = format!("http://{}/{query}", address_of(&listener)?);
    super::say(&format!("the page is at {address}"));
    if !args.no_open && open::that_detached(&address).is_err() {
        super::say("no browser can be opened here: open the address in one");
    }
    let names = Names { address: args.host, further: args.allow_host.clone() };
    page::run(listener, files, model, names, stop)?;
    Ok(ExitCode::SUCCESS)
}

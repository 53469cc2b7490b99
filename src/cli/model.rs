//! Opens the model of `--model`: a directory, a GGUF file, or the name of a model on the hub.
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use indicatif::{ProgressBar, ProgressStyle};
use secateur::ModelSource;
use secateur::hub::{Hub, HubName, Progress};
use secateur::{Error, ErrorKind, Result, builtin};

use super::screen;

#[derive(Debug, clap::Args)]
pub struct ModelArgs {
    /// A model directory in Hugging Face layout, a GGUF file, or the name of a model on the hub: ORG/NAME,
    /// ORG/NAME@REVISION, ORG/NAME/FILE.gguf or ORG/NAME:Q4_K_M [default: the small model in the binary].
    #[arg(long, value_name = "DIR|FILE|NAME")]
    pub model: Option<OsString>,
    /// Ask the hub whether the cached model has changed, and fetch the new files.
    #[arg(long, requires = "model")]
    pub update: bool,
}

impl ModelArgs {
    /// The model's files and its name. With `quiet`, the progress of a download is not shown.
    pub fn open(&self, quiet: bool) -> Result<(ModelSource, String)> {
        match &self.model {
            None => Ok((builtin::source(), builtin::NAME.to_string())),
            Some(model) => open(model, self.update, quiet),
        }
    }

    /// The path of the model, fetched from the hub if it is named; `None` for the built-in model.
    pub fn path(&self, quiet: bool) -> Result<Option<PathBuf>> {
        self.model.as_ref().map(|model| Ok(fetched(model, self.update, quiet)?.0)).transpose()
    }
}

/// Opens the path `model` if it exists; otherwise fetches the model of this name from the hub.
///
/// # Errors
/// If the name is empty, the path does not exist and is not a name, or the model cannot be fetched or opened.
pub fn open(model: &OsStr, update: bool, quiet: bool) -> Result<(ModelSource, String)> {
    let (path, name) = fetched(model, update, quiet)?;
    Ok((ModelSource::open(path)?, name))
}

/// The path of the model and its name, fetched from the hub if `model` is the name of one there.
fn fetched(model: &OsStr, update: bool, quiet: bool) -> Result<(PathBuf, String)> {
    if model.is_empty() {
        return Err(Error::new(ErrorKind::Input, "the name of the model is empty")
            .expected("a directory, a GGUF file, or a model on the hub")
            .found("an empty name"));
    }
    // A path need not be Unicode. The name of a model on the hub always is.
    let shown = model.to_string_lossy();
    match shown.parse::<HubName>() {
        Ok(name) if !Path::new(model).exists() => {
            let mut bar = Download::new(&name, quiet);
            let fetched = Hub::from_env()?.fetch(&name, update, &mut |progress| bar.at(progress));
            drop(bar);
            let path = fetched.inspect_err(|_| {
                if !quiet {
                    super::say(&format!("there is no file or directory {shown}, so the hub was asked"));
                }
            })?;
            Ok((path, name.to_string()))
        }
        // Neither a path nor a name. If it looks like a name, the error says what is wrong with the name.
        Err(error) if std::fs::symlink_metadata(model).is_err() => {
            let is_address = shown.contains("://") || shown.contains("huggingface.co/") || shown.contains(':');
            let help = "a model on the hub is named ORG/NAME, ORG/NAME@REVISION, ORG/NAME/FILE.gguf or ORG/NAME:Q4_K_M";
            match ModelSource::open(model) {
                Err(_) if is_address && !cfg!(windows) => Err(error),
                opened => Ok((opened.map(|_| model.into()).map_err(|e| e.help(help))?, shown.into_owned())),
            }
        }
        _ => Ok((model.into(), shown.into_owned())),
    }
}

/// Opens the path `model` if it exists; otherwise reads the beginnings of the files that the model of this name has
/// on the hub.
///
/// # Errors
/// If the path does not exist and is not a name, or the hub does not have the model.
pub fn peek(model: &OsStr) -> Result<(ModelSource, String)> {
    match model.to_string_lossy().parse::<HubName>() {
        Ok(name) if !Path::new(model).exists() => Ok((Hub::from_env()?.peek(&name)?, name.to_string())),
        _ => open(model, false, false),
    }
}

/// Shows a download as a progress bar, with lines for interruptions.
struct Download {
    name: String,
    quiet: bool,
    bar: Option<ProgressBar>,
}

impl Download {
    fn new(name: &HubName, quiet: bool) -> Self {
        Self { name: name.to_string(), quiet, bar: None }
    }

    fn at(&mut self, progress: Progress<'_>) {
        if self.quiet {
            return;
        }
        match progress {
            Progress::Bytes { file, done, total } => {
                let bar = self.bar.get_or_insert_with(|| {
                    super::say(&format!("fetching {}: {}", self.name, screen::bytes(total)));
                    // indicatif hides the bar if stderr is not a terminal.
                    let style = "{msg} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}";
                    let style = ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar());
                    let bar = ProgressBar::new(total).with_style(style);
                    // Bytes of an earlier attempt must not count for the speed of this one.
                    bar.set_position(done);
                    bar.reset_eta();
                    bar
                });
                bar.set_length(total);
                bar.set_message(file.to_string());
                bar.set_position(done);
            }
            Progress::Checking { file } => {
                if let Some(bar) = &self.bar {
                    bar.set_message(format!("checking {file}"));
                }
            }
            Progress::Waiting { file } => self.say(&format!("another process is fetching {file}; waiting for it")),
            Progress::Pausing { cause, wait } => {
                self.say(&format!("{cause}; trying again in {:.1} s", wait.as_secs_f64()));
            }
            Progress::Resuming { file, cause } => self.say(&format!("{file}: {cause}; going on from there")),
        }
    }

    fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| super::say(line)),
            None => super::say(line),
        }
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

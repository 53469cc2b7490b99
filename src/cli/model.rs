//! `--model`: a directory, a GGUF file, or the name of a model on the hub.
use std::path::{Path, PathBuf};

use indicatif::{ProgressBar, ProgressStyle};
use secateur::eval::calibrate::{Choice, FILE};
use secateur::hub::{Hub, HubName, Progress};
use secateur::weights::{FINGERPRINT, ModelSource, Weights};
use secateur::{Error, ErrorKind, Result, builtin, file};

use super::screen;

#[derive(Debug, clap::Args)]
pub struct ModelArgs {
    /// A model directory in Hugging Face layout, a GGUF file, or a model on the hub: ORG/NAME, ORG/NAME@REVISION, ORG/NAME/FILE.gguf. Default: the
    /// small model inside the binary.
    #[arg(long, value_name = "DIR|FILE|NAME")]
    pub model: Option<String>,
    /// Ask the hub whether a cached model has changed, and fetch what is new.
    #[arg(long, requires = "model")]
    pub update: bool,
}

impl ModelArgs {
    /// The model's files and its name. `quiet`: no progress.
    pub fn open(&self, quiet: bool) -> Result<(ModelSource, String)> {
        match &self.model {
            None => Ok((builtin::source(), builtin::NAME.to_string())),
            Some(model) => open(model, self.update, quiet),
        }
    }
}

/// What is there is taken as a path; what is not may be a name.
pub fn open(model: &str, update: bool, quiet: bool) -> Result<(ModelSource, String)> {
    if model.is_empty() {
        return Err(Error::new(ErrorKind::Input, "no model is named")
            .expected("a directory, a GGUF file, or a model on the hub")
            .found("an empty name"));
    }
    match model.parse::<HubName>() {
        Ok(name) if !Path::new(model).exists() => {
            let mut bar = Download::new(&name, quiet);
            let fetched = Hub::from_env()?.fetch(&name, update, &mut |progress| bar.at(progress));
            drop(bar);
            let path = fetched.inspect_err(|_| {
                if !quiet {
                    super::say(&format!("there is no {model} here, so the hub was asked"));
                }
            })?;
            Ok((ModelSource::open(path)?, name.to_string()))
        }
        named => {
            let help = "a model on the hub is named ORG/NAME, ORG/NAME@REVISION or ORG/NAME/FILE.gguf";
            let nowhere = named.is_err() && std::fs::symlink_metadata(model).is_err();
            let opened = ModelSource::open(model).map_err(|e| if nowhere { e.help(help) } else { e });
            Ok((opened?, model.to_string()))
        }
    }
}

/// Where a choice of layers lies beside a model: in its directory, which of a model on the hub is its snapshot in the cache, or next
/// to its GGUF file. `None` for the model in the binary.
pub fn choice_path(source: &ModelSource) -> Option<PathBuf> {
    match source.gguf() {
        Some(gguf) => Some(PathBuf::from(format!("{}.{FILE}", gguf.place()))),
        None => source.folder().map(|folder| folder.join(FILE)),
    }
}

/// A fingerprint of weights, and their files as they were then. It lies beside the choice of layers, so that weights are hashed again
/// only if a file has another size or time of change.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Hashed {
    /// [`Weights::fingerprint`].
    pub fingerprint: String,
    /// Name, bytes, nanoseconds since 1970. Empty where that cannot be told: then it serves once.
    files: Vec<(String, u64, u64)>,
}

impl Hashed {
    /// Of `weights`, from beside the choice at `choice` if that is still true.
    pub fn of(weights: &Weights, choice: &Path) -> Self {
        // Looked at before they are hashed: a change meanwhile shows.
        let files = weights.places().map(state_of_file).collect::<Option<Vec<_>>>().unwrap_or_default();
        let text = std::fs::read_to_string(Self::path(choice)).unwrap_or_default();
        match serde_json::from_str::<Self>(&text) {
            // Earlier versions computed another hash.
            Ok(known) if known.files == files && !files.is_empty() && known.fingerprint.starts_with(FINGERPRINT) => {
                known
            }
            _ => Self { fingerprint: weights.fingerprint(), files },
        }
    }

    /// Puts it beside the choice at `choice`, where that is possible: without it, weights are hashed again.
    pub fn keep(&self, choice: &Path) {
        let path = Self::path(choice);
        let Ok(text) = serde_json::to_string(self) else { return };
        if !self.files.is_empty() && std::fs::read_to_string(&path).ok().as_ref() != Some(&text) {
            file::write_whole(&path, &text).ok();
        }
    }

    fn path(choice: &Path) -> PathBuf {
        PathBuf::from(format!("{}.hashed", choice.display()))
    }
}

fn state_of_file(place: &str) -> Option<(String, u64, u64)> {
    let there = std::fs::metadata(place).ok()?;
    let changed = there.modified().ok()?.duration_since(std::time::UNIX_EPOCH).ok()?.as_nanos();
    let name = Path::new(place).file_name()?.to_string_lossy().into_owned();
    Some((name, there.len(), u64::try_from(changed).ok()?))
}

/// The choice of layers beside the model, if there is one, and where it lies.
pub fn choice(source: &ModelSource) -> Result<Option<(Choice, PathBuf)>> {
    let Some(path) = choice_path(source) else { return Ok(None) };
    let place = path.display().to_string();
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(Some((Choice::from_json(&text, &place)?, path))),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::new(ErrorKind::Io, "the choice of layers cannot be read").at(place).found(e)),
    }
}

/// The bar of a download, and lines for what interrupts it.
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
            Progress::Bytes { file, done, of } => {
                let bar = self.bar.get_or_insert_with(|| {
                    super::say(&format!("fetching {}: {}", self.name, screen::bytes(of)));
                    // Hidden by indicatif itself where stderr is no terminal.
                    let style = "{msg} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}";
                    let style = ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar());
                    let bar = ProgressBar::new(of).with_style(style);
                    // What an earlier attempt left is no speed of this one.
                    bar.set_position(done);
                    bar.reset_eta();
                    bar
                });
                bar.set_length(of);
                bar.set_message(file.to_string());
                bar.set_position(done);
            }
            Progress::Checking { file } => {
                if let Some(bar) = &self.bar {
                    bar.set_message(format!("checking {file}"));
                }
            }
            Progress::Waiting { file } => self.say(&format!("another process is fetching {file}: waiting for it")),
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

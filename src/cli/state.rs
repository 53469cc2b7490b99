//! The files that secateur keeps between runs, in the user's folder for application state.
use std::path::{Path, PathBuf};

/// The file `name` in `secateur/` in the user's folder for application state, if there is a place for it.
pub fn file(name: &str) -> Option<PathBuf> {
    let var = |name: &str| std::env::var_os(name);
    let state = if cfg!(windows) {
        PathBuf::from(var("LOCALAPPDATA")?)
    } else {
        match var("XDG_STATE_HOME").map(PathBuf::from).filter(|folder| folder.is_absolute()) {
            Some(state) => state,
            None => {
                let home = std::env::home_dir().filter(|home| is_own(home))?;
                home.join(if cfg!(target_os = "macos") { "Library/Application Support" } else { ".local/state" })
            }
        }
    };
    within(&state, name)
}

/// The file in `state`. The folder is made if it is missing, as the XDG Base Directory specification asks: readable
/// by its owner alone.
fn within(state: &Path, name: &str) -> Option<PathBuf> {
    let folder = state.join("secateur");
    (folder.is_dir() || made(&folder).is_ok()).then(|| folder.join(name))
}

/// Whether a folder belongs to the user who runs this process. Under `sudo`, the home may be that of another user,
/// who could then not write into folders that this process creates there.
#[cfg(unix)]
fn is_own(home: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    home.metadata().is_ok_and(|home| home.uid() == nix::unistd::geteuid().as_raw())
}

#[cfg(not(unix))]
fn is_own(_: &Path) -> bool {
    true
}

#[cfg(unix)]
fn made(folder: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

#[cfg(not(unix))]
fn made(folder: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_is_made_where_it_can_be() {
        let home = tempfile::tempdir().expect("a folder");
        for state in [home.path().to_path_buf(), home.path().join(".local/state")] {
            for _ in 0..2 {
                let file = within(&state, "history").expect("a place");
                assert!(file.parent().is_some_and(Path::is_dir) && file.ends_with("secateur/history"));
            }
        }
        let file = home.path().join("file");
        std::fs::write(&file, "").expect("a file");
        assert_eq!(within(&file, "history"), None, "a file is no folder");
    }
}

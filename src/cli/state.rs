//! What secateur remembers between runs: files in the user's folder for application state.
use std::path::{Path, PathBuf};

/// The file `name` in `secateur/` in the user's folder for application state, if that folder exists.
pub fn file(name: &str) -> Option<PathBuf> {
    let var = |name: &str| std::env::var_os(name);
    let state = if cfg!(windows) {
        PathBuf::from(var("LOCALAPPDATA")?)
    } else {
        match var("XDG_STATE_HOME").map(PathBuf::from).filter(|folder| folder.is_absolute()) {
            Some(state) => state,
            None => std::env::home_dir()?.join(if cfg!(target_os = "macos") {
                "Library/Application Support"
            } else {
                ".local/state"
            }),
        }
    };
    within(&state, name)
}

fn within(state: &Path, name: &str) -> Option<PathBuf> {
    let folder = state.join("secateur");
    (state.is_dir() && (folder.is_dir() || std::fs::create_dir(&folder).is_ok())).then(|| folder.join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_kept_if_there_is_a_state_folder() {
        let home = tempfile::tempdir().expect("a folder");
        assert_eq!(within(&home.path().join("none"), "history"), None, "no folder is made for others");
        let file = within(home.path(), "history").expect("a place");
        assert!(file.parent().is_some_and(Path::is_dir) && file.ends_with("secateur/history"));
    }
}

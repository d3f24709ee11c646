//! nginx, as a private process with a configuration of the test's own.

use std::path::{Path, PathBuf};

use super::machine::{left_out, program};

/// A program that may be where only root looks, or a word that it is missing.
pub fn sbin(name: &str) -> Option<PathBuf> {
    let there = Path::new("/usr/sbin").join(name);
    let found = program(name).or_else(|| there.is_file().then_some(there));
    if found.is_none() {
        left_out(&format!("needs {name}"));
    }
    found
}

/// The text of a configuration with that in its `http` section, for a process whose files are all in `folder`.
pub fn frame(folder: &Path, http: &str) -> String {
    let folder = folder.display();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|name| format!("{name}_temp_path {folder}/{name};\n"))
        .concat();
    // Its workers would else be another user, who may not read the folder.
    let root = std::fs::metadata("/proc/self").is_ok_and(|me| std::os::unix::fs::MetadataExt::uid(&me) == 0);
    let user = if root { "user root;" } else { "" };
    format!(
        "daemon off; {user} pid {folder}/nginx.pid; error_log stderr; worker_processes 1;\n\
         events {{ worker_connections 1024; }}\nhttp {{\n{temporary}\naccess_log off;\n{http}\n}}\n"
    )
}

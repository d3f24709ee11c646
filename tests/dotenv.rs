//! `.env` files as npm's `dotenv` reads them, the package of Mastodon's own server: thousands of generated files
//! through both readers.
//!
//! `tests/run` installs the package into `target/clients`.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use support::left_out;
use support::machine::{clients, program};
use tidegate::config::dotenv;

/// What readers of such files disagree about.
const PIECES: &[&str] = &[
    "A", "B", "=", "=", "'", "'", "\"", "\"", "`", "#", "\n", "\n", "\r\n", " ", "\\", "\\n", "\\r", ":",
    ": ", "export ", "export", "x", "$HOME", "é", "\u{feff}", "\u{2028}", "\u{a0}", "\u{85}", "\t", "-", ".",
    "\\'", "\\\"", "\\`", "\r", "1",
];

/// Forms that people write, with room for odd content.
const FORMS: &[&str] =
    &["A='@'", "A=\"@\"", "A=`@`", "A=@", "A = '@' # @", "export A=\"@\" #@", "A: @", "A='@", "A=@'", "@"];

/// Numbers that are the same on every run (xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }

    fn pieces(&mut self, most: usize) -> String {
        (0..self.below(most + 1)).map(|_| PIECES[self.below(PIECES.len())]).collect()
    }

    fn file(&mut self) -> String {
        let mut lines = Vec::new();
        for _ in 0..=self.below(3) {
            let form = FORMS[self.below(FORMS.len())];
            let line = form.split('@').map(str::to_owned).reduce(|line, next| line + &self.pieces(6) + &next);
            lines.push(line.unwrap_or_default());
        }
        lines.join("\n")
    }
}

#[test]
fn generated_files_mean_what_they_mean_to_node() {
    let folder = clients();
    let node = program("node").filter(|_| folder.join("node_modules/dotenv").exists());
    let Some(node) = node else {
        return left_out("needs node and npm's dotenv (tests/run installs it)");
    };
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let files: Vec<String> = (0..20_000).map(|_| random.file()).collect();

    // Packages are looked for beside the script.
    let script = folder.join("dotenv.mjs");
    std::fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/dotenv.mjs"), &script).unwrap();
    let mut child =
        Command::new(node).arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let lines: String = files.iter().map(|file| serde_json::to_string(file).unwrap() + "\n").collect();
    let writer = std::thread::spawn(move || input.write_all(lines.as_bytes()).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(output.status.success());

    let answers = String::from_utf8(output.stdout).unwrap();
    let answers: Vec<BTreeMap<String, String>> =
        answers.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(answers.len(), files.len());
    assert!(answers.iter().filter(|answer| !answer.is_empty()).count() > files.len() / 2);
    // Text, ours, Node's.
    let mut differences = Vec::new();
    for (file, theirs) in files.iter().zip(&answers) {
        let ours: BTreeMap<String, String> = dotenv::parse(file).into_iter().collect();
        if ours != *theirs {
            differences.push((file, ours, theirs));
        }
    }
    assert!(
        differences.is_empty(),
        "{} of {} files, such as {:#?}",
        differences.len(),
        files.len(),
        &differences[..differences.len().min(5)]
    );
}

//! What the benches share: what a process has used, and the table of what was measured.

#![allow(dead_code)]

pub mod process;
pub mod report;

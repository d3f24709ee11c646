//! What was measured, against its bar: as a table, and as JSON in `target/benches/`.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde_json::{Map, Value, json};

/// Rows of the table: figures, with a bar or without.
pub struct Report {
    name: String,
    rows: Vec<Row>,
}

struct Row {
    what: String,
    /// For the table.
    figure: String,
    /// The same for programs: numbers by name, each with its unit in it.
    numbers: Map<String, Value>,
    bar: Option<(String, bool)>,
}

impl Report {
    /// One that goes to `target/benches/NAME.json`.
    pub fn new(name: &str) -> Report {
        Report { name: name.to_owned(), rows: Vec::new() }
    }

    /// A figure that is to be at most `bar`, in `unit`.
    pub fn at_most(&mut self, what: &str, figure: f64, bar: f64, unit: &str) {
        let text = format!("at most {}", number(bar, unit));
        self.row(what, number(figure, unit), of_one(figure, Some(bar), unit), Some((text, figure <= bar)));
    }

    /// A figure that is to be at least `bar`.
    pub fn at_least(&mut self, what: &str, figure: f64, bar: f64, unit: &str) {
        let text = format!("at least {}", number(bar, unit));
        self.row(what, number(figure, unit), of_one(figure, Some(bar), unit), Some((text, figure >= bar)));
    }

    /// A condition in words.
    pub fn holds(&mut self, what: &str, figure: String, numbers: &[(&str, f64)], bar: &str, met: bool) {
        self.row(what, figure, named(numbers), Some((bar.to_owned(), met)));
    }

    /// A figure to know.
    pub fn figure(&mut self, what: &str, figure: f64, unit: &str) {
        self.row(what, number(figure, unit), of_one(figure, None, unit), None);
    }

    /// Several figures in a sentence, and by name.
    pub fn note(&mut self, what: &str, text: String, numbers: &[(&str, f64)]) {
        self.row(what, text, named(numbers), None);
    }

    fn row(&mut self, what: &str, figure: String, numbers: Map<String, Value>, bar: Option<(String, bool)>) {
        // Shown at once: a later load may fail.
        let verdict = bar.as_ref().map_or(String::new(), |(bar, met)| {
            format!("  ({bar}: {})", if *met { "met" } else { "NOT MET" })
        });
        eprintln!("{what}: {figure}{verdict}");
        self.rows.push(Row { what: what.to_owned(), figure, numbers, bar });
    }

    /// The table in Markdown; the same as JSON into a file.
    pub fn print(&self) {
        println!("\n| what | measured | bar | |\n|---|---|---|---|");
        for row in &self.rows {
            let (bar, met) = match &row.bar {
                Some((bar, true)) => (bar.as_str(), "met"),
                Some((bar, false)) => (bar.as_str(), "**not met**"),
                None => ("", ""),
            };
            println!("| {} | {} | {bar} | {met} |", row.what, row.figure);
        }
        let file = self.file();
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, format!("{:#}\n", self.json())).unwrap();
        println!("\nas JSON: {}\n", file.display());
    }

    fn file(&self) -> PathBuf {
        Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("benches").join(format!("{}.json", self.name))
    }

    fn json(&self) -> Value {
        let rows = self.rows.iter().map(|row| {
            let mut fields = Map::new();
            fields.insert("what".to_owned(), json!(row.what));
            fields.insert("shown".to_owned(), json!(row.figure));
            fields.insert("numbers".to_owned(), Value::Object(row.numbers.clone()));
            if let Some((bar, met)) = &row.bar {
                fields.insert("bar".to_owned(), json!(bar));
                fields.insert("met".to_owned(), json!(met));
            }
            Value::Object(fields)
        });
        let rows: Vec<Value> = rows.collect();
        json!({
            "bench": self.name,
            "at": httpdate::fmt_http_date(SystemTime::now()),
            "kernel": std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim(),
            "cores": std::thread::available_parallelism().map_or(1, usize::from),
            "rows": rows,
        })
    }
}

fn of_one(figure: f64, bar: Option<f64>, unit: &str) -> Map<String, Value> {
    let mut numbers = named(&[("value", figure)]);
    if let Some(bar) = bar {
        numbers.insert("bar".to_owned(), json!(bar));
    }
    if !unit.is_empty() {
        numbers.insert("unit".to_owned(), json!(unit));
    }
    numbers
}

fn named(numbers: &[(&str, f64)]) -> Map<String, Value> {
    numbers.iter().map(|(name, number)| ((*name).to_owned(), json!(number))).collect()
}

/// A figure with as many digits as it deserves.
pub fn number(figure: f64, unit: &str) -> String {
    let text = match figure.abs() {
        large if large >= 100.0 => format!("{figure:.0}"),
        middle if middle >= 10.0 => format!("{figure:.1}"),
        _ => format!("{figure:.2}"),
    };
    if unit.is_empty() { text } else { format!("{text} {unit}") }
}

/// The middle of some figures.
pub fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// A quantile of sorted figures.
pub fn quantile(sorted: &[u32], share: f64) -> f64 {
    let at = (sorted.len() as f64 * share) as usize;
    sorted.get(at.min(sorted.len().saturating_sub(1))).map_or(f64::NAN, |figure| f64::from(*figure))
}

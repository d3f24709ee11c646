//! What was measured, against its bar.

use serde_json::{Map, Value, json};

/// Rows of the table and figures without a bar.
#[derive(Default)]
pub struct Report {
    rows: Vec<Row>,
}

struct Row {
    what: String,
    figure: String,
    bar: Option<(String, bool)>,
}

impl Report {
    /// A figure that is to be at most `bar`, in `unit`.
    pub fn at_most(&mut self, what: &str, figure: f64, bar: f64, unit: &str) {
        self.row(what, number(figure, unit), Some((format!("at most {}", number(bar, unit)), figure <= bar)));
    }

    /// A figure that is to be at least `bar`.
    pub fn at_least(&mut self, what: &str, figure: f64, bar: f64, unit: &str) {
        self.row(
            what,
            number(figure, unit),
            Some((format!("at least {}", number(bar, unit)), figure >= bar)),
        );
    }

    /// A condition in words.
    pub fn holds(&mut self, what: &str, figure: String, bar: &str, met: bool) {
        self.row(what, figure, Some((bar.to_owned(), met)));
    }

    /// A figure to know.
    pub fn note(&mut self, what: &str, figure: String) {
        self.row(what, figure, None);
    }

    fn row(&mut self, what: &str, figure: String, bar: Option<(String, bool)>) {
        // Shown at once: a later load may fail.
        let verdict = bar.as_ref().map_or(String::new(), |(bar, met)| {
            format!("  ({bar}: {})", if *met { "met" } else { "NOT MET" })
        });
        eprintln!("{what}: {figure}{verdict}");
        self.rows.push(Row { what: what.to_owned(), figure, bar });
    }

    /// The table in Markdown, and each row as JSON.
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
        println!();
        for row in &self.rows {
            let mut fields = Map::new();
            fields.insert("what".to_owned(), json!(row.what));
            fields.insert("figure".to_owned(), json!(row.figure));
            if let Some((bar, met)) = &row.bar {
                fields.insert("bar".to_owned(), json!(bar));
                fields.insert("met".to_owned(), json!(met));
            }
            println!("json {}", Value::Object(fields));
        }
    }
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

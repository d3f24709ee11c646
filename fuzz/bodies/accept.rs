//! The `Accept` header of a status page, against RFC 9110, 12.5.1, written down a second time: the most specific
//! range decides about a form, and the form with the highest quality is chosen.
//!
//! Input: the header's value.

use tidegate::status::{Form, chosen_form};

/// With the specificity that `*/*`, `text/*` and the name itself have for it.
const FORMS: [(Option<Form>, &str, &str); 3] = [
    (Some(Form::Text), "text/*", "text/plain"),
    (Some(Form::Json), "application/*", "application/json"),
    (None, "text/*", "text/html"),
];

pub fn run(data: &[u8]) {
    let Ok(accept) = std::str::from_utf8(data) else { return };
    let chosen = chosen_form(Some(accept));
    assert_eq!(chosen_form(Some(&accept.to_ascii_uppercase())), chosen, "case does not count: {accept:?}");
    // The order of ranges decides between equals only.
    let ranges: Vec<Range> = accept.split(',').map(Range::read).collect();
    let quality = |form: &(Option<Form>, &str, &str)| {
        let of = |name: &str| ranges.iter().rev().find(|range| range.name == name);
        let found = of(form.2).or_else(|| of(form.1)).or_else(|| of("*/*"));
        found.map_or(0, |range| range.thousandths)
    };
    let best = FORMS.iter().map(&quality).max().unwrap_or(0);
    let of_chosen = FORMS.iter().find(|form| form.0 == chosen).map_or(0, &quality);
    assert_eq!(of_chosen, best, "{chosen:?} for {accept:?}");
    if best == 0 {
        assert_eq!(chosen, Some(Form::Text), "nothing is wanted: {accept:?}");
    }
}

struct Range {
    name: String,
    /// The quality.
    thousandths: u32,
}

impl Range {
    fn read(text: &str) -> Range {
        let mut parts = text.split(';').map(str::trim);
        let name = parts.next().unwrap_or_default().to_ascii_lowercase();
        let quality = parts.find_map(|part| {
            let (key, value) = part.split_at_checked(2)?;
            key.eq_ignore_ascii_case("q=").then_some(value.trim())
        });
        let quality = quality.map_or(1.0, |text| text.parse::<f32>().unwrap_or(0.0));
        let quality = if quality.is_nan() { 0.0 } else { quality.clamp(0.0, 1.0) };
        Range { name, thousandths: (quality * 1000.0) as u32 }
    }
}

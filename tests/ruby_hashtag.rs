//! Hashtags against Ruby itself: every character, and random words in many scripts.
//!
//! Needs `ruby` (Debian: `apt-get install ruby`); says so and passes where it is absent. Characters that the
//! installed Ruby's Unicode version does not know yet are left out.

#![allow(clippy::unwrap_used)]

#[allow(dead_code, clippy::expect_used)]
#[path = "support/machine.rs"]
mod machine;

use std::io::Write;
use std::process::{Command, Stdio};

use tidegate::core::hashtag::normalise;

/// Rails' four steps. Reads and writes one string a line, as hexadecimal UTF-8, so that line feeds pass;
/// `-` for a string with characters that this Ruby does not know.
const RAILS: &str = r##"
FROM = 'ÀÁÂÃÄÅàáâãäåĀāĂăĄąÇçĆćĈĉĊċČčÐðĎďĐđÈÉÊËèéêëĒēĔĕĖėĘęĚěĜĝĞğĠġĢģĤĥĦħÌÍÎÏìíîïĨĩĪīĬĭĮįİıĴĵĶķĸĹĺĻļĽľĿŀŁłÑñŃńŅņŇňŉŊŋÒÓÔÕÖØòóôõöøŌōŎŏŐőŔŕŖŗŘřŚśŜŝŞşŠšſŢţŤťŦŧÙÚÛÜùúûüŨũŪūŬŭŮůŰűŲųŴŵÝýÿŶŷŸŹźŻżŽž'
TO = 'AAAAAAaaaaaaAaAaAaCcCcCcCcCcDdDdDdEEEEeeeeEeEeEeEeEeGgGgGgGgHhHhIIIIiiiiIiIiIiIiIiJjKkkLlLlLlLlLlNnNnNnNnnNnOOOOOOooooooOoOoOoRrRrRrSsSsSsSssTtTtTtUUUUuuuuUuUuUuUuUuUuWwYyyYyYZzZzZz'
DROPPED = /[^[:alnum:]\u0E47-\u0E4E_\u00B7\u30FB\u200c]/
UNKNOWN = if RbConfig::CONFIG['UNICODE_VERSION'].to_i < 16
  # Marks that became alphabetic with Unicode 16 (Ruby 3.4).
  /\P{Assigned}|[\u0363-\u036F\u0C04\u0F82\u0F83\u1DD3-\u1DE6\u{11080}\u{11081}]/
else
  /\P{Assigned}/
end
out = +''
STDIN.each_line do |line|
  text = [line.chomp].pack('H*').force_encoding('UTF-8')
  if text.match?(UNKNOWN)
    out << "-\n"
  else
    tag = text.unicode_normalize(:nfkc).downcase.tr(FROM, TO).gsub(DROPPED, '')
    out << tag.unpack1('H*') << "\n"
  end
end
STDOUT.write(out)
"##;

/// First and last letters of the blocks that the random words are made of.
const SCRIPTS: &[(char, char)] = &[
    ('A', 'z'),
    ('\u{C0}', '\u{24F}'),
    ('\u{300}', '\u{36F}'),
    ('\u{370}', '\u{3FF}'),
    ('\u{400}', '\u{4FF}'),
    ('\u{591}', '\u{5F4}'),
    ('\u{600}', '\u{6FF}'),
    ('\u{900}', '\u{97F}'),
    ('\u{980}', '\u{9FF}'),
    ('\u{B80}', '\u{BFF}'),
    ('\u{E01}', '\u{E5B}'),
    ('\u{E81}', '\u{EDF}'),
    ('\u{1000}', '\u{109F}'),
    ('\u{1100}', '\u{11FF}'),
    ('\u{1E00}', '\u{1FFF}'),
    ('\u{2000}', '\u{206F}'),
    ('\u{3040}', '\u{30FF}'),
    ('\u{4E00}', '\u{4EFF}'),
    ('\u{AC00}', '\u{ACFF}'),
    ('\u{FB00}', '\u{FDFF}'),
    ('\u{FF00}', '\u{FFEF}'),
    ('\u{1F300}', '\u{1F5FF}'),
];

#[test]
fn tags_are_normalised_as_ruby_does_it() {
    let mut texts: Vec<String> = ('\0'..=char::MAX).filter(|c| !is_uniform(*c)).map(String::from).collect();
    texts.extend(random_words(20_000));

    let Some(answers) = ask_ruby(&texts) else {
        return machine::left_out("ruby is not installed (Debian: apt-get install ruby)");
    };
    assert_eq!(answers.len(), texts.len());
    let compared = texts
        .iter()
        .zip(&answers)
        .filter_map(|(text, answer)| Some((text, answer.as_ref()?)))
        .inspect(|(text, answer)| {
            assert_eq!(normalise(text).as_str(), answer.as_str(), "{}", text.escape_unicode())
        })
        .count();
    assert!(compared > 50_000, "only {compared} of {} compared", texts.len());
}

/// Private use, and ideographs and syllables that differ in nothing that matters here.
fn is_uniform(c: char) -> bool {
    matches!(c, '\u{4F00}'..='\u{9EFF}' | '\u{AD00}'..='\u{D700}' | '\u{E000}'..='\u{F8FF}'
        | '\u{20000}'..='\u{2F7FF}' | '\u{2FB00}'..='\u{DFFFF}' | '\u{F0000}'..)
}

/// Words of 1 to 12 characters, mostly of one script, always the same ones.
fn random_words(count: usize) -> impl Iterator<Item = String> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut next = move |below: u32| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) % u64::from(below)) as u32
    };
    (0..count).map(move |_| {
        let home = SCRIPTS[next(SCRIPTS.len() as u32) as usize];
        (0..=next(12))
            .filter_map(|_| {
                let (first, last) =
                    if next(4) == 0 { SCRIPTS[next(SCRIPTS.len() as u32) as usize] } else { home };
                let (first, last) = (u32::from(first), u32::from(last));
                char::from_u32(first + next(last - first + 1))
            })
            .collect()
    })
}

/// Ruby's answers in order, `None` where it does not know a character; `None` for all without Ruby.
fn ask_ruby(texts: &[String]) -> Option<Vec<Option<String>>> {
    let mut ruby = Command::new("ruby")
        .args(["-Ku", "-e", RAILS])
        .env("LANG", "C.UTF-8")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .ok()?;
    let mut input = String::new();
    for text in texts {
        text.bytes().for_each(|byte| input.push_str(&format!("{byte:02x}")));
        input.push('\n');
    }
    let mut stdin = ruby.stdin.take().unwrap();
    // The script writes nothing before it has read everything, so this cannot block on a full pipe.
    stdin.write_all(input.as_bytes()).unwrap();
    drop(stdin);
    let output = ruby.wait_with_output().unwrap();
    assert!(output.status.success(), "ruby failed: {}", output.status);
    let lines = String::from_utf8(output.stdout).unwrap();
    Some(lines.lines().map(|line| (line != "-").then(|| from_hex(line))).collect())
}

fn from_hex(line: &str) -> String {
    let bytes =
        (0..line.len()).step_by(2).map(|i| u8::from_str_radix(&line[i..i + 2], 16).unwrap()).collect();
    String::from_utf8(bytes).unwrap()
}

//! Custom filters against Ruby's own regular expressions, built the way Rails builds them: the same keyword
//! must match the same text at the same place, in a dozen scripts.

#![allow(clippy::unwrap_used)]

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Stdio};

use tidegate::core::filter::{FilterRow, Filters, SearchText};

/// Reads one JSON array `[[keyword, whole_word] …, text]` a line, and answers with the match or null.
const RUBY: &str = r##"
require 'json'
$stdin.set_encoding('UTF-8'); $stdout.set_encoding('UTF-8')
word = ->(edge, keyword) { (edge == :start ? /\A[[:word:]]/ : /[[:word:]]\z/).match?(keyword) ? '\b' : '' }
$stdin.each_line do |line|
  keywords, text = JSON.parse(line)
  rules = keywords.map do |keyword, whole|
    escaped = Regexp.escape(keyword)
    whole ? /(?mix:#{word.(:start, keyword)}#{escaped}#{word.(:end, keyword)})/ : /#{escaped}/i
  end
  match = Regexp.union(rules).match(text)
  puts JSON.generate([match && match.to_s])
end
"##;

/// Words and texts per script; keywords are cut from them, and combined with punctuation.
const SCRIPTS: [&str; 16] = [
    "The quick Brown fox_jumps over 12 lazy DOGS, don't they? re-post #FilterMe",
    "Größe STRASSE straße Äpfel über Übermut ẞcharf fließen Fluss",
    "café ÉTÉ naïve ça Œuvre l'été cœur crème brûlée",
    "İstanbul ışık Işık DİYARBAKIR diyarbakır ılık",
    "Ελλάδα ΕΛΛΆΔΑ Οδός ΟΔΌΣ σίσυφος ΣΊΣΥΦΟΣ ΐ ΰ ᾳ",
    "Москва МОСКВА ёлка Ёлка їжак Їжак ґанок",
    "日本語 テスト 東京都 カタカナ・ナカグロ ひらがな ー",
    "中文 测试 北京 繁體字 简体字",
    "한국어 서울 테스트 대한민국",
    "العربية السَّلَامُ عَلَيْكُم مدرسة مُدَرِّس",
    "עברית שָׁלוֹם ירושלים בְּרֵאשִׁית",
    "हिन्दी नमस्ते दिल्ली क्षत्रिय",
    "ภาษาไทย ไม่ น้ำ กรุงเทพ",
    "தமிழ் வணக்கம் ქართული საქართველო Հայերեն ՀԱՅԵՐԵՆ և",
    "ﬁne oﬀer eﬃcient ﬅop ŉdebele ǰ ẖ Å \u{212b} K \u{212a} ſtop \u{1e9b}",
    "😀 👍🏽 👩\u{200d}💻 ☃️ a\u{200c}b a\u{200d}b x\u{301}y ①② Ⅷ ⅷ Ⓐ ⓐ ٣ ३",
];

/// A small generator (xorshift), so that a run can be had again.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % bound
    }

    fn pick<'a>(&mut self, choices: &[&'a str]) -> &'a str {
        choices[self.below(choices.len())]
    }
}

fn change_case(random: &mut Random, text: &str) -> String {
    match random.below(4) {
        0 => text.to_uppercase(),
        1 => text.to_lowercase(),
        _ => text.to_owned(),
    }
}

type Case = (Vec<(String, bool)>, String);

fn case(random: &mut Random) -> Case {
    let script = SCRIPTS[random.below(SCRIPTS.len())];
    let words: Vec<&str> = script.split(' ').collect();
    let joints = [" ", "", "-", "_", ".", "\n\n", "'", "\u{a0}", "\u{3000}", "#", "@", "1"];
    let mut text = String::new();
    for _ in 0..random.below(9) {
        let word = random.pick(&words);
        text.push_str(&change_case(random, word));
        text.push_str(if random.below(3) > 0 { " " } else { random.pick(&joints) });
    }
    let mut keywords = Vec::new();
    for _ in 0..=random.below(3) {
        let word = random.pick(&words);
        let word = change_case(random, word);
        let characters: Vec<char> = word.chars().collect();
        let start = if random.below(2) == 0 { 0 } else { random.below(characters.len()) };
        let end = if random.below(2) == 0 {
            characters.len()
        } else {
            start + random.below(characters.len() - start) + 1
        };
        let mut keyword: String = characters[start..end].iter().collect();
        if random.below(5) == 0 {
            let joint = random.pick(&joints);
            let more = random.pick(&words);
            let _ = write!(keyword, "{joint}{more}");
        }
        if random.below(12) == 0 {
            keyword.push_str(
                random
                    .pick(&["*", "+", "?", "(", ")", "[", "]", "{2}", "|", "^", "$", "\\", "\\b", "/", " "]),
            );
        }
        keywords.push((keyword, random.below(2) == 0));
    }
    (keywords, text)
}

fn ours((keywords, text): &Case) -> Option<String> {
    let rows: Vec<FilterRow> = keywords
        .iter()
        .map(|(keyword, whole_word)| FilterRow {
            id: 1,
            keyword: keyword.clone(),
            whole_word: *whole_word,
            ..FilterRow::default()
        })
        .collect();
    let mut out = Vec::new();
    if !Filters::compile(&rows)
        .apply(&SearchText::new(text.clone()), 0, &mut { usize::MAX }, &mut out)
        .unwrap()
    {
        return None;
    }
    let results: serde_json::Value = serde_json::from_slice(&out).unwrap();
    Some(results[0]["keyword_matches"][0].as_str().unwrap().to_owned())
}

/// What Ruby finds in each case; none where there is no Ruby.
fn rubys(cases: &[Case]) -> Option<Vec<Option<String>>> {
    let child =
        Command::new("ruby").args(["-W0", "-e", RUBY]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let Ok(mut child) = child else {
        eprintln!("LEFT OUT: this test needs Ruby (Debian: apt-get install ruby)");
        return None;
    };
    let mut input = String::new();
    for case in cases {
        let _ = writeln!(input, "{}", serde_json::to_string(case).unwrap());
    }
    let mut stdin = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(output.status.success());
    let answers = String::from_utf8(output.stdout).unwrap();
    Some(
        answers
            .lines()
            .map(|line| serde_json::from_str::<[Option<String>; 1]>(line).unwrap()[0].take())
            .collect(),
    )
}

#[test]
fn keywords_match_as_in_ruby() {
    let mut random = Random(0x7469_6465_6761_7465);
    let cases: Vec<Case> = (0..20_000).map(|_| case(&mut random)).collect();
    let Some(expected) = rubys(&cases) else { return };
    assert_eq!(expected.len(), cases.len());
    let different: Vec<_> = cases
        .iter()
        .zip(&expected)
        .filter_map(|(case, expected)| {
            let got = ours(case);
            (got != *expected).then(|| format!("{case:?}: ours {got:?}, Ruby's {expected:?}"))
        })
        .collect();
    let found = expected.iter().flatten().count();
    assert!(found > 2000 && found < 18_000, "{found} of the cases match: they show little");
    assert!(
        different.is_empty(),
        "{} of {}:\n{}",
        different.len(),
        cases.len(),
        different[..different.len().min(20)].join("\n")
    );
}

/// Each character alone: as a keyword in its other cases, and as part of a word.
#[test]
fn every_character_folds_and_bounds_words_as_in_ruby() {
    // Left out: letters that are newer than the Unicode of Ruby 3.1, and two whose other case has another
    // length, which do not match themselves there.
    let left_out = ['Ⱥ', 'ⱥ', 'Ⱦ', 'ⱦ', 'ƛ', 'ɤ', '\u{1dfa}', '\u{2c2f}', '\u{2c5f}'];
    let ranges = [
        0x20..0x370,
        0x370..0x530,
        0x530..0x590,
        0x10a0..0x1100,
        0x13a0..0x1400,
        0x1c80..0x1c89,
        0x1d00..0x2000,
        0x2100..0x2190,
        0x24b0..0x24ea,
        0x2c00..0x2d00,
        0xa640..0xa7c0,
        0xab30..0xabc0,
        0xfb00..0xfb18,
        0xff21..0xff5b,
        0x10400..0x10450,
    ];
    let mut cases: Vec<Case> = Vec::new();
    let characters = ranges.into_iter().flatten().filter_map(char::from_u32);
    for c in characters.filter(|c| !left_out.contains(c)) {
        for text in [c.to_lowercase().to_string(), c.to_uppercase().to_string()] {
            cases.push((vec![(c.to_string(), false)], text));
        }
        cases.push((vec![("a".into(), true)], format!("{c}a")));
    }
    let Some(expected) = rubys(&cases) else { return };
    let different: Vec<_> = cases
        .iter()
        .zip(&expected)
        .filter(|(case, expected)| ours(case) != **expected)
        .map(|(case, expected)| format!("{case:?}: ours {:?}, Ruby's {expected:?}", ours(case)))
        .collect();
    assert!(
        different.is_empty(),
        "{} of {}:\n{}",
        different.len(),
        cases.len(),
        different[..different.len().min(40)].join("\n")
    );
}

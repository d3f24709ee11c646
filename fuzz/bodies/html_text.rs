//! The text of HTML: the text of html5ever's tree, for fragments as statuses are made of; any bytes do no harm.
//!
//! Input: choices of what stands next. They build the elements that a status may have (see `next`), with
//! arbitrary text, attributes, comments and entities in between. The input is also read as HTML itself.

use html5ever::tendril::TendrilSink;
use html5ever::{ParseOpts, QualName, local_name, ns, parse_fragment};
use markup5ever_rcdom::{Handle, NodeData, RcDom};
use tidegate::core::html_text::push_text;

use super::input::Input;

const DEPTH_MAX: usize = 12;

pub fn run(data: &[u8]) {
    let any = String::from_utf8_lossy(data);
    let mut out = String::new();
    push_text(&any, &mut out);
    // The longest entity stands for two characters; a line feed is added for each tag at most.
    assert!(out.len() <= 3 * any.len(), "{} bytes of {}", out.len(), any.len());

    let html = fragment(&mut Input::new(data));
    let mut out = String::from("before ");
    push_text(&html, &mut out);
    let mut expected = String::from("before ");
    let mut writer = Oracle { out: &mut expected, paragraph_ended: false };
    let context = QualName::new(None, ns!(html), local_name!("body"));
    let mut options = ParseOpts::default();
    options.tree_builder.scripting_enabled = false;
    // A byte order mark begins files; this is a text, in which it is a character.
    options.tokenizer.discard_bom = false;
    let dom = parse_fragment(RcDom::default(), options, context, Vec::new(), false).one(html.clone());
    writer.walk(&dom.document);
    assert_eq!(out, expected, "{html}");
}

/// `textContent`, a line feed for each `<br>`, two where a paragraph ends and more follows.
struct Oracle<'a> {
    out: &'a mut String,
    paragraph_ended: bool,
}

impl Oracle<'_> {
    fn push(&mut self, text: &str) {
        if !text.is_empty() {
            if std::mem::take(&mut self.paragraph_ended) {
                self.out.push_str("\n\n");
            }
            self.out.push_str(text);
        }
    }

    fn walk(&mut self, node: &Handle) {
        let mut is_paragraph = false;
        match &node.data {
            NodeData::Text { contents } => self.push(&contents.borrow()),
            NodeData::Element { name, .. } if &*name.local == "br" => self.push("\n"),
            NodeData::Element { name, .. } => is_paragraph = &*name.local == "p",
            _ => {}
        }
        for child in node.children.borrow().iter() {
            self.walk(child);
        }
        self.paragraph_ended |= is_paragraph;
    }
}

fn fragment(input: &mut Input<'_>) -> String {
    let mut html = String::new();
    let mut open: Vec<&str> = Vec::new();
    for _ in 0..200 {
        if input.is_empty() {
            break;
        }
        next(input, &mut html, &mut open);
    }
    while let Some(name) = open.pop() {
        html.push_str(&format!("</{name}>"));
    }
    html
}

fn next(input: &mut Input<'_>, html: &mut String, open: &mut Vec<&'static str>) {
    const ELEMENTS: &[&str] = &[
        "p",
        "p",
        "p",
        "span",
        "a",
        "b",
        "i",
        "em",
        "strong",
        "ul",
        "ol",
        "li",
        "blockquote",
        "pre",
        "code",
        "del",
        "u",
        "unknown",
        "div",
        "h1",
        "template",
    ];
    match input.below(16) {
        0..=3 => html.push_str(&plain(input, 24)),
        4..=6 => {
            let name = input.of(ELEMENTS);
            // A link within a link, or a heading in a heading, is moved by the standard.
            if open.len() >= DEPTH_MAX || (open.contains(&name) && name != "span") {
                return;
            }
            html.push_str(&format!("<{name}{}>", attributes(input)));
            open.push(name);
        }
        7 | 8 => {
            if let Some(name) = open.pop() {
                html.push_str(&format!("</{name}>"));
            }
        }
        9 => html.push_str(input.of(&["<br>", "<br/>", "<br />", "<BR class=x>", "</br>"])),
        10 => html.push_str(&format!("<img{}>", attributes(input))),
        11 => {
            let comment = plain(input, 16).replace("--", "").replace('>', "");
            html.push_str(&format!("<!--{comment} -->"));
        }
        12 => html.push_str(&format!("&{};", input.text(8).replace(['<', '\0'], ""))),
        13 => html.push_str(input.of(&[
            "&amp;",
            "&lt;",
            "&gt",
            "&quot;",
            "&#39;",
            "&nbsp;",
            "&notin;",
            "&not",
            "&eacute;",
            "&#128512;",
            "&#x80;",
            "&#xD800;",
            "&#0;",
            "&CounterClockwiseContourIntegral;",
            "&copyx",
            "&",
            "&#",
            "&#x",
        ])),
        14 => html.push_str(input.of(&[
            "<script>a<b>&amp;</script>",
            "<style><p></style>",
            "<!doctype html>",
            "< a",
        ])),
        _ => html.push_str(input.of(&["\r\n", "\r", "\u{c}", "\u{a0}", "\u{feff}", "猫", "\u{1f30a}"])),
    }
}

fn attributes(input: &mut Input<'_>) -> String {
    let value = input.text(12);
    match input.below(6) {
        0 => format!(" class=\"{}\"", value.replace('"', "")),
        1 => format!(" href='{}'", value.replace('\'', "")),
        2 => " a b=c".to_owned(),
        _ => String::new(),
    }
}

fn plain(input: &mut Input<'_>, most: usize) -> String {
    input.text(most).replace('<', "")
}

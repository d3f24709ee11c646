//! The text of a status's HTML, as custom filters read it.
//!
//! What the DOM's `textContent` of the parsed fragment would be, with a line feed for each `<br>` and two where
//! a paragraph ends and more text follows. Tags and comments are gone, entities decoded. Made with a real
//! HTML5 tokenizer and without a tree: of tree construction only what changes the text of a status is
//! repeated here (which elements hold raw text, templates that are not part of the text, paragraphs that
//! another block closes, the line feed that `<pre>` swallows). Where statuses cannot go, since Mastodon
//! sanitises them (tables, foreign content), text may come in another order than a browser's.
//!
//! Linear in the input, which is bounded by `MAX_MESSAGE_BYTES`. Never fails: all text is HTML.
//! Tested against html5ever's tree over random fragments.

use html5gum::emitters::callback::{CallbackEmitter, CallbackEvent};
use html5gum::{Span, State, Tokenizer};

/// Appends the text of the fragment `html` to `out`.
pub fn push_text(html: &str, out: &mut String) {
    if memchr::memchr3(b'<', b'&', b'\r', html.as_bytes()).is_none() && !html.contains('\0') {
        out.push_str(html);
        return;
    }
    let mut writer = Writer {
        out,
        raw: None,
        templates: 0,
        paragraph_open: false,
        paragraph_ended: false,
        swallow_line_feed: false,
    };
    let emitter = CallbackEmitter::new(|event: CallbackEvent<'_>, _: Span<()>| writer.event(event));
    let mut tokenizer = Tokenizer::new_with_emitter(html, emitter);
    while let Some(Ok(state)) = tokenizer.next() {
        tokenizer.set_state(state);
    }
}

struct Writer<'a> {
    out: &'a mut String,
    /// The start tag whose end has not been seen: how what follows it is to be read.
    raw: Option<State>,
    templates: usize,
    paragraph_open: bool,
    paragraph_ended: bool,
    /// The next text's first line feed is not part of the text.
    swallow_line_feed: bool,
}

impl Writer<'_> {
    /// What the tokenizer has seen; the answer, after a start tag, is how to read on.
    fn event(&mut self, event: CallbackEvent<'_>) -> Option<State> {
        match event {
            CallbackEvent::OpenStartTag { name } => self.start_tag(name),
            CallbackEvent::CloseStartTag { .. } => return self.raw.take(),
            CallbackEvent::EndTag { name } => self.end_tag(name),
            CallbackEvent::String { value } => self.text(value),
            CallbackEvent::Comment { .. } | CallbackEvent::Doctype { .. } => self.swallow_line_feed = false,
            _ => {}
        }
        None
    }

    fn start_tag(&mut self, name: &[u8]) {
        self.swallow_line_feed = matches!(name, b"pre" | b"listing" | b"textarea");
        self.raw = match name {
            b"textarea" | b"title" => Some(State::RcData),
            b"script" => Some(State::ScriptData),
            b"style" | b"iframe" | b"xmp" | b"noembed" | b"noframes" => Some(State::RawText),
            b"plaintext" => Some(State::PlainText),
            _ => None,
        };
        match name {
            b"template" => self.templates += 1,
            _ if self.templates > 0 => {}
            b"br" => self.line_break(),
            _ if is_block(name) => {
                self.end_paragraph();
                self.paragraph_open = name == b"p";
            }
            _ => {}
        }
    }

    fn end_tag(&mut self, name: &[u8]) {
        self.swallow_line_feed = false;
        match name {
            b"template" => self.templates = self.templates.saturating_sub(1),
            _ if self.templates > 0 => {}
            // The standard reads this mistake as a line break, and an end without a start as a paragraph.
            b"br" => self.line_break(),
            b"p" => {
                self.paragraph_open = true;
                self.end_paragraph();
            }
            _ if is_block(name) => self.end_paragraph(),
            _ => {}
        }
    }

    fn text(&mut self, value: &[u8]) {
        if self.templates > 0 {
            return;
        }
        let swallow = std::mem::take(&mut self.swallow_line_feed);
        let value = if swallow { value.strip_prefix(b"\n").unwrap_or(value) } else { value };
        // The tokenizer was given UTF-8 and splits it at characters only.
        let text = String::from_utf8_lossy(value);
        for piece in text.split('\0').filter(|piece| !piece.is_empty()) {
            self.separate();
            self.out.push_str(piece);
        }
    }

    fn line_break(&mut self) {
        self.separate();
        self.out.push('\n');
    }

    fn end_paragraph(&mut self) {
        self.paragraph_ended |= std::mem::take(&mut self.paragraph_open);
    }

    /// Writes what stands between a paragraph that ended and what follows it.
    fn separate(&mut self) {
        if std::mem::take(&mut self.paragraph_ended) {
            self.out.push_str("\n\n");
        }
    }
}

/// Elements whose start ends an open paragraph, as does the end of one that contains it.
fn is_block(name: &[u8]) -> bool {
    matches!(
        name,
        b"p" | b"address"
            | b"article"
            | b"aside"
            | b"blockquote"
            | b"center"
            | b"details"
            | b"dialog"
            | b"dir"
            | b"div"
            | b"dl"
            | b"dd"
            | b"dt"
            | b"fieldset"
            | b"figcaption"
            | b"figure"
            | b"footer"
            | b"form"
            | b"h1"
            | b"h2"
            | b"h3"
            | b"h4"
            | b"h5"
            | b"h6"
            | b"header"
            | b"hgroup"
            | b"hr"
            | b"li"
            | b"listing"
            | b"main"
            | b"menu"
            | b"nav"
            | b"ol"
            | b"plaintext"
            | b"pre"
            | b"search"
            | b"section"
            | b"summary"
            | b"table"
            | b"ul"
            | b"xmp"
    )
}

#[cfg(test)]
mod tests {
    use html5ever::tendril::TendrilSink;
    use html5ever::{ParseOpts, QualName, local_name, ns, parse_fragment};
    use markup5ever_rcdom::{Handle, NodeData, RcDom};
    use proptest::prelude::*;

    use super::*;

    fn text(html: &str) -> String {
        let mut out = String::new();
        push_text(html, &mut out);
        out
    }

    /// `textContent` of html5ever's tree, with the line feeds that were asked for.
    fn oracle(html: &str) -> String {
        let context = QualName::new(None, ns!(html), local_name!("body"));
        let mut options = ParseOpts::default();
        options.tree_builder.scripting_enabled = false;
        let dom = parse_fragment(RcDom::default(), options, context, Vec::new(), false).one(html.to_owned());
        let (mut out, mut ended) = (String::new(), false);
        walk(&dom.document, &mut out, &mut ended);
        out
    }

    fn walk(node: &Handle, out: &mut String, ended: &mut bool) {
        let mut push = |text: &str, ended: &mut bool| {
            if std::mem::take(ended) {
                out.push_str("\n\n");
            }
            out.push_str(text);
        };
        let mut is_paragraph = false;
        match &node.data {
            NodeData::Text { contents } if !contents.borrow().is_empty() => push(&contents.borrow(), ended),
            NodeData::Element { name, .. } => match &*name.local {
                "br" => push("\n", ended),
                "p" => is_paragraph = true,
                _ => {}
            },
            _ => {}
        }
        for child in node.children.borrow().iter() {
            walk(child, out, ended);
        }
        *ended |= is_paragraph;
    }

    #[test]
    fn what_statuses_look_like() {
        let cases = [
            ("", ""),
            ("plain", "plain"),
            ("<p>one</p>", "one"),
            ("<p>one</p><p>two</p>", "one\n\ntwo"),
            ("<p>one<br>two<br/>three<br />four</p>", "one\ntwo\nthree\nfour"),
            (
                "<p>a &amp; b &lt;c&gt; &quot;d&#39; &#x1F600; &nbsp;&notin; &unknown; &amp</p>",
                "a & b <c> \"d' 😀 \u{a0}∉ &unknown; &",
            ),
            (
                "<p><span class=\"h-card\"><a href=\"https://x.example/@y\" class=\"u-url mention\">@<span>y</span></a></span> hi</p>",
                "@y hi",
            ),
            (
                "<p><a href=\"x\"><span class=\"invisible\">https://</span><span>exa.mple/a</span></a></p>",
                "https://exa.mple/a",
            ),
            ("a<!-- not <b>this</b> -->b<![CDATA[c]]>d", "abd"),
            ("<script>if (1 < 2) '</p>'</script>x", "if (1 < 2) '</p>'x"),
            ("<style>a&amp;b</style><title>a&amp;b</title>", "a&amp;ba&b"),
            ("<template>gone<br><p>x</p></template>there", "there"),
            ("<pre>\n\n two</pre>", "\n two"),
            ("<ul><li>a</li><li>b</li></ul>", "ab"),
            ("<p>open<ul><li>a</li></ul>", "open\n\na"),
            ("a < b > c <", "a < b > c <"),
            ("x<", "x<"),
            ("a\r\nb\rc", "a\nb\nc"),
            ("a\0b &#0; &#xD800; &#x110000;", "ab \u{fffd} \u{fffd} \u{fffd}"),
        ];
        for (html, expected) in cases {
            assert_eq!(text(html), expected, "{html}");
            assert_eq!(oracle(html), expected, "oracle, {html}");
        }
    }

    fn fragment() -> impl Strategy<Value = String> {
        let leaf = prop_oneof![
            6 => "[a-c ẞ猫&;>\\n]{0,8}",
            1 => Just("< a".to_owned()),
            2 => Just("<br>".to_owned()),
            1 => Just("<br />".to_owned()),
            1 => Just("</br>".to_owned()),
            1 => Just("</p>".to_owned()),
            1 => Just("<!-- <p>no</p> -->".to_owned()),
            1 => Just("&amp;&lt;&eacute;&#128512;&ampx&copy".to_owned()),
            1 => Just("<script>a<b>&amp;</script>".to_owned()),
            1 => Just("<style><p></style>".to_owned()),
            1 => Just("<textarea>\n&lt;<b></textarea>".to_owned()),
            1 => Just("<img src='a>b' alt=\"x\">".to_owned()),
            1 => Just("<!doctype html>".to_owned()),
            1 => Just("<ruby>a<rp>(</rp><rt>b</rt></ruby>".to_owned()),
        ];
        leaf.prop_recursive(4, 48, 6, |inner| {
            (
                proptest::sample::select(vec![
                    "p",
                    "p",
                    "p",
                    "span",
                    "a",
                    "b",
                    "i",
                    "em",
                    "ul",
                    "ol",
                    "li",
                    "blockquote",
                    "pre",
                    "code",
                    "del",
                    "template",
                    "unknown",
                    "div",
                    "h1",
                ]),
                proptest::collection::vec(inner, 0..5),
                proptest::bool::weighted(0.9),
            )
                .prop_map(|(name, inner, closed)| {
                    // Other elements left open swallow the rest in ways no tokenizer sees.
                    let closed = closed || name != "p";
                    let end = if closed { format!("</{name}>") } else { String::new() };
                    format!("<{name} class=\"x\">{}{end}", inner.concat())
                })
        })
    }

    proptest! {
        #[test]
        fn the_text_is_that_of_a_browsers_tree(html in fragment()) {
            prop_assert_eq!(text(&html), oracle(&html), "{}", html);
        }

        #[test]
        fn any_text_is_html(html in "\\PC{0,64}") {
            text(&html);
        }
    }
}

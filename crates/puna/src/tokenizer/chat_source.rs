//! `{% generation %}` blocks: template text enters, text that the engine understands leaves.
//!
//! Transformers marks what the assistant says with a block that the engine does not know. It
//! becomes a filter block, whose filter puts marks around the text; the marks are taken out of the
//! result again and leave the spans.

use std::ops::Range;

/// Name of the filter that marks a block.
pub(super) const FILTER: &str = "puna_generation";

/// Replaces generation blocks; strings, comments and raw blocks stay as they are.
pub(super) fn rewrite_generation(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    let mut in_raw = false;
    while let Some(at) = rest.find('{') {
        let (text, tag) = rest.split_at(at);
        out.push_str(text);
        let end = match tag.as_bytes().get(1) {
            Some(b'%') => code_end(tag, "%}"),
            Some(b'{') if !in_raw => code_end(tag, "}}"),
            Some(b'#') if !in_raw => tag.find("#}").map_or(tag.len(), |at| at + 2),
            _ => 1,
        };
        let (tag, tail) = tag.split_at(end);
        rest = tail;
        let word = tag
            .strip_prefix("{%")
            .and_then(|body| body.strip_suffix("%}"))
            .map(|body| body.trim_matches(['-', '+']).trim());
        match word {
            Some("endraw") => in_raw = false,
            Some("raw") => in_raw = true,
            _ => {}
        }
        match word.filter(|_| !in_raw) {
            Some("generation") => {
                out.push_str(&tag.replacen("generation", &format!("filter {FILTER}"), 1));
            }
            Some("endgeneration") => out.push_str(&tag.replacen("endgeneration", "endfilter", 1)),
            _ => out.push_str(tag),
        }
    }
    out.push_str(rest);
    out
}

/// Where a tag that starts the text ends, strings skipped; a tag without an end is one character.
fn code_end(text: &str, close: &str) -> usize {
    let bytes = text.as_bytes();
    let (mut at, mut quote) = (2, None);
    while at < bytes.len() {
        match (quote, bytes[at]) {
            (Some(_), b'\\') => at += 1,
            (Some(open), byte) if open == byte => quote = None,
            (None, byte @ (b'"' | b'\'')) => quote = Some(byte),
            (None, _) if bytes[at..].starts_with(close.as_bytes()) => return at + close.len(),
            _ => {}
        }
        at += 1;
    }
    1
}

/// Takes the marks out of the text; the spans are byte ranges of what is left.
pub(super) fn take_marks(text: &str, open: &str, close: &str) -> (String, Vec<Range<usize>>) {
    let mut out = String::with_capacity(text.len());
    let (mut spans, mut begins) = (Vec::new(), Vec::new());
    let mut rest = text;
    loop {
        let next = match (rest.find(open), rest.find(close)) {
            (Some(a), Some(b)) if a < b => (a, true),
            (_, Some(b)) => (b, false),
            (Some(a), None) => (a, true),
            (None, None) => break,
        };
        let (at, is_open) = next;
        out.push_str(&rest[..at]);
        rest = &rest[at + if is_open { open.len() } else { close.len() }..];
        if is_open {
            begins.push(out.len());
        } else if let Some(begin) = begins.pop() {
            spans.push(begin..out.len());
        }
    }
    out.push_str(rest);
    (out, spans)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_real_tags_are_rewritten() {
        let source = "{%- generation -%}a{{ '{% generation %}' }}{# {% generation %} #}\
                      {% raw %}{% generation %}{% endraw %}{% endgeneration +%} { {% x";
        let expected = "{%- filter puna_generation -%}a{{ '{% generation %}' }}{# {% generation %} #}\
                        {% raw %}{% generation %}{% endraw %}{% endfilter +%} { {% x";
        assert_eq!(rewrite_generation(source), expected);
    }

    #[test]
    fn marks_become_spans() {
        let (text, spans) = take_marks("a<é>b<c>", "<", ">");
        assert_eq!(text, "aébc");
        assert_eq!(spans, [1..3, 4..5]);
    }
}

//! Template text enters, text that the engine runs safely leaves.
//!
//! Three things are rewritten. `{% generation %}` blocks, which the engine does not know, become
//! filter blocks whose marks give the spans of what the assistant said. And every operand of every
//! expression passes through a filter that weighs it: the engine's fuel does not see lists that
//! hold themselves many times over, and a few lines of template would ask for terabytes. And
//! `'…' % x`, which is arithmetic to the engine, becomes a filter that formats.

use std::ops::Range;

/// Name of the filter that marks a generation block.
pub(super) const GENERATION: &str = "puna_generation";
/// Name of the filter that weighs an operand.
pub(super) const WEIGH: &str = "puna_weigh";

/// Name of the filter that formats as Python's `%` does.
pub(super) const PERCENT: &str = "puna_percent";

/// What a template is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Segment<'s> {
    /// Text, comments, raw blocks, and tags without an end.
    Text(&'s str),
    /// `{{ … }}`, with its brackets.
    Expression(&'s str),
    /// `{% … %}`, with its brackets.
    Statement(&'s str),
}

fn segments<'s>(source: &'s str) -> Vec<Segment<'s>> {
    let mut out = Vec::new();
    let mut rest = source;
    while let Some(at) = rest.find('{') {
        let (text, tag) = rest.split_at(at);
        out.push(Segment::Text(text));
        let (end, segment): (usize, fn(&'s str) -> Segment<'s>) = match tag.as_bytes().get(1) {
            Some(b'%') if statement_word(tag) == "raw" => (raw_end(tag), Segment::Text),
            Some(b'%') => (code_end(tag, "%}"), Segment::Statement),
            Some(b'{') => (code_end(tag, "}}"), Segment::Expression),
            Some(b'#') => (tag.find("#}").map_or(1, |at| at + 2), Segment::Text),
            _ => (1, Segment::Text),
        };
        let (tag, tail) = tag.split_at(end);
        out.push(if end == 1 { Segment::Text(tag) } else { segment(tag) });
        rest = tail;
    }
    out.push(Segment::Text(rest));
    out
}

/// The first word of a statement.
fn statement_word(tag: &str) -> &str {
    let body = tag.get(2..).unwrap_or_default().trim_start_matches(['-', '+']).trim_start();
    &body[..body.len() - body.trim_start_matches(is_word).len()]
}

fn is_word(character: char) -> bool {
    character == '_' || character.is_alphanumeric()
}

/// Where a raw block ends, its end tag included; to the end where there is none.
fn raw_end(tag: &str) -> usize {
    let mut at = 2;
    while let Some(next) = tag[at..].find("{%") {
        at += next;
        if statement_word(&tag[at..]) == "endraw" {
            return at + code_end(&tag[at..], "%}");
        }
        at += 2;
    }
    tag.len()
}

/// Where a tag that starts the text ends, outside strings and brackets; without an end it is 1.
fn code_end(text: &str, close: &str) -> usize {
    let bytes = text.as_bytes();
    let (mut at, mut quote, mut depth) = (2, None, 0i64);
    while at < bytes.len() {
        match (quote, bytes[at]) {
            (Some(_), b'\\') => at += 1,
            (Some(open), byte) if open == byte => quote = None,
            (Some(_), _) => {}
            (None, _) if depth == 0 && bytes[at..].starts_with(close.as_bytes()) => {
                return at + close.len();
            }
            (None, byte @ (b'"' | b'\'')) => quote = Some(byte),
            (None, b'(' | b'[' | b'{') => depth += 1,
            (None, b')' | b']' | b'}') => depth -= 1,
            _ => {}
        }
        at += 1;
    }
    1
}

/// Rewrites a template; the flag says whether it has generation blocks.
pub(super) fn rewrite(source: &str) -> (String, bool) {
    let mut out = String::with_capacity(source.len() * 2);
    let mut has_generation = false;
    for segment in segments(source) {
        match segment {
            Segment::Text(text) => out.push_str(text),
            Segment::Expression(tag) => guard(tag, &mut out),
            Segment::Statement(tag) => match statement_word(tag) {
                "generation" => {
                    has_generation = true;
                    out += &tag.replacen("generation", &format!("filter {GENERATION}"), 1);
                }
                "endgeneration" => out += &tag.replacen("endgeneration", "endfilter", 1),
                _ => guard(tag, &mut out),
            },
        }
    }
    (out, has_generation)
}

/// A token of an expression with its place in the tag.
#[derive(Clone, Debug)]
struct Token<'s> {
    text: &'s str,
    end: usize,
}

fn tokens(tag: &str) -> Vec<Token<'_>> {
    let mut out = Vec::new();
    let bytes = tag.as_bytes();
    // The brackets of the tag itself, and the signs that trim white space, are no tokens.
    let mut at = 2 + usize::from(matches!(bytes.get(2), Some(b'-' | b'+')));
    let last = tag.len() - 2;
    let last = last - usize::from(matches!(bytes.get(last - 1), Some(b'-' | b'+')));
    while at < last {
        let Some(first) = tag[at..].chars().next() else { break };
        let length = match first {
            '"' | '\'' => string_length(&tag[at..]),
            _ if is_word(first) => tag[at..].find(|c| !is_word(c)).unwrap_or(tag.len() - at),
            _ => first.len_utf8(),
        };
        let text = &tag[at..at + length];
        at += length;
        if !first.is_whitespace() {
            out.push(Token { text, end: at });
        }
    }
    out
}

fn string_length(text: &str) -> usize {
    let bytes = text.as_bytes();
    let mut at = 1;
    while at < bytes.len() && bytes[at] != bytes[0] {
        at += 1 + usize::from(bytes[at] == b'\\');
    }
    (at + 1).min(text.len())
}

/// Index of the first token that belongs to an expression.
fn expression_start(tokens: &[Token<'_>], is_statement: bool) -> usize {
    if !is_statement {
        return 0;
    }
    let after = |word: &str| {
        tokens.iter().position(|token| token.text == word).map_or(tokens.len(), |at| at + 1)
    };
    match tokens.first().map(|token| token.text) {
        Some("set") => after("="),
        Some("for") => after("in"),
        Some("if" | "elif" | "with" | "do") => 1,
        Some("filter") => 2,
        Some("call") if tokens.get(1).is_some_and(|token| token.text == "(") => after(")"),
        Some("call") => 1,
        // Declarations and ends hold no operands; defaults of macros are weighed where they are used.
        _ => tokens.len(),
    }
}

const WORDS: [&str; 14] = [
    "and",
    "or",
    "not",
    "in",
    "is",
    "if",
    "else",
    "true",
    "false",
    "none",
    "True",
    "False",
    "None",
    "recursive",
];

/// Copies a tag with the weighing filter behind each operand, and `%` behind a string as a filter.
fn guard(tag: &str, out: &mut String) {
    let tokens = tokens(tag);
    let mut copied = 0;
    let mut closing = Vec::new();
    for at in expression_start(&tokens, tag.starts_with("{%"))..tokens.len() {
        let end = tokens[at].end;
        if let Some(last) = format_arguments(&tokens, at) {
            // In place of the sign.
            out.push_str(&tag[copied..end - 1]);
            out.push_str(&format!("|{PERCENT}("));
            copied = end;
            closing.push(last);
        }
        if is_operand_end(&tokens, at) {
            out.push_str(&tag[copied..end]);
            out.push('|');
            out.push_str(WEIGH);
            copied = end;
        }
        while closing.last() == Some(&at) {
            out.push_str(&tag[copied..end]);
            out.push(')');
            copied = end;
            closing.pop();
        }
    }
    out.push_str(&tag[copied..]);
}

/// Where a `%` stands behind a string: the last token of what it formats, which is a name, a
/// string, a number or a bracket with all calls, indices and filters behind it.
fn format_arguments(tokens: &[Token<'_>], at: usize) -> Option<usize> {
    let text = |at: usize| tokens.get(at).map_or("", |token| token.text);
    let is_string = |text: &str| text.starts_with(['"', '\'']);
    if text(at) != "%" || !is_string(text(at.checked_sub(1)?)) {
        return None;
    }
    let mut last = at + 1 + usize::from(matches!(text(at + 1), "-" | "+"));
    let first = text(last);
    if matches!(first, "(" | "[" | "{") {
        last = closing_bracket(tokens, last)?;
    } else if !(is_string(first) || first.starts_with(is_word)) {
        return None;
    }
    loop {
        last = match text(last + 1) {
            "." | "|" => last + 2,
            "(" | "[" => closing_bracket(tokens, last + 1)?,
            _ => return tokens.get(last).map(|_| last),
        };
    }
}

/// The bracket that closes the one at `open`.
fn closing_bracket(tokens: &[Token<'_>], open: usize) -> Option<usize> {
    let mut depth = 0;
    for (at, token) in tokens.iter().enumerate().skip(open) {
        match token.text {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(at);
        }
    }
    None
}

fn is_operand_end(tokens: &[Token<'_>], at: usize) -> bool {
    let text = |at: Option<usize>| at.and_then(|at| tokens.get(at)).map_or("", |token| token.text);
    let (this, next, after) = (text(Some(at)), text(Some(at + 1)), text(Some(at + 2)));
    if matches!(next, "." | "[" | "(") {
        return false;
    }
    if matches!(this, ")" | "]" | "}") {
        return true;
    }
    let is_name = this.starts_with(|c: char| is_word(c) && !c.is_ascii_digit());
    let before = text(at.checked_sub(1));
    if !is_name || (before != "." && WORDS.contains(&this)) {
        return false;
    }
    // `name=value` of a call or of `with`, but not `name == value`.
    if next == "=" && after != "=" {
        return false;
    }
    let is_test = before == "is" || (before == "not" && text(at.checked_sub(2)) == "is");
    !(before == "|" || is_test)
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
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_text_is_rewritten_without_loss(
            source in "(\\{\\{|\\}\\}|\\{%|%\\}|\\{#|#\\}|[-+'\"\\\\.,|()\\[\\]=é\u{1f600} ]|set|for|in|raw|endraw|is|x|1|generation){0,30}"
        ) {
            let (rewritten, has_generation) = rewrite(&source);
            if !has_generation && !source.contains("endgeneration") {
                prop_assert_eq!(rewritten.replace(&format!("|{WEIGH}"), ""), source);
            }
        }
    }

    fn rewritten(source: &str) -> String {
        rewrite(source).0.replace(WEIGH, "w")
    }

    #[test]
    fn only_real_generation_tags_are_rewritten() {
        let source = "{%- generation -%}a{{ '{% generation %}' }}{# {% generation %} #}\
                      {% raw %}{% generation %}{{ x }}{% endraw %}{% endgeneration +%} { {% x";
        let expected = "{%- filter puna_generation -%}a{{ '{% generation %}' }}{# {% generation %} #}\
                        {% raw %}{% generation %}{{ x }}{% endraw %}{% endfilter +%} { {% x";
        assert_eq!(rewritten(source), expected);
        assert!(rewrite(source).1);
        assert!(!rewrite("{{ generation }}").1);
    }

    #[test]
    fn every_operand_is_weighed_once() {
        for (source, expected) in [
            ("{{ a }}", "{{ a|w }}"),
            ("{{- a.b['c'](d, e=f)[1:g] -}}", "{{- a.b['c'](d|w, e=f|w)[1:g|w]|w -}}"),
            ("{{ a + b | trim ~ 'x' }}", "{{ a|w + b|w | trim ~ 'x' }}"),
            ("{% set x = [a, {'k': 1}] %}", "{% set x = [a|w, {'k': 1}|w]|w %}"),
            ("{% set ns.x = ns.x + 1 %}", "{% set ns.x = ns.x|w + 1 %}"),
            (
                "{% for k, v in d.items() if not v is none recursive %}",
                "{% for k, v in d.items()|w if not v|w is none recursive %}",
            ),
            ("{% if a is not defined and b == c %}", "{% if a|w is not defined and b|w == c|w %}"),
            ("{% macro f(a, b=[]) %}{% endmacro %}", "{% macro f(a, b=[]) %}{% endmacro %}"),
            ("{% call(x) f(y) %}", "{% call(x) f(y|w)|w %}"),
            ("{% set x %}{% filter upper %}{% else %}", "{% set x %}{% filter upper %}{% else %}"),
            ("{{ {'a': {'b': x}} }}{{ y }}", "{{ {'a': {'b': x|w}|w}|w }}{{ y|w }}"),
            ("{{ '%s' % x.y[0] | trim + z }}", "{{ '%s' |puna_percent( x.y[0]|w | trim) + z|w }}"),
            (
                "{{ '%s%%' % ('a' % (b, 1)) }}",
                "{{ '%s%%' |puna_percent( ('a' |puna_percent( (b|w, 1)|w))|w) }}",
            ),
            ("{{ x % 2 }}{%- if '' %}", "{{ x|w % 2 }}{%- if '' %}"),
            ("{{ x if y else 'it\\'s }}' }}", "{{ x|w if y|w else 'it\\'s }}' }}"),
        ] {
            assert_eq!(rewritten(source), expected);
        }
    }

    #[test]
    fn marks_become_spans() {
        let (text, spans) = take_marks("a<é>b<c>", "<", ">");
        assert_eq!(text, "aébc");
        assert_eq!(spans, [1..3, 4..5]);
    }
}

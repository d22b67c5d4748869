//! `clean_up_tokenization_spaces`, as a filter on a stream of text.
//!
//! Ten replacements run one behind the other; each holds back only the start of its own pattern,
//! so that cutting the text anywhere gives the same result as the whole.

const RULES: [(&str, &str); 10] = [
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
];

/// The start of a pattern that each rule holds back.
#[derive(Clone, Debug, Default)]
pub(super) struct CleanUp {
    held: [String; RULES.len()],
}

impl CleanUp {
    pub(super) fn push(&mut self, text: &str, out: &mut String) {
        self.run(text, false, out);
    }

    pub(super) fn finish(&mut self, out: &mut String) {
        self.run("", true, out);
    }

    fn run(&mut self, text: &str, is_end: bool, out: &mut String) {
        let mut current = text.to_owned();
        for ((pattern, replacement), held) in RULES.iter().zip(&mut self.held) {
            let input = std::mem::take(held) + &current;
            current = String::with_capacity(input.len());
            let mut rest = input.as_str();
            while let Some(at) = rest.find(pattern) {
                current.push_str(&rest[..at]);
                current.push_str(replacement);
                rest = &rest[at + pattern.len()..];
            }
            let keep = if is_end { 0 } else { overlap(rest, pattern) };
            let (done, kept) = rest.split_at(rest.len() - keep);
            current.push_str(done);
            held.push_str(kept);
        }
        out.push_str(&current);
    }
}

/// Length of the longest end of `text` that starts `pattern`.
fn overlap(text: &str, pattern: &str) -> usize {
    (1..pattern.len()).rev().find(|&n| text.ends_with(&pattern[..n])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_cut_gives_the_text_of_the_whole() {
        let text = "a . b ' c ' m . 's n't do n't we 've 're , ! ? .  . ' ";
        let whole = RULES.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to));
        for step in 1..6 {
            let mut clean_up = CleanUp::default();
            let mut out = String::new();
            for chunk in text.as_bytes().chunks(step) {
                clean_up.push(std::str::from_utf8(chunk).unwrap(), &mut out);
            }
            clean_up.finish(&mut out);
            assert_eq!(out, whole);
        }
        assert_eq!(whole, "a. b'c'm.'sn't don't we've're,!?. .'");
    }
}

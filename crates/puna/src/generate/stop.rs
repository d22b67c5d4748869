//! Finds stop strings in text that comes in pieces.
//!
//! Enters: the pieces of an answer. Leaves: the text that can no longer belong to a stop string,
//! at once. The match that *ends* first wins, of those the longest, so that the result does not
//! depend on where the pieces were cut. Knuth, Morris and Pratt (1977), once for each stop string:
//! time is linear in the text, memory in the stop strings.

/// Watches an answer for stop strings.
#[derive(Clone, Debug)]
pub struct StopMatcher {
    patterns: Vec<Pattern>,
    include_stop: bool,
    /// Text not handed out yet is `held[n_out..]`; what is before it is dropped in bulk.
    held: String,
    n_out: usize,
    matched: Option<usize>,
}

/// One stop string.
#[derive(Clone, Debug)]
struct Pattern {
    text: String,
    /// `borders[n]`: length of the longest proper suffix of the first `n` bytes that is also
    /// their prefix; `borders[0]` is unused.
    borders: Vec<usize>,
    /// How many bytes of it the text so far ends with; less than all of it.
    n_matched: usize,
}

impl StopMatcher {
    /// Watches for `stop_strings`; empty ones are passed over. With `include_stop` the text keeps
    /// the stop string, else it ends before it.
    pub fn new(stop_strings: &[String], include_stop: bool) -> Self {
        let texts = stop_strings.iter().filter(|text| !text.is_empty());
        Self {
            patterns: texts.map(|text| Pattern::new(text)).collect(),
            include_stop,
            held: String::new(),
            n_out: 0,
            matched: None,
        }
    }

    /// Takes the next piece and appends to `out` what is certain. Gives the stop string once one
    /// is complete; from then on every piece is discarded.
    pub fn push(&mut self, piece: &str, out: &mut String) -> Option<&str> {
        if self.patterns.is_empty() {
            out.push_str(piece);
            return None;
        }
        if self.matched.is_none() {
            self.scan(piece, out);
        }
        self.matched()
    }

    /// The stop string that was found.
    pub fn matched(&self) -> Option<&str> {
        self.matched.map(|index| self.patterns[index].text.as_str())
    }

    /// The answer ended without a stop string: appends what was held back.
    pub fn finish(&mut self, out: &mut String) {
        if self.matched.is_none() {
            out.push_str(&self.held[self.n_out..]);
        }
        self.held.clear();
        self.n_out = 0;
        for pattern in &mut self.patterns {
            pattern.n_matched = 0;
        }
    }

    fn scan(&mut self, piece: &str, out: &mut String) {
        let before = self.held.len();
        self.held.push_str(piece);
        for (i, byte) in piece.bytes().enumerate() {
            self.matched = self.advance(byte);
            if let Some(index) = self.matched {
                let end = before + i + 1;
                let cut = if self.include_stop { 0 } else { self.patterns[index].text.len() };
                self.hand_out(end - cut, out);
                self.held.clear();
                self.n_out = 0;
                return;
            }
        }
        // A stop string begins with a whole character, so that this is a border of characters.
        let longest = self.patterns.iter().map(|pattern| pattern.n_matched).max().unwrap_or(0);
        self.hand_out(self.held.len() - longest, out);
        if self.n_out > self.held.len() / 2 {
            self.held.drain(..self.n_out);
            self.n_out = 0;
        }
    }

    /// Moves every pattern by one byte; the longest that is now complete.
    fn advance(&mut self, byte: u8) -> Option<usize> {
        let mut complete: Option<usize> = None;
        for index in 0..self.patterns.len() {
            let longest = complete.map_or(0, |best| self.patterns[best].text.len());
            let pattern = &mut self.patterns[index];
            if pattern.advance(byte) && pattern.text.len() > longest {
                complete = Some(index);
            }
        }
        complete
    }

    /// Hands out the held text up to byte `end` of `held`.
    fn hand_out(&mut self, end: usize, out: &mut String) {
        out.push_str(&self.held[self.n_out..end]);
        self.n_out = end;
    }
}

impl Pattern {
    fn new(text: &str) -> Self {
        let bytes = text.as_bytes();
        let mut borders = vec![0; bytes.len() + 1];
        let mut border = 0;
        for n in 1..bytes.len() {
            while border > 0 && bytes[border] != bytes[n] {
                border = borders[border];
            }
            border += usize::from(bytes[border] == bytes[n]);
            borders[n + 1] = border;
        }
        Self { text: text.to_owned(), borders, n_matched: 0 }
    }

    /// Whether `byte` completes the stop string.
    fn advance(&mut self, byte: u8) -> bool {
        let bytes = self.text.as_bytes();
        while self.n_matched > 0 && bytes[self.n_matched] != byte {
            self.n_matched = self.borders[self.n_matched];
        }
        self.n_matched += usize::from(bytes[self.n_matched] == byte);
        if self.n_matched < bytes.len() {
            return false;
        }
        self.n_matched = self.borders[self.n_matched];
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn strings(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|&text| text.to_owned()).collect()
    }

    /// Feeds the pieces; what came out after each, and the stop string.
    fn run(stops: &[&str], pieces: &[&str], include: bool) -> (Vec<String>, Option<String>) {
        let mut matcher = StopMatcher::new(&strings(stops), include);
        let mut outs = Vec::new();
        for piece in pieces {
            let mut out = String::new();
            matcher.push(piece, &mut out);
            outs.push(out);
        }
        let mut out = String::new();
        matcher.finish(&mut out);
        outs.push(out);
        (outs, matcher.matched().map(str::to_owned))
    }

    #[test]
    fn across_pieces() {
        let (outs, stop) = run(&["\n\nUser:"], &["Hi", "!\n", "\nUs", "er", ": x", "y"], false);
        assert_eq!(outs, ["Hi", "!", "", "", "", "", ""]);
        assert_eq!(stop.as_deref(), Some("\n\nUser:"));
        let (outs, _) = run(&["\n\nUser:"], &["Hi", "!\n", "\nUs", "er", ": x", "y"], true);
        assert_eq!(outs.concat(), "Hi!\n\nUser:");
    }

    #[test]
    fn holds_back_only_what_may_become_a_stop() {
        let (outs, stop) = run(&["abac"], &["ab", "ab", "ab", "x", "aba"], false);
        assert_eq!(outs, ["", "ab", "ab", "abx", "", "aba"]);
        assert_eq!(stop, None);
    }

    #[test]
    fn the_first_end_wins_then_the_longest() {
        let (outs, stop) = run(&["bcd", "c", "bc"], &["abcd"], false);
        assert_eq!((outs.concat().as_str(), stop.as_deref()), ("a", Some("bc")));
    }

    #[test]
    fn characters_stay_whole() {
        // é and è share their first byte.
        let (outs, stop) = run(&["é!"], &["è", "é", "é", "!"], false);
        assert_eq!(outs, ["è", "", "é", "", ""]);
        assert_eq!(stop.as_deref(), Some("é!"));
    }

    #[test]
    fn without_stop_strings_nothing_is_held() {
        let (outs, stop) = run(&[], &["a", "b"], false);
        assert_eq!(outs, ["a", "b", ""]);
        assert_eq!(stop, None);
    }

    /// A run of one letter keeps the whole stop string pending: a matcher that moves or rescans
    /// what it holds for every piece needs 10^10 steps here.
    #[test]
    fn linear_on_the_worst_text() {
        let stop = format!("{}b", "a".repeat(100_000));
        let mut matcher = StopMatcher::new(&[stop], false);
        let mut out = String::new();
        for _ in 0..300_000 {
            matcher.push("a", &mut out);
        }
        assert_eq!(out.len(), 200_000);
        assert!(matcher.held.len() <= 200_002, "held text is dropped in time");
        matcher.finish(&mut out);
        assert_eq!(out.len(), 300_000);
    }

    /// Looks at every end, then at every stop string; start and index of the match.
    fn naive(stops: &[String], text: &str) -> Option<(usize, usize)> {
        (0..=text.len()).find_map(|end| {
            let ending =
                (0..stops.len()).filter(|&i| text.as_bytes()[..end].ends_with(stops[i].as_bytes()));
            let longest = ending.rev().max_by_key(|&i| stops[i].len())?;
            Some((end - stops[longest].len(), longest))
        })
    }

    /// The longest end of the text that begins a stop string.
    fn naive_pending(stops: &[String], text: &str) -> usize {
        (0..=text.len())
            .filter(|&start| text.is_char_boundary(start))
            .find(|&start| stops.iter().any(|stop| stop.starts_with(&text[start..])))
            .map_or(0, |start| text.len() - start)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn equals_the_naive_search(
            stops in proptest::collection::vec("[abéè]{1,4}", 0..4),
            pieces in proptest::collection::vec("[abéè]{0,5}", 0..12),
            include in any::<bool>(),
        ) {
            let mut matcher = StopMatcher::new(&stops, include);
            let (mut text, mut out) = (String::new(), String::new());
            for piece in &pieces {
                text.push_str(piece);
                let stop = matcher.push(piece, &mut out).map(str::to_owned);
                match naive(&stops, &text) {
                    Some((start, index)) => {
                        let end = if include { start + stops[index].len() } else { start };
                        prop_assert_eq!(&out, &text[..end]);
                        prop_assert_eq!(stop.as_ref(), Some(&stops[index]));
                    }
                    None => {
                        let pending = naive_pending(&stops, &text);
                        prop_assert_eq!(&out, &text[..text.len() - pending]);
                        prop_assert_eq!(stop, None);
                    }
                }
            }
            matcher.finish(&mut out);
            if naive(&stops, &text).is_none() {
                prop_assert_eq!(out, text);
            }
        }
    }
}

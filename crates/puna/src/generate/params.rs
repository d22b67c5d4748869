//! What a caller may ask of generation, and when a sequence ends.
//!
//! Enters: numbers from flags, JSON or Python. Leaves: checked parameters, or an error that names
//! the field, its value and what is allowed. Defaults are neutral: they change no logit.

use crate::config::python_float;

/// A parameter outside its range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} is {value}; it must be {allowed}")]
pub struct ParamError {
    /// Name of the parameter, as the user wrote it.
    pub field: &'static str,
    /// What was given.
    pub value: String,
    /// What may be given.
    pub allowed: String,
}

/// How the next id is chosen. Neutral by default: plain sampling at temperature 1.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// Divides the logits; 0 is greedy, and then no filter below (`top_k` to `typical_p`) acts.
    pub temperature: f64,
    /// Keeps the `top_k` largest scores and their ties; 0 is off.
    pub top_k: usize,
    /// Keeps the smallest set of the most probable ids that holds this mass; 1 is off.
    pub top_p: f64,
    /// Drops ids less probable than this share of the most probable one; 0 is off.
    pub min_p: f64,
    /// Keeps the ids whose surprise is nearest to the entropy, up to this mass; 1 is off.
    pub typical_p: f64,
    /// Makes ids of the prompt and the completion less likely, once per id; 1 is off.
    pub repetition_penalty: f64,
    /// Subtracted from the score of each id that the completion holds; 0 is off.
    pub presence_penalty: f64,
    /// Subtracted from the score of an id for each time that the completion holds it; 0 is off.
    pub frequency_penalty: f64,
    /// No run of this many ids occurs twice in prompt and completion; 0 is off.
    pub no_repeat_ngram_size: usize,
    /// No eos id before this many new tokens; 0 is off.
    pub min_new_tokens: usize,
    /// The same seed gives the same ids for the same logits; `None` takes a fresh one.
    pub seed: Option<u64>,
    /// `Some(n)` reports the log-probability of the chosen id and of the `n` most probable ones.
    pub logprobs: Option<usize>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            typical_p: 1.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            no_repeat_ngram_size: 0,
            min_new_tokens: 0,
            seed: None,
            logprobs: None,
        }
    }
}

/// Longest n-gram that `no_repeat_ngram_size` takes: it bounds the work for one token.
const MAX_NGRAM_SIZE: usize = 1024;

impl SamplingParams {
    /// The most probable id at each step.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }

    /// Whether the first maximum is taken and nothing is drawn.
    pub fn is_greedy(&self) -> bool {
        self.temperature as f32 == 0.0
    }

    /// Checks every field. Arithmetic is in `f32`, so ranges are those of the rounded value.
    pub fn validate(&self) -> Result<(), ParamError> {
        let finite = f64::from(f32::MAX);
        let smallest = f64::from(f32::MIN_POSITIVE);
        within("temperature", self.temperature, 0.0..=finite, "a number of at least 0")?;
        within("top_p", self.top_p, 0.0..=1.0, "from 0 to 1")?;
        within("min_p", self.min_p, 0.0..=1.0, "from 0 to 1")?;
        within("typical_p", self.typical_p, smallest..=1.0, "above 0 and at most 1")?;
        let (penalty, allowed) = (self.repetition_penalty, "a number above 0 (1 is off)");
        within("repetition_penalty", penalty, smallest..=finite, allowed)?;
        within("presence_penalty", self.presence_penalty, -2.0..=2.0, "from -2 to 2")?;
        within("frequency_penalty", self.frequency_penalty, -2.0..=2.0, "from -2 to 2")?;
        if self.no_repeat_ngram_size > MAX_NGRAM_SIZE {
            return Err(ParamError {
                field: "no_repeat_ngram_size",
                value: self.no_repeat_ngram_size.to_string(),
                allowed: format!("at most {MAX_NGRAM_SIZE} (0 is off)"),
            });
        }
        Ok(())
    }
}

/// NaN lies in no range.
fn within(
    field: &'static str,
    value: f64,
    range: std::ops::RangeInclusive<f64>,
    allowed: &str,
) -> Result<(), ParamError> {
    if range.contains(&value) {
        return Ok(());
    }
    Err(ParamError { field, value: python_float(value), allowed: allowed.to_owned() })
}

/// When a sequence ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StopConditions {
    /// At most this many ids are generated.
    pub max_new_tokens: usize,
    /// Ids that end the sequence.
    pub eos_token_ids: Vec<u32>,
    /// Texts that end the sequence; see [`super::StopMatcher`].
    pub stop_strings: Vec<String>,
    /// Treats the eos ids as ordinary ones: they neither end the sequence nor are held back by
    /// `min_new_tokens`.
    pub ignore_eos: bool,
}

impl StopConditions {
    /// Ends after `max_new_tokens`, or at one of the eos ids.
    pub fn new(max_new_tokens: usize, eos_token_ids: Vec<u32>) -> Self {
        Self { max_new_tokens, eos_token_ids, stop_strings: Vec::new(), ignore_eos: false }
    }

    /// Checks every field.
    pub fn validate(&self) -> Result<(), ParamError> {
        if self.max_new_tokens == 0 {
            return Err(ParamError {
                field: "max_new_tokens",
                value: "0".to_owned(),
                allowed: "at least 1".to_owned(),
            });
        }
        if let Some(index) = self.stop_strings.iter().position(String::is_empty) {
            return Err(ParamError {
                field: "stop",
                value: format!("empty (string {index} of the list)"),
                allowed: "a text of at least one character".to_owned(),
            });
        }
        Ok(())
    }

    /// Whether the sequence ends with its newest id; `n_completion` counts that id. An eos id on
    /// the last place is `Stop`, not `Length`. Stop strings are found in the text, not here.
    pub fn after_id(&self, id: u32, n_completion: usize) -> Option<FinishReason> {
        if !self.ignore_eos && self.eos_token_ids.contains(&id) {
            return Some(FinishReason::Stop);
        }
        (n_completion >= self.max_new_tokens).then_some(FinishReason::Length)
    }
}

/// Why a sequence ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// An eos id came.
    Stop,
    /// This stop string came.
    StopString(String),
    /// `max_new_tokens`, or the model's context, is used up.
    Length,
    /// The caller went away.
    Cancelled,
}

impl FinishReason {
    /// The name on the wire: `stop`, `length` or `cancelled`.
    pub fn wire_name(&self) -> &'static str {
        match self {
            Self::Stop | Self::StopString(_) => "stop",
            Self::Length => "length",
            Self::Cancelled => "cancelled",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(change: impl FnOnce(&mut SamplingParams)) -> (&'static str, String) {
        let mut params = SamplingParams::default();
        change(&mut params);
        let error = params.validate().expect_err("must be refused");
        (error.field, error.to_string())
    }

    #[test]
    fn each_field_is_checked_and_named() {
        assert_eq!(SamplingParams::default().validate(), Ok(()));
        assert_eq!(SamplingParams::greedy().validate(), Ok(()));
        let (field, text) = refused(|p| p.top_p = 1.5);
        assert_eq!((field, text.as_str()), ("top_p", "top_p is 1.5; it must be from 0 to 1"));
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.5, 1e39] {
            assert_eq!(refused(|p| p.temperature = bad).0, "temperature");
            assert_eq!(refused(|p| p.top_p = bad).0, "top_p");
            assert_eq!(refused(|p| p.min_p = bad).0, "min_p");
            assert_eq!(refused(|p| p.typical_p = bad).0, "typical_p");
            assert_eq!(refused(|p| p.repetition_penalty = bad).0, "repetition_penalty");
        }
        for bad in [f64::NAN, f64::INFINITY, -2.1, 2.1] {
            assert_eq!(refused(|p| p.presence_penalty = bad).0, "presence_penalty");
            assert_eq!(refused(|p| p.frequency_penalty = bad).0, "frequency_penalty");
        }
        for zero in [0.0, -0.0, 1e-60] {
            assert_eq!(refused(|p| p.typical_p = zero).0, "typical_p");
            assert_eq!(refused(|p| p.repetition_penalty = zero).0, "repetition_penalty");
        }
        let (field, text) = refused(|p| p.no_repeat_ngram_size = 1025);
        assert_eq!(field, "no_repeat_ngram_size");
        assert!(text.contains("1025") && text.contains("1024"), "{text}");
    }

    #[test]
    fn temperatures_that_round_to_zero_are_greedy() {
        for (temperature, greedy) in [(0.0, true), (1e-60, true), (1e-30, false), (1.0, false)] {
            let params = SamplingParams { temperature, ..SamplingParams::default() };
            assert_eq!(params.validate(), Ok(()));
            assert_eq!(params.is_greedy(), greedy, "{temperature}");
        }
    }

    #[test]
    fn stop_conditions_are_checked() {
        let mut stop = StopConditions::new(3, vec![2, 7]);
        assert_eq!(stop.validate(), Ok(()));
        stop.stop_strings = vec!["x".to_owned(), String::new()];
        let error = stop.validate().expect_err("empty stop string");
        assert_eq!(error.field, "stop");
        assert!(error.to_string().contains("string 1"), "{error}");
        let error = StopConditions::new(0, Vec::new()).validate().expect_err("no tokens");
        assert_eq!(error.field, "max_new_tokens");
    }

    #[test]
    fn eos_wins_over_length() {
        let mut stop = StopConditions::new(3, vec![2, 7]);
        assert_eq!(stop.after_id(5, 2), None);
        assert_eq!(stop.after_id(7, 1), Some(FinishReason::Stop));
        assert_eq!(stop.after_id(2, 3), Some(FinishReason::Stop));
        assert_eq!(stop.after_id(5, 3), Some(FinishReason::Length));
        stop.ignore_eos = true;
        assert_eq!(stop.after_id(7, 1), None);
        assert_eq!(stop.after_id(2, 3), Some(FinishReason::Length));
    }

    #[test]
    fn wire_names() {
        assert_eq!(FinishReason::Stop.wire_name(), "stop");
        assert_eq!(FinishReason::StopString("###".to_owned()).wire_name(), "stop");
        assert_eq!(FinishReason::Length.wire_name(), "length");
        assert_eq!(FinishReason::Cancelled.wire_name(), "cancelled");
    }
}

//! Flags about sampling and stopping, over what the model's makers say. Without either the answer
//! is greedy; a flag that only acts on sampling turns sampling on.

use clap::Args;
use puna::config::GenerationConfig;
use puna::generate::{SamplingParams, StopConditions};

use super::answer::Lengths;
use crate::failure::Usage;

/// Tokens of an answer where nobody says how many.
const DEFAULT_MAX_NEW_TOKENS: usize = 1024;

/// How the next token is chosen, and when to end.
#[derive(Debug, Args)]
#[command(next_help_heading = "Sampling")]
pub(crate) struct SamplingArgs {
    /// 0 is greedy, 1 the model's own distribution. Default: what the model's
    /// generation_config.json says, else 0, or 1 once another flag asks for sampling
    #[arg(long, value_name = "T")]
    temperature: Option<f64>,
    /// Keep the K most probable tokens (0: off)
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Keep the most probable tokens up to this mass (1: off)
    #[arg(long, value_name = "P")]
    top_p: Option<f64>,
    /// Drop tokens less probable than this share of the most probable one (0: off)
    #[arg(long, value_name = "P")]
    min_p: Option<f64>,
    /// Keep the most typical tokens up to this mass (1: off)
    #[arg(long, value_name = "P")]
    typical_p: Option<f64>,
    /// Make tokens that are there already less probable (1: off)
    #[arg(long, value_name = "X")]
    repetition_penalty: Option<f64>,
    /// Subtract from the score of tokens that the answer holds (0: off)
    #[arg(long, value_name = "X")]
    presence_penalty: Option<f64>,
    /// Likewise, for each time that it holds them (0: off)
    #[arg(long, value_name = "X")]
    frequency_penalty: Option<f64>,
    /// No run of N tokens twice (0: off)
    #[arg(long, value_name = "N")]
    no_repeat_ngram: Option<usize>,
    /// The same seed gives the same answer
    #[arg(long, value_name = "SEED")]
    seed: Option<u64>,
    /// Most tokens of the answer; default: what the model's generation_config.json says
    /// (max_new_tokens, max_length), else 1024
    #[arg(short = 'n', long, value_name = "N")]
    max_new_tokens: Option<usize>,
    /// End before this text; may be given several times. Default: the stop_strings of
    /// generation_config.json
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Go on after the end of the answer
    #[arg(long)]
    ignore_eos: bool,
}

impl SamplingArgs {
    /// The parameters: flags, else the makers', else neutral ones.
    pub(crate) fn params(
        &self,
        makers: Option<&GenerationConfig>,
        logprobs: Option<usize>,
    ) -> anyhow::Result<SamplingParams> {
        let base = makers.map_or_else(SamplingParams::greedy, from_makers);
        let filter = self.filter();
        let temperature = match (self.temperature, filter) {
            (Some(0.0), Some(flag)) => {
                return Err(Usage(format!(
                    "{flag} has no effect at --temperature 0, which takes the most probable \
                     token; drop one of the two"
                ))
                .into());
            }
            (Some(temperature), _) => temperature,
            (None, Some(_)) if base.is_greedy() => 1.0,
            (None, _) => base.temperature,
        };
        let params = SamplingParams {
            temperature,
            top_k: self.top_k.unwrap_or(base.top_k),
            top_p: self.top_p.unwrap_or(base.top_p),
            min_p: self.min_p.unwrap_or(base.min_p),
            typical_p: self.typical_p.unwrap_or(base.typical_p),
            repetition_penalty: self.repetition_penalty.unwrap_or(base.repetition_penalty),
            presence_penalty: self.presence_penalty.unwrap_or(base.presence_penalty),
            frequency_penalty: self.frequency_penalty.unwrap_or(base.frequency_penalty),
            no_repeat_ngram_size: self.no_repeat_ngram.unwrap_or(base.no_repeat_ngram_size),
            min_new_tokens: base.min_new_tokens,
            seed: self.seed,
            logprobs,
        };
        params.validate().map_err(|error| Usage(error.to_string()))?;
        Ok(params)
    }

    /// When the answer ends.
    pub(crate) fn stop(
        &self,
        makers: Option<&GenerationConfig>,
        eos_token_ids: Vec<u32>,
    ) -> anyhow::Result<StopConditions> {
        let from_makers = makers.and_then(|makers| makers.max_new_tokens);
        let bounded = max_length(makers).map(|_| usize::MAX);
        let n = self.max_new_tokens.or(from_makers).or(bounded).unwrap_or(DEFAULT_MAX_NEW_TOKENS);
        let mut stop = StopConditions::new(n, eos_token_ids);
        stop.stop_strings = match (&self.stop[..], makers) {
            ([], Some(makers)) => makers.stop_strings(),
            (given, _) => given.to_vec(),
        };
        stop.ignore_eos = self.ignore_eos;
        stop.validate().map_err(|error| Usage(error.to_string()))?;
        Ok(stop)
    }

    /// Bounds on prompt and answer, of which `context` tokens have room. As in Transformers, what
    /// is said about the answer alone wins.
    pub(crate) fn lengths(&self, makers: Option<&GenerationConfig>, context: usize) -> Lengths {
        let says_most = self.max_new_tokens.or(makers.and_then(|makers| makers.max_new_tokens));
        let fewest = makers.filter(|makers| makers.min_new_tokens.is_none());
        Lengths {
            context,
            max_length: max_length(makers).filter(|_| says_most.is_none()),
            min_length: fewest.map_or(0, |makers| makers.min_length),
        }
    }

    /// A flag that acts only where something is drawn.
    fn filter(&self) -> Option<&'static str> {
        [
            ("--top-k", self.top_k.is_some()),
            ("--top-p", self.top_p.is_some()),
            ("--min-p", self.min_p.is_some()),
            ("--typical-p", self.typical_p.is_some()),
            ("--seed", self.seed.is_some()),
        ]
        .into_iter()
        .find_map(|(flag, given)| given.then_some(flag))
        // A seed alone asks for nothing that greedy choice would not keep: the same answer again.
        .filter(|&flag| flag != "--seed")
    }
}

/// The makers' `max_length`. Its default is Transformers' own and nobody's wish.
fn max_length(makers: Option<&GenerationConfig>) -> Option<usize> {
    let default = GenerationConfig::default().max_length;
    makers.map(|makers| makers.max_length).filter(|&length| length != default)
}

/// What `generation_config.json` says. Without `do_sample` the temperature and the filters in the
/// file are not in force, as in Transformers.
fn from_makers(makers: &GenerationConfig) -> SamplingParams {
    let filters = SamplingParams {
        temperature: makers.temperature,
        top_k: makers.top_k,
        top_p: makers.top_p,
        min_p: makers.min_p.unwrap_or(0.0),
        typical_p: makers.typical_p,
        ..SamplingParams::default()
    };
    SamplingParams {
        repetition_penalty: makers.repetition_penalty,
        no_repeat_ngram_size: makers.no_repeat_ngram_size,
        min_new_tokens: makers.min_new_tokens.unwrap_or(0),
        ..if makers.do_sample { filters } else { SamplingParams::greedy() }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    #[command(allow_negative_numbers = true)]
    struct Flags {
        #[command(flatten)]
        sampling: SamplingArgs,
    }

    fn params(flags: &[&str], makers: Option<&str>) -> anyhow::Result<SamplingParams> {
        let args = Flags::try_parse_from([&["puna"], flags].concat())?.sampling;
        let makers = makers.map(|text| GenerationConfig::from_json(text).unwrap());
        args.params(makers.as_ref(), None)
    }

    #[test]
    fn greedy_unless_asked() {
        assert!(params(&[], None).unwrap().is_greedy());
        assert!(params(&["--seed", "1"], None).unwrap().is_greedy());
        assert_eq!(params(&["--top-p", "0.9"], None).unwrap().temperature, 1.0);
        assert_eq!(params(&["--temperature", "0.7"], None).unwrap().temperature, 0.7);
        assert!(params(&["--temperature", "0", "--top-k", "5"], None).is_err());
        assert!(params(&["--temperature", "-1"], None).is_err());
        assert!(params(&["--top-p", "1.5"], None).is_err());
    }

    #[test]
    fn the_makers_lengths_and_stops_yield_to_flags() {
        let makers = GenerationConfig::from_json(
            r#"{"max_length": 50, "min_length": 9, "stop_strings": "x"}"#,
        )
        .unwrap();
        let asked = |flags: &[&str]| {
            let args = Flags::try_parse_from([&["puna"], flags].concat()).unwrap().sampling;
            let lengths = args.lengths(Some(&makers), 100);
            (args.stop(Some(&makers), Vec::new()).unwrap(), lengths.max_length, lengths.min_length)
        };
        let (stop, max_length, min_length) = asked(&[]);
        assert_eq!((max_length, min_length), (Some(50), 9));
        assert_eq!((stop.max_new_tokens, &stop.stop_strings[..]), (usize::MAX, &["x".into()][..]));
        let (stop, max_length, _) = asked(&["-n", "7", "--stop", "y"]);
        assert_eq!((stop.max_new_tokens, max_length), (7, None));
        assert_eq!(stop.stop_strings, ["y"]);
    }

    #[test]
    fn the_makers_are_heard_unless_a_flag_says_otherwise() {
        let makers = Some(r#"{"do_sample": true, "temperature": 0.6, "top_p": 0.9}"#);
        let heard = params(&[], makers).unwrap();
        assert_eq!((heard.temperature, heard.top_p), (0.6, 0.9));
        let flags = params(&["--temperature", "0.2", "--top-p", "1"], makers).unwrap();
        assert_eq!((flags.temperature, flags.top_p), (0.2, 1.0));
        assert!(params(&["--temperature", "0"], makers).unwrap().is_greedy());
        assert!(params(&[], Some(r#"{"temperature": 0.6}"#)).unwrap().is_greedy());
        let penal = params(&[], Some(r#"{"repetition_penalty": 1.1}"#)).unwrap();
        assert_eq!(penal.repetition_penalty, 1.1);
    }
}

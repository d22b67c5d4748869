//! Flags about guessing tokens ahead, and what they mean for a loaded model: where guesses come
//! from, how many, and in how many rows of one step every row keeps the bits that it has alone.

use std::str::FromStr;
use std::sync::Arc;

use anyhow::Context;
use clap::Args;
use puna::checkpoint::Checkpoint;
use puna::generate::{Proposer, Speculation, SpeculationError};
use puna::tokenizer::Tokenizer;
use puna_kernels::Cpu;

use super::OfflineArgs;
use crate::failure::{Usage, print_warning};
use crate::models::{self, Lookup, ModelName};
use crate::session::{ComputeArgs, Session, tokenizer_of};

/// Ids that prompt lookup compares at most.
const MAX_NGRAM: usize = 4;
/// Tokens guessed ahead where nobody says how many: looking up costs nothing, a draft model does.
const LOOKUP_TOKENS: usize = 15;
const DRAFT_TOKENS: usize = 8;

/// How to guess ahead.
#[derive(Debug, Args)]
#[command(next_help_heading = "Speculation")]
pub(crate) struct SpeculationArgs {
    /// Guess tokens ahead and check them together: faster where guesses are right, and the same
    /// answer. "lookup" takes them from where the text stood before (for summaries, edits, code);
    /// a MODEL, small and with the same vocabulary, drafts them
    #[arg(long, value_name = "off|lookup|MODEL", default_value = "off")]
    speculate: How,
    /// Most tokens guessed ahead, fewer while few are right; default: 15 for lookup, 8 for a MODEL.
    /// At most as many as the fast path checks together: 23 for quantised weights, else 3; 63 with
    /// --exact or --deterministic
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    draft_tokens: Option<u16>,
}

#[derive(Clone, Debug)]
enum How {
    Off,
    Lookup,
    Model(ModelName),
}

impl FromStr for How {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Self::Off),
            "lookup" => Ok(Self::Lookup),
            _ => text.parse().map(Self::Model),
        }
    }
}

impl SpeculationArgs {
    /// What was asked for, in a word; `None` where nothing was.
    pub(crate) fn name(&self) -> Option<String> {
        match &self.speculate {
            How::Off => None,
            How::Lookup => Some("lookup".to_owned()),
            How::Model(model) => Some(model.to_string()),
        }
    }

    /// What to do for the model of `session`; a draft model is fetched and loaded.
    pub(crate) fn speculation(
        &self,
        session: &Session,
        tokenizer: &Tokenizer,
        compute: &ComputeArgs,
        offline: OfflineArgs,
    ) -> anyhow::Result<Option<Speculation<Cpu>>> {
        let (proposer, usual) = match &self.speculate {
            How::Off if self.draft_tokens.is_some() => {
                let text = "--draft-tokens has no effect without --speculate lookup or MODEL";
                return Err(Usage(text.to_owned()).into());
            }
            How::Off => return Ok(None),
            How::Lookup => (Proposer::PromptLookup { max_ngram: MAX_NGRAM }, LOOKUP_TOKENS),
            How::Model(name) => {
                let lookup = Lookup { offline: offline.offline(), ..Lookup::default() };
                let checkpoint = Checkpoint::open(&models::resolve(name, lookup)?)?;
                same_vocabulary(&checkpoint, session)?;
                warn_of_other_tokens(&checkpoint, tokenizer);
                (Proposer::Draft(Arc::new(session.draft(&checkpoint, compute)?)), DRAFT_TOKENS)
            }
        };
        let max_tokens = self.draft_tokens.map_or(usual, usize::from);
        let max_rows = session.rows_like_one();
        if self.draft_tokens.is_some() && max_tokens >= max_rows {
            print_warning(&format!(
                "--draft-tokens {max_tokens} is more than can be checked together without changing \
                 the answer; {} it is",
                max_rows - 1
            ));
        }
        Ok(Some(Speculation { proposer, max_tokens, max_rows }))
    }
}

/// An error where a draft model has more or fewer ids: before its weights are read.
fn same_vocabulary(draft: &Checkpoint, session: &Session) -> anyhow::Result<()> {
    let (draft_size, model) = (draft.config().vocab_size, session.config().vocab_size);
    if draft_size == model {
        return Ok(());
    }
    let error = SpeculationError::Vocabulary { model, draft: draft_size };
    Err(error).with_context(|| draft.path().display().to_string())
}

/// Says where a draft model's ids mean other texts: the answer is right, but none the faster.
fn warn_of_other_tokens(draft: &Checkpoint, tokenizer: &Tokenizer) {
    // A draft model needs no tokenizer.
    let Ok(other) = tokenizer_of(draft) else { return };
    let differs = |id: &u32| tokenizer.id_to_token(*id) != other.id_to_token(*id);
    let n_ids = u32::try_from(tokenizer.len()).unwrap_or(u32::MAX);
    if let Some(id) = (0..n_ids).find(differs) {
        print_warning(&format!(
            "the draft model has other tokens ({id} is {:?}, for the model {:?}): few of its \
             guesses will be right",
            other.id_to_token(id).unwrap_or_default(),
            tokenizer.id_to_token(id).unwrap_or_default(),
        ));
    }
}

//! Requests to an engine, all at once, and their tokens.

use puna::generate::{Engine, Request, Sampled, SequenceId};
use puna_kernels::Cpu;

/// Runs the requests together; the tokens of each.
pub(crate) fn complete(engine: &mut Engine<Cpu>, requests: &[Request]) -> Vec<Vec<Sampled>> {
    let ids: Vec<SequenceId> =
        requests.iter().map(|request| engine.submit(request.clone()).unwrap()).collect();
    let mut tokens = vec![Vec::new(); ids.len()];
    while !engine.is_idle() {
        for event in engine.step().unwrap() {
            let index = ids.iter().position(|id| *id == event.sequence).unwrap();
            tokens[index].push(event.token.unwrap());
        }
    }
    tokens
}

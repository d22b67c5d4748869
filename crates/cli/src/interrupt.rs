//! Ctrl-C. Inside a [`Graceful`] scope the first one asks the work to stop and the second kills;
//! outside one, where there is nothing to save, the first kills. In a conversation, which is lost
//! with the program, none kills, however many come.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use crate::failure::{INTERRUPTED, Interrupted};

/// Graceful scopes that are open.
static SCOPES: AtomicUsize = AtomicUsize::new(0);
/// Ctrl-C came inside a scope.
static ASKED: AtomicBool = AtomicBool::new(false);
/// A conversation is going on.
static CONVERSATION: AtomicBool = AtomicBool::new(false);

/// Starts listening. Called once, at the start of the program.
pub(crate) fn listen() -> Result<(), ctrlc::Error> {
    ctrlc::set_handler(|| {
        let kills = SCOPES.load(SeqCst) == 0 || ASKED.swap(true, SeqCst);
        if kills && !CONVERSATION.load(SeqCst) {
            std::process::exit(i32::from(INTERRUPTED));
        }
    })
}

/// From now on no Ctrl-C ends the program: an answer stops, what was said stays. The program ends
/// with the conversation, so nothing takes this back; a Ctrl-C that is handled late finds it so.
pub(crate) fn begin_conversation() {
    CONVERSATION.store(true, SeqCst);
}

/// While this lives, the first Ctrl-C only sets a flag.
#[derive(Debug)]
pub(crate) struct Graceful(());

impl Graceful {
    /// Opens a scope; a Ctrl-C that an earlier scope has seen is forgotten.
    pub(crate) fn new() -> Self {
        if SCOPES.fetch_add(1, SeqCst) == 0 {
            ASKED.store(false, SeqCst);
        }
        Self(())
    }

    /// Whether the work should stop.
    pub(crate) fn asked(&self) -> bool {
        ASKED.load(SeqCst)
    }

    /// An error once the work should stop.
    pub(crate) fn check(&self) -> Result<(), Interrupted> {
        if self.asked() { Err(Interrupted) } else { Ok(()) }
    }
}

impl Drop for Graceful {
    fn drop(&mut self) {
        SCOPES.fetch_sub(1, SeqCst);
    }
}

//! The mailbox passes the output of the engine's thread to the task that answers a client.
//!
//! The engine never waits for a client. It puts text into the mailbox of the request, and the task takes all text
//! that is there, so a slow client gets its text in larger pieces. The size of a mailbox is bounded by the request's
//! own limit on new tokens.
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::sync::Notify;

use crate::Error;
use crate::engine::Logprobs;
use crate::trace::{StopReason, Totals, Trace};

/// The part of an answer to which a text belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// The model's thinking.
    Thinking,
    /// The text that the model writes outside its thinking.
    Answer,
    /// The tag between the two, which is sent only in responses that do not separate them.
    Tag,
}

/// Something that happened to one choice of a request.
#[derive(Debug)]
pub(super) enum Piece {
    /// Text that is final. Consecutive texts of the same part are joined.
    Text {
        /// The part to which the text belongs.
        part: Part,
        text: String,
        /// The tokens of the text, if the client asked for their probabilities.
        tokens: Vec<SentToken>,
    },
    /// A probe was made and its plan carried out.
    Probe(Value),
    /// Events of the run, in the form that the page reads. Consecutive events are joined too. The order of texts and
    /// events relative to each other is not kept.
    Events(Vec<Value>),
    /// The record of the run, for the page. It is converted to text where it is sent, because on the engine's thread
    /// the conversion would delay all other requests.
    Trace(Box<Trace>),
    /// The choice has ended. Nothing follows.
    End(Result<Box<Ending>, Error>),
}

/// A token with its probabilities.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct SentToken {
    /// The token's id.
    pub id: u32,
    /// The token's probability and those of the most likely tokens at its place.
    pub logprobs: Logprobs,
}

/// How a choice ended.
#[derive(Debug)]
pub(super) struct Ending {
    /// Why the choice ended.
    pub reason: StopReason,
    /// The sums over the run.
    pub totals: Totals,
    /// Number of probes that were made.
    pub probes: usize,
    /// Number of prompt tokens that were copied from another request.
    pub shared_tokens: usize,
    /// The seed with which the run was made.
    pub seed: u64,
    /// The record of the run, if the client asked for it.
    pub trace: Option<Trace>,
    /// The error that ended the run, if it failed after its first token.
    pub error: Option<Error>,
    /// The probabilities of the prompt's tokens from the second on, if the client asked for them.
    pub prompt_logprobs: Vec<Logprobs>,
}

/// A mailbox for the choices of one HTTP request.
#[derive(Debug)]
pub(super) struct Mailbox {
    letters: Mutex<Letters>,
    arrived: Notify,
    /// Whether the client has disconnected.
    abandoned: AtomicBool,
    /// Whether the client has asked to end the answer. It still receives how the answer ended.
    cancelled: AtomicBool,
}

#[derive(Debug)]
struct Letters {
    /// Pieces with the numbers of their choices, the oldest first.
    pieces: Vec<(usize, Piece)>,
    /// The time at which pieces were last taken, or at which the oldest piece arrived.
    waiting_since: Instant,
}

impl Mailbox {
    /// An empty mailbox, whose client is waiting.
    pub fn new() -> Arc<Self> {
        let letters = Mutex::new(Letters { pieces: Vec::new(), waiting_since: Instant::now() });
        Arc::new(Self {
            letters,
            arrived: Notify::new(),
            abandoned: AtomicBool::default(),
            cancelled: AtomicBool::default(),
        })
    }

    fn letters(&self) -> MutexGuard<'_, Letters> {
        self.letters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a piece for a choice. This never waits for the client.
    pub fn put(&self, choice: usize, piece: Piece) {
        let mut letters = self.letters();
        if letters.pieces.is_empty() {
            letters.waiting_since = Instant::now();
        }
        let mut earlier = letters.pieces.iter_mut().rev().filter(|(of, _)| *of == choice).map(|(_, piece)| piece);
        let piece = match piece {
            Piece::Text { part, text, tokens } => match earlier.find(|piece| !matches!(piece, Piece::Events(_))) {
                Some(Piece::Text { part: last, text: before, tokens: earlier }) if *last == part => {
                    before.push_str(&text);
                    earlier.extend(tokens);
                    None
                }
                _ => Some(Piece::Text { part, text, tokens }),
            },
            Piece::Events(events) => match earlier.find(|piece| matches!(piece, Piece::Events(_))) {
                Some(Piece::Events(before)) => {
                    before.extend(events);
                    None
                }
                _ => Some(Piece::Events(events)),
            },
            piece => Some(piece),
        };
        letters.pieces.extend(piece.map(|piece| (choice, piece)));
        drop(letters);
        self.arrived.notify_one();
    }

    /// Waits for pieces and takes all pieces, with the numbers of their choices.
    pub async fn take(&self) -> Vec<(usize, Piece)> {
        loop {
            let pieces = std::mem::take(&mut self.letters().pieces);
            if !pieces.is_empty() {
                return pieces;
            }
            self.arrived.notified().await;
        }
    }

    /// Marks the client as gone, so that the engine ends the request.
    pub fn abandon(&self) {
        self.abandoned.store(true, Ordering::Release);
    }

    /// Asks the engine to end this answer early. The pieces about its end still arrive.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Release);
    }

    /// Whether the client asked for an early end.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }

    /// Whether the engine should end the request: the client has disconnected, or has taken nothing for `patience`.
    pub fn is_abandoned(&self, patience: Duration) -> bool {
        if self.abandoned.load(Ordering::Acquire) {
            return true;
        }
        let letters = self.letters();
        !letters.pieces.is_empty() && letters.waiting_since.elapsed() > patience
    }
}

/// The client's end of a mailbox. When it is dropped, the engine ends the request: hyper drops it with the handler or
/// with the body as soon as the connection closes.
#[derive(Debug)]
pub(super) struct Client(pub Arc<Mailbox>);

impl Drop for Client {
    fn drop(&mut self) {
        self.0.abandon();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(part: Part, text: &str) -> Piece {
        Piece::Text { part, text: text.into(), tokens: Vec::new() }
    }

    #[test]
    fn texts_of_one_part_are_joined_and_choices_are_kept_apart() {
        let mailbox = Mailbox::new();
        for (choice, part, piece) in [
            (0, Part::Thinking, "a"),
            (1, Part::Thinking, "x"),
            (0, Part::Thinking, "b"),
            (0, Part::Answer, "c"),
            (1, Part::Thinking, "y"),
        ] {
            mailbox.put(choice, text(part, piece));
        }
        let taken = pollster::block_on(mailbox.take());
        let seen: Vec<_> = taken
            .iter()
            .map(|(choice, piece)| match piece {
                Piece::Text { part, text, .. } => (*choice, *part, text.as_str()),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(seen, [(0, Part::Thinking, "ab"), (1, Part::Thinking, "xy"), (0, Part::Answer, "c")]);
    }

    #[test]
    fn texts_and_events_are_joined_past_each_other() {
        let mailbox = Mailbox::new();
        for number in 0..3 {
            mailbox.put(0, text(Part::Thinking, &number.to_string()));
            mailbox.put(0, Piece::Events(vec![number.into()]));
            mailbox.put(1, Piece::Events(vec![(number + 10).into()]));
        }
        mailbox.put(0, text(Part::Answer, "a"));
        let seen: Vec<String> = pollster::block_on(mailbox.take())
            .iter()
            .map(|(choice, piece)| match piece {
                Piece::Text { text, .. } => format!("{choice} {text}"),
                Piece::Events(events) => format!("{choice} {}", Value::from(events.clone())),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(seen, ["0 012", "0 [0,1,2]", "1 [10,11,12]", "0 a"]);
    }

    #[test]
    fn a_client_that_goes_or_never_reads_is_noticed() {
        let mailbox = Mailbox::new();
        assert!(!mailbox.is_abandoned(Duration::ZERO), "nothing waits to be read");
        mailbox.put(0, text(Part::Answer, "a"));
        std::thread::sleep(Duration::from_millis(2));
        assert!(mailbox.is_abandoned(Duration::ZERO));
        assert!(!mailbox.is_abandoned(Duration::from_secs(60)));
        drop(Client(mailbox.clone()));
        assert!(mailbox.is_abandoned(Duration::from_secs(60)));
    }
}

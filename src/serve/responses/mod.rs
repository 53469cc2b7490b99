//! `/v1/responses`: OpenAI's newer interface, for chats that the client keeps itself.
//!
//! A body becomes that of a chat (`body`), so that what a chat refuses is refused here too, and the answers are the
//! same. The answer is separated as in a chat, and sent as items (`output`): the reasoning, the message, a call of a
//! function. Nothing is stored, so everything that would need an earlier response is refused by name.
mod body;
mod output;

use std::sync::Arc;

use axum::Json;
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value};

use super::answer::{self, Frame};
use super::mailbox::Client;
use super::refusal::Refusal;
use super::traces::Traces;
use super::worker::Worker;
use output::ResponseOutput;

pub(super) use body::ResponsesBody;

/// The names that fields of a chat have in this interface, the longer ones first.
const NAMES: [(&str, &str); 4] = [
    // In this interface, a schema is beside its type.
    ("response_format.json_schema", "text.format"),
    ("response_format", "text.format"),
    ("messages", "input"),
    ("max_tokens", "max_output_tokens"),
];

/// A refusal of a chat with the field names of this interface.
pub(super) fn in_own_words(refusal: Refusal) -> Refusal {
    refusal.renamed(&NAMES)
}

/// Waits for the whole answer. `repeated` are the fields of the request that the response repeats.
pub(super) async fn whole(
    frame: Frame,
    repeated: Map<String, Value>,
    client: Client,
    traces: Arc<Traces>,
) -> Result<Response, Refusal> {
    let mut output = ResponseOutput::new(frame, repeated, traces);
    loop {
        for (_, piece) in client.0.take().await {
            if let Some(response) = output.piece(piece)? {
                return Ok(Json(response).into_response());
            }
        }
    }
}

/// Answers with a stream of named events.
pub(super) fn stream(
    frame: Frame,
    repeated: Map<String, Value>,
    client: Client,
    traces: Arc<Traces>,
    worker: Arc<Worker>,
) -> Response {
    let ping = frame.ping;
    let mut output = ResponseOutput::new(frame, repeated, traces);
    let first = output.begin();
    answer::respond(first, client, worker, ping, move |_, piece| output.streamed(piece))
}

//! The output of a response: items that open and close while the pieces of an answer arrive, each change with its
//! event. The response as one object is made from the same items, so that it has the same content as a stream.
use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::serve::answer::{self, Collected, Frame, Outgoing};
use crate::serve::body::Events;
use crate::serve::mailbox::{Ending, Piece, SentToken};
use crate::serve::refusal::Refusal;
use crate::serve::routes::id;
use crate::serve::tools::Told;
use crate::serve::traces::Traces;

/// The kind of an item.
#[derive(Debug, Clone, PartialEq)]
enum Kind {
    /// The model's thinking.
    Reasoning,
    /// Text for the user.
    Message,
    /// A call of a function.
    Call { call_id: String, name: String },
}

/// An item of the output.
#[derive(Debug)]
struct Item {
    kind: Kind,
    id: String,
    /// The text of the item, or the arguments of its call.
    text: String,
    /// The probabilities of the item's tokens, if the client asked for them.
    logprobs: Vec<Value>,
    status: &'static str,
}

impl Item {
    fn new(kind: Kind) -> Self {
        let id = id(match kind {
            Kind::Reasoning => "rs_",
            Kind::Message => "msg_",
            Kind::Call { .. } => "fc_",
        });
        Self { kind, id, text: String::new(), logprobs: Vec::new(), status: "in_progress" }
    }

    /// The part of the content that has the text; `None` for a call, which has none.
    fn part(&self) -> Option<Value> {
        match self.kind {
            Kind::Reasoning => Some(json!({"type": "reasoning_text", "text": self.text})),
            Kind::Message => {
                let (text, logprobs) = (&self.text, &self.logprobs);
                Some(json!({"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}))
            }
            Kind::Call { .. } => None,
        }
    }

    /// The item with these parts as its content.
    fn with(&self, content: &[Value]) -> Value {
        let (id, status) = (&self.id, self.status);
        match &self.kind {
            Kind::Reasoning => {
                json!({"id": id, "type": "reasoning", "summary": [], "content": content, "status": status})
            }
            Kind::Message => {
                json!({"id": id, "type": "message", "role": "assistant", "content": content, "status": status})
            }
            Kind::Call { call_id, name } => {
                let arguments = &self.text;
                json!({"id": id, "type": "function_call", "call_id": call_id, "name": name, "arguments": arguments, "status": status})
            }
        }
    }

    fn json(&self) -> Value {
        self.with(self.part().as_slice())
    }
}

/// A response while its pieces arrive.
pub(super) struct ResponseOutput {
    frame: Frame,
    /// The fields of the request that the response repeats.
    repeated: Map<String, Value>,
    traces: Arc<Traces>,
    collected: Collected,
    items: Vec<Item>,
    /// Events that have not been sent yet; `None` if no events are sent.
    events: Option<Outgoing>,
    /// The number of the next event.
    number: u64,
}

impl ResponseOutput {
    /// A response without any pieces yet.
    pub fn new(frame: Frame, repeated: Map<String, Value>, traces: Arc<Traces>) -> Self {
        let collected = Collected::new(&frame);
        Self { frame, repeated, traces, collected, items: Vec::new(), events: None, number: 0 }
    }

    /// The events with which a stream begins. Events are collected from this call on.
    pub fn begin(&mut self) -> Outgoing {
        self.events = Some(Outgoing::default());
        let response = self.response("in_progress", Map::new());
        self.send("response.created", json!({"response": response}));
        self.send("response.in_progress", json!({"response": response}));
        self.sent()
    }

    /// The events for a piece.
    pub fn streamed(&mut self, piece: Piece) -> Outgoing {
        let ended = match piece {
            Piece::Probe(probe) if self.frame.events == Events::Comments => {
                if let Some(events) = &mut self.events {
                    events.comment(&json!({"choice": 0, "probe": probe}));
                }
                Ok(None)
            }
            piece => self.piece(piece),
        };
        match ended {
            Ok(None) => (),
            Ok(Some(response)) => {
                let kind =
                    if response["status"] == "incomplete" { "response.incomplete" } else { "response.completed" };
                self.last(kind, json!({"response": response}));
            }
            Err(refusal) => self.fail(&refusal),
        }
        self.sent()
    }

    /// Adds a piece. Returns the response if it was the last piece.
    ///
    /// # Errors
    /// The error with which the answer ended.
    pub fn piece(&mut self, piece: Piece) -> Result<Option<Value>, Refusal> {
        match piece {
            Piece::Text { part, text, tokens } => {
                let tokens = if self.frame.is_content(part) { tokens } else { Vec::new() };
                let (thinking, mut told) = self.collected.told(&self.frame, 0, part, &text);
                if told.is_empty() && !tokens.is_empty() {
                    told.push(Told::Text(String::new()));
                }
                self.tell(told, &tokens);
                if let Some(text) = thinking {
                    self.open(Kind::Reasoning);
                    self.add(&text, Vec::new());
                }
                Ok(None)
            }
            Piece::Probe(_) | Piece::Events(_) | Piece::Trace(_) => Ok(None),
            Piece::End(ending) => {
                if let Some(refusal) = answer::failure(&ending) {
                    return Err(refusal);
                }
                ending.map_err(Refusal::from).map(|ending| Some(self.end(ending)))
            }
        }
    }

    /// Adds separated text and calls. The probabilities of the tokens go with the first of them.
    fn tell(&mut self, told: Vec<Told>, tokens: &[SentToken]) {
        let mut logprobs = match self.frame.logprobs(tokens, 0)["content"].take() {
            Value::Array(entries) => entries,
            _ => Vec::new(),
        };
        for told in told {
            match told {
                Told::Text(text) => {
                    self.open(Kind::Message);
                    self.add(&text, std::mem::take(&mut logprobs));
                }
                Told::Call { id: call_id, name, .. } => self.open(Kind::Call { call_id, name }),
                Told::Arguments { text, .. } => self.add(&text, Vec::new()),
            }
        }
    }

    /// Opens an item of this kind, unless the latest item has the same kind.
    fn open(&mut self, kind: Kind) {
        if self.items.last().is_some_and(|item| item.kind == kind) {
            return;
        }
        self.close("completed");
        let item = Item::new(kind);
        let index = self.items.len();
        self.send("response.output_item.added", json!({"output_index": index, "item": item.with(&[])}));
        if let Some(part) = item.part() {
            let fields = json!({"item_id": item.id, "output_index": index, "content_index": 0, "part": part});
            self.send("response.content_part.added", fields);
        }
        self.items.push(item);
    }

    /// Adds to the text of the latest item.
    fn add(&mut self, text: &str, logprobs: Vec<Value>) {
        let index = self.items.len().saturating_sub(1);
        let Some(item) = self.items.last_mut() else { return };
        item.text.push_str(text);
        let mut fields = json!({"item_id": item.id, "output_index": index, "content_index": 0, "delta": text});
        let kind = match item.kind {
            Kind::Reasoning => "response.reasoning_text.delta",
            Kind::Message => {
                fields["logprobs"] = logprobs.clone().into();
                item.logprobs.extend(logprobs);
                "response.output_text.delta"
            }
            Kind::Call { .. } => {
                fields = json!({"item_id": item.id, "output_index": index, "delta": text});
                "response.function_call_arguments.delta"
            }
        };
        self.send(kind, fields);
    }

    /// Closes the latest item, if there is one.
    fn close(&mut self, status: &'static str) {
        let index = self.items.len().saturating_sub(1);
        let Some(item) = self.items.last_mut() else { return };
        item.status = status;
        let (id, text, whole) = (item.id.clone(), item.text.clone(), item.json());
        let mut done = json!({"item_id": id, "output_index": index});
        let kind = match &item.kind {
            Kind::Reasoning => {
                (done["content_index"], done["text"]) = (0.into(), text.into());
                "response.reasoning_text.done"
            }
            Kind::Message => {
                (done["content_index"], done["text"]) = (0.into(), text.into());
                done["logprobs"] = item.logprobs.clone().into();
                "response.output_text.done"
            }
            Kind::Call { name, .. } => {
                (done["name"], done["arguments"]) = (name.as_str().into(), text.into());
                "response.function_call_arguments.done"
            }
        };
        let part = item.part();
        self.send(kind, done);
        if let Some(part) = part {
            let fields = json!({"item_id": id, "output_index": index, "content_index": 0, "part": part});
            self.send("response.content_part.done", fields);
        }
        self.send("response.output_item.done", json!({"output_index": index, "item": whole}));
    }

    /// The response at the end of its answer.
    fn end(&mut self, mut ending: Box<Ending>) -> Value {
        let rest = self.collected.calls[0].finish();
        self.tell(rest, &[]);
        let cut = answer::finish_reason(&ending.reason, false) == Some("length");
        if !cut && self.items.iter().all(|item| item.kind == Kind::Reasoning) {
            // If the answer is empty, the response still has an empty message, because clients look for a message or
            // a call.
            self.open(Kind::Message);
        }
        // A stop text can end a call inside its arguments. Such a call is not marked as completed, because agents
        // carry out completed calls.
        let json = |item: &Item| item.text.is_empty() || serde_json::from_str::<Value>(&item.text).is_ok();
        let broken = self.items.last().is_some_and(|item| matches!(item.kind, Kind::Call { .. }) && !json(item));
        self.close(if cut || broken { "incomplete" } else { "completed" });
        self.traces.keep(&self.frame, 0, ending.trace.take());
        let mut fields = Map::new();
        if cut {
            fields.insert("incomplete_details".into(), json!({"reason": "max_output_tokens"}));
        } else {
            fields.insert("completed_at".into(), Frame::now().into());
        }
        fields.insert("usage".into(), usage(ending));
        self.response(if cut { "incomplete" } else { "completed" }, fields)
    }

    /// The events of an answer that failed: the error, from which clients raise an error of their own, and the
    /// response so far.
    fn fail(&mut self, refusal: &Refusal) {
        let mut error = refusal.body();
        for field in ["code", "message", "param"] {
            error[field] = error["error"][field].clone();
        }
        self.send("error", error);
        if let Some(item) = self.items.last_mut() {
            item.status = "incomplete";
        }
        // Clients know some codes of failed responses. This is the one for errors that the client did not cause.
        let error = json!({"code": "server_error", "message": refusal.body()["error"]["message"]});
        let mut fields = Map::new();
        fields.insert("error".into(), error);
        let response = self.response("failed", fields);
        self.last("response.failed", json!({"response": response}));
    }

    /// The response with this status. `changed` replaces some of its fields.
    fn response(&self, status: &str, changed: Map<String, Value>) -> Value {
        let mut response = Map::new();
        response.insert("id".into(), self.frame.id.as_str().into());
        response.insert("object".into(), "response".into());
        response.insert("created_at".into(), self.frame.created.into());
        response.insert("status".into(), status.into());
        response.insert("background".into(), false.into());
        for field in ["completed_at", "error", "incomplete_details"] {
            response.insert(field.into(), Value::Null);
        }
        response.insert("model".into(), self.frame.model.as_str().into());
        response.insert("output".into(), self.items.iter().map(Item::json).collect());
        response.insert("usage".into(), Value::Null);
        response.extend(self.repeated.clone());
        response.extend(changed);
        response.into()
    }

    /// Sends an event with its number.
    fn send(&mut self, kind: &str, fields: Value) {
        let Some(events) = &mut self.events else { return };
        let mut event = Map::new();
        event.insert("type".into(), kind.into());
        event.insert("sequence_number".into(), self.number.into());
        if let Value::Object(fields) = fields {
            event.extend(fields);
        }
        self.number += 1;
        events.named(kind, &event.into());
    }

    /// Sends the last event.
    fn last(&mut self, kind: &str, fields: Value) {
        self.send(kind, fields);
        if let Some(events) = &mut self.events {
            events.end();
        }
    }

    /// Takes the events that have not been sent yet.
    fn sent(&mut self) -> Outgoing {
        self.events.as_mut().map(std::mem::take).unwrap_or_default()
    }
}

/// The usage of a chat, with the field names of responses.
fn usage(ending: Box<Ending>) -> Value {
    let chat = answer::usage(&[ending], 1);
    let cached = &chat["prompt_tokens_details"]["cached_tokens"];
    // OpenAI's package requires the number. It is 0, because a prompt that is kept for later requests stays where it
    // was computed.
    let written = 0;
    json!({
        "input_tokens": chat["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": written},
        "output_tokens": chat["completion_tokens"],
        "output_tokens_details": chat["completion_tokens_details"],
        "total_tokens": chat["total_tokens"],
        "secateur": chat["secateur"],
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::answer::{Form, tests::frame};
    use crate::serve::mailbox::Part;
    use crate::serve::tools::Calling;
    use crate::text::CallFormat;
    use crate::trace::{StopReason, Totals};

    fn text(part: Part, text: &str) -> Piece {
        Piece::Text { part, text: text.into(), tokens: Vec::new() }
    }

    fn ended(reason: StopReason) -> Piece {
        Piece::End(Ok(Box::new(Ending {
            reason,
            totals: Totals::default(),
            probes: 0,
            shared_tokens: 0,
            seed: 0,
            trace: None,
            error: None,
            prompt_logprobs: Vec::new(),
        })))
    }

    /// The kinds, texts and statuses of the items of a response to these pieces.
    fn items(pieces: Vec<Piece>) -> Vec<[String; 3]> {
        let tool = json!({"type": "function", "function": {"name": "f"}});
        let calling = Some(Calling::new(CallFormat::Tagged, &[tool], true));
        let frame = Frame { thinking_field: Some("reasoning"), calling, ..frame(Form::Chat) };
        let mut output = ResponseOutput::new(frame, Map::new(), Arc::new(Traces::new(0)));
        let mut last = None;
        for piece in pieces {
            assert!(last.is_none(), "it has ended");
            last = output.piece(piece).expect("no failure");
        }
        let response = last.expect("the last piece ends it");
        let item = |item: &Value| {
            let text = item["content"][0]["text"].as_str().or(item["arguments"].as_str()).unwrap_or("none");
            let known = |name: &str| item[name].as_str().unwrap_or_default().to_string();
            [known("type"), text.to_string(), known("status")]
        };
        response["output"].as_array().expect("items").iter().map(item).collect()
    }

    #[test]
    fn items_are_in_the_order_in_which_they_came() {
        let call = "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1}}</tool_call>";
        let found = items(vec![
            text(Part::Thinking, "\nHm"),
            text(Part::Thinking, ".\n"),
            text(Part::Tag, "</think>"),
            text(Part::Answer, &format!("\n\nLet me {call}{call}")),
            text(Part::Answer, " see."),
            text(Part::Tag, "<think>"),
            text(Part::Thinking, "Again."),
            text(Part::Tag, "</think>"),
            text(Part::Answer, "Done."),
            ended(StopReason::Eos),
        ]);
        let expected = [
            ["reasoning", "Hm.", "completed"],
            ["message", "Let me", "completed"],
            ["function_call", "{\"a\": 1}", "completed"],
            ["function_call", "{\"a\": 1}", "completed"],
            ["message", " see.", "completed"],
            ["reasoning", "Again.", "completed"],
            ["message", "Done.", "completed"],
        ];
        assert_eq!(found, expected);
    }

    /// Clients look for a message or a call in every completed response.
    #[test]
    fn an_answer_without_a_word_is_a_message_without_one() {
        assert_eq!(items(vec![ended(StopReason::Eos)]), [["message", "", "completed"]]);
        assert_eq!(items(vec![ended(StopReason::MaxNewTokens)]), [[""; 3]; 0]);
        let thought = || text(Part::Thinking, "Hm.");
        let reasoning = |status| ["reasoning", "Hm.", status];
        assert_eq!(items(vec![thought(), ended(StopReason::MaxNewTokens)]), [reasoning("incomplete")]);
        let both = [reasoning("completed"), ["message", "", "completed"]];
        assert_eq!(items(vec![thought(), ended(StopReason::Eos)]), both);
    }
}

//! How a model ends its turn in a chat, as its template shows.
use super::{ChatTemplate, Message, RenderOptions, Tokenizer};

/// The text that takes the place of the answer. No template contains it.
const ANSWER: &str = "the answer of the assistant";

/// The special token that the template writes right after an answer. A model that was tuned with the template ends
/// its turn with this token, also where its configuration names only the end token of the base model. `None` if the
/// template cannot be rendered, or writes no special token there.
pub fn turn_end(tokenizer: &Tokenizer, template: &ChatTemplate) -> Option<u32> {
    let messages = [Message::user("?"), Message::new("assistant", ANSWER)];
    let options = RenderOptions { now: Some(0), ..RenderOptions::default() };
    let text = template.render_text(&messages, &options, false).ok()?;
    let (_, after) = text.rsplit_once(ANSWER)?;
    let first = tokenizer.encode(after.trim_start()).ok()?.first().copied();
    first.filter(|id| tokenizer.is_special(*id))
}

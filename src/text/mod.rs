//! From messages to token ids, and from token ids back to text. Each token keeps its byte range in the text.
//!
//! ```text
//! messages → ChatTemplate → prompt text → Tokenizer → ids → (model) → id → Detokenizer → text + token_ends
//! ```
pub mod calls;
pub mod control;
pub mod detokenize;
mod filters;
mod gguf;
mod jinja;
mod percent;
mod python;
mod sentencepiece;
mod stops;
pub mod tags;
pub mod template;
pub mod tokenizer;
mod turn;

pub use calls::{CallFormat, CallParser, Offered, Said};
pub use control::{Controls, Marked, Marks};
pub use detokenize::Detokenizer;
pub(crate) use stops::Stops;
pub use tags::ThinkTags;
pub use template::{ChatTemplate, Message, RenderOptions, RenderedPrompt, ThinkingState, thinking_state};
pub use tokenizer::{ThinkIds, Tokenizer};
pub use turn::turn_end;

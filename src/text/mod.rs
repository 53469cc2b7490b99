//! From messages to token ids, and from token ids back to text. Each token keeps its byte range in the text.
//!
//! ```text
//! messages → ChatTemplate → prompt text → Tokenizer → ids → (model) → id → Detokenizer → text + token_ends
//! ```
pub mod detokenize;
mod gguf;
mod jinja;
pub mod tags;
pub mod template;
pub mod tokenizer;

pub use detokenize::Detokenizer;
pub use tags::ThinkTags;
pub use template::{ChatTemplate, Message, RenderOptions, RenderedPrompt, ThinkingState, thinking_state};
pub use tokenizer::{ThinkIds, Tokenizer};

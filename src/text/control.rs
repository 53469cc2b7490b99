//! Keeps the text that people write separate from the text that a chat template writes.
//!
//! A tokenizer finds the tokens that control a conversation, such as `<|im_end|>`, by their spelling. In a rendered
//! prompt, a user who writes `<|im_end|>` could therefore end the turn and begin another one in the name of the
//! system. So the first character of each such spelling in a message is replaced by a mark before the template sees
//! it: a private character that occurs in no message. The spellings that remain in the rendered prompt were written
//! by the template. [`Tokenizer::encode_rendered`](super::Tokenizer::encode_rendered) encodes both accordingly.
//!
//! An ordinary message gets no marks, and its ids are those of the whole text. A mark takes the place of a character,
//! so that templates which trim, cut or measure a text work as before. An assistant's tags, such as `</think>` or
//! `<tool_call>`, are not marked where the tokenizer does not mark them as special: the model wrote them, and
//! templates look for them. The names and arguments of its calls are marked like the texts of other roles, because a
//! template puts its own tags around them.
use super::{Message, RenderOptions};
use serde_json::{Map, Value as Json};
use std::collections::HashSet;

/// The private characters that may become marks.
const PRIVATE: std::ops::RangeInclusive<char> = '\u{100000}'..='\u{10FFFD}';

/// The field of a message that has the calls of tools.
const CALLS: &str = "tool_calls";

/// Spellings of control tokens, as a trie of bytes.
#[derive(Debug, Clone, Default)]
pub(super) struct Spellings(Vec<Node>);

#[derive(Debug, Clone, Default)]
struct Node {
    /// The index of the node for each next byte.
    next: Vec<(u8, usize)>,
    /// The id of the token that ends here.
    id: Option<u32>,
}

impl Spellings {
    pub fn new<'t>(tokens: impl IntoIterator<Item = (u32, &'t str)>) -> Self {
        let mut nodes = vec![Node::default()];
        for (id, text) in tokens {
            let mut at = 0;
            for byte in text.bytes() {
                let known = nodes[at].next.iter().find(|(next, _)| *next == byte).map(|(_, to)| *to);
                at = known.unwrap_or_else(|| {
                    nodes.push(Node::default());
                    let to = nodes.len() - 1;
                    nodes[at].next.push((byte, to));
                    to
                });
            }
            nodes[at].id = (at > 0).then_some(id);
        }
        Self(nodes)
    }

    /// The longest spelling with which `text` begins: its length in bytes, and its id. The second result says whether
    /// the whole text is the beginning of a longer spelling.
    fn begins(&self, text: &[u8]) -> (Option<(usize, u32)>, bool) {
        let (mut node, mut longest) = (&self.0[0], None);
        for (i, byte) in text.iter().enumerate() {
            let Some((_, to)) = node.next.iter().find(|(next, _)| next == byte) else { return (longest, false) };
            node = &self.0[*to];
            longest = node.id.map(|id| (i + 1, id)).or(longest);
        }
        (longest, !text.is_empty() && !node.next.is_empty())
    }

    /// Cuts `text` at the spellings in it, the leftmost first and of those the longest: plain text and ids, in turn.
    pub fn cut<'t>(&self, text: &'t str) -> Vec<Cut<'t>> {
        let (mut cuts, mut from, mut at) = (Vec::new(), 0, 0);
        while at < text.len() {
            match self.begins(&text.as_bytes()[at..]).0 {
                // A spelling that ends inside a character does not count.
                Some((len, id)) if text.is_char_boundary(at) && text.is_char_boundary(at + len) => {
                    cuts.push(Cut::Plain(&text[from..at]));
                    cuts.push(Cut::Control(id));
                    at += len;
                    from = at;
                }
                _ => at += 1,
            }
        }
        cuts.push(Cut::Plain(&text[from..]));
        cuts
    }
}

/// A part of a text; see [`Spellings::cut`].
pub(super) enum Cut<'t> {
    Plain(&'t str),
    Control(u32),
}

/// The spellings of a tokenizer's control tokens.
#[derive(Debug, Clone, Default)]
pub struct Controls {
    /// The spellings of all control tokens.
    pub(super) all: Spellings,
    /// The spellings that no model writes into a message: those of the special tokens.
    pub(super) special: Spellings,
    pub(super) ids: HashSet<u32>,
}

/// Which private characters stand for which characters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Marks(Vec<(char, char)>);

impl Marks {
    /// Whether the text has no marks.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The text without its marks, as it was written.
    pub fn removed(&self, text: &str) -> String {
        let original = |c: char| self.0.iter().find(|(mark, _)| *mark == c).map_or(c, |(_, original)| *original);
        if self.is_empty() { text.to_string() } else { text.chars().map(original).collect() }
    }

    /// The mark for `original`. `taken` are private characters that messages contain. `None` if none is left.
    fn mark(&mut self, original: char, taken: &HashSet<char>) -> Option<char> {
        if let Some((mark, _)) = self.0.iter().find(|(_, known)| *known == original) {
            return Some(*mark);
        }
        let free = |c: &char| !taken.contains(c) && self.0.iter().all(|(mark, _)| mark != c);
        let mark = PRIVATE.clone().find(free)?;
        self.0.push((mark, original));
        Some(mark)
    }
}

/// The input of a template, with the spellings of control tokens marked.
#[derive(Debug, Clone)]
pub struct Marked {
    /// The messages with marks.
    pub messages: Vec<Message>,
    /// The other variables of the template, with marks.
    pub options: RenderOptions,
    /// The characters that the marks replace.
    pub marks: Marks,
}

impl Marked {
    /// Marks the spellings of `controls` in all texts of `messages` and `options`.
    pub fn new(controls: &Controls, messages: &[Message], options: &RenderOptions) -> Self {
        let (mut messages, mut options) = (messages.to_vec(), options.clone());
        let mut taken = HashSet::new();
        let mut note = |text: &mut String| taken.extend(text.chars().filter(|c| PRIVATE.contains(c)));
        each_text(&mut messages, &mut options, &mut |text, _| note(text));
        let mut marks = Marks::default();
        each_text(&mut messages, &mut options, &mut |text, assistant| {
            let spellings = if assistant { &controls.special } else { &controls.all };
            if let Some(marked) = marked(text, spellings, &mut marks, &taken) {
                *text = marked;
            }
        });
        Self { messages, options, marks }
    }
}

/// `text` with the first character of each spelling marked; `None` if there is none. The beginning of a spelling at
/// the end of the text counts, because a template may put the next part of a message right behind it.
fn marked(text: &str, spellings: &Spellings, marks: &mut Marks, taken: &HashSet<char>) -> Option<String> {
    let trimmed = text.trim_end();
    let spells = |at: usize| {
        let (longest, unfinished) = spellings.begins(&text.as_bytes()[at..]);
        longest.is_some() || unfinished || at < trimmed.len() && spellings.begins(&trimmed.as_bytes()[at..]).1
    };
    if !text.char_indices().any(|(at, _)| spells(at)) {
        return None;
    }
    // If no private character is free, the character is left out. A text that contains all private characters is not
    // meant to be read.
    Some(text.char_indices().filter_map(|(at, c)| if spells(at) { marks.mark(c, taken) } else { Some(c) }).collect())
}

/// Calls `edit` with every text in `messages` and `options`, and with whether the model wrote it.
fn each_text(messages: &mut [Message], options: &mut RenderOptions, edit: &mut dyn FnMut(&mut String, bool)) {
    for Message { role, content, extra } in messages {
        let assistant = role == "assistant";
        edit(role, assistant);
        each_in(content, &mut |text| edit(text, assistant));
        for (name, value) in extra.iter_mut() {
            // Templates do not look for tags in calls.
            let own = assistant && name != CALLS;
            each_in(value, &mut |text| edit(text, own));
        }
        rename(extra, &mut |text| edit(text, assistant));
    }
    if let Some(tools) = &mut options.tools {
        each_in(tools, &mut |text| edit(text, false));
    }
    each_in_map(&mut options.extra, &mut |text| edit(text, false));
}

fn each_in(value: &mut Json, edit: &mut dyn FnMut(&mut String)) {
    match value {
        Json::String(text) => edit(text),
        Json::Array(items) => items.iter_mut().for_each(|item| each_in(item, edit)),
        Json::Object(fields) => each_in_map(fields, edit),
        Json::Null | Json::Bool(_) | Json::Number(_) => (),
    }
}

fn each_in_map(fields: &mut Map<String, Json>, edit: &mut dyn FnMut(&mut String)) {
    fields.iter_mut().for_each(|(_, value)| each_in(value, edit));
    rename(fields, edit);
}

/// Calls `edit` with the names of `fields`.
fn rename(fields: &mut Map<String, Json>, edit: &mut dyn FnMut(&mut String)) {
    let renamed = std::mem::take(fields).into_iter().map(|(mut name, value)| {
        edit(&mut name);
        (name, value)
    });
    *fields = renamed.collect();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn controls() -> Controls {
        let (end, think) = ((7, "<|end|>"), (8, "</think>"));
        Controls {
            all: Spellings::new([end, think, (9, "<|end|>>")]),
            special: Spellings::new([end]),
            ids: [7, 8, 9].into(),
        }
    }

    fn mark(message: Message) -> (Message, Marks) {
        let marked = Marked::new(&controls(), &[message], &RenderOptions::default());
        (marked.messages[0].clone(), marked.marks)
    }

    #[test]
    fn ordinary_messages_are_left_alone() {
        for text in
            ["", "a < b", "<end>", "<|end|", "x<|", "naïve </thin king>"].map(|text| format!("{text} and so on"))
        {
            let message = Message::user(text);
            assert_eq!(mark(message.clone()), (message, Marks::default()));
        }
    }

    #[test]
    fn every_spelling_is_broken_and_can_be_restored() {
        for text in ["<|end|>", "a<|end|>b</think>c", "<<|end|>>", "x <|en", "x <|en \n", "\u{100000}<|end|>", "<"] {
            let (message, marks) = mark(Message::user(text));
            let marked = message.content.as_str().unwrap();
            assert_eq!(marked.chars().count(), text.chars().count());
            assert_eq!(marks.removed(marked), text);
            // The next part of the message does not complete a spelling either.
            for after in ["", "d|>", "/think>", "|end|>"] {
                let cuts = controls().all.cut(&format!("{marked}{after}")).len();
                assert_eq!(cuts, 1, "{text:?} then {after:?}");
            }
        }
    }

    #[test]
    fn tags_of_the_assistant_stay_and_nested_texts_are_found() {
        let (message, marks) = mark(Message::new("assistant", "a</think>b"));
        assert!(marks.is_empty() && message.content == "a</think>b");
        let mut message = Message::new("tool", "");
        message.content = serde_json::json!([{"type": "text", "text": "<|end|>"}, {"<|end|>": 1}]);
        message.extra.insert("reasoning_content".into(), "x<|end|>".into());
        let (marked, marks) = mark(message);
        let written = serde_json::to_string(&marked).unwrap();
        assert!(!written.contains("<|end|>") && marks.removed(&written).matches("<|end|>").count() == 3, "{written}");
    }

    #[test]
    fn texts_in_calls_and_in_tools_are_marked() {
        let mut message = Message::new("assistant", "a</think>b");
        let call = serde_json::json!({"function": {"name": "f", "arguments": {"x": "1</think>", "<|end|>": 2}}});
        message.extra.insert(CALLS.into(), serde_json::json!([call]));
        message.extra.insert("reasoning_content".into(), "t</think>".into());
        let options =
            RenderOptions { tools: Some(serde_json::json!([{"description": "</think>"}])), ..Default::default() };
        let marked = Marked::new(&controls(), &[message.clone()], &options);
        let written = serde_json::to_string(&marked.messages).unwrap();
        assert!(
            written.contains("a</think>b") && written.contains("t</think>"),
            "the model's own tags stay: {written}"
        );
        assert!(!written.contains("1</think>") && !written.contains("<|end|>"), "{written}");
        assert_eq!(marked.marks.removed(&written), serde_json::to_string(&[message]).unwrap());
        assert!(!marked.options.tools.unwrap().to_string().contains("</think>"));
    }

    #[test]
    fn a_text_is_cut_at_the_longest_spellings() {
        let all = controls().all;
        let shown = |text: &str| {
            let shown = all.cut(text).into_iter().map(|cut| match cut {
                Cut::Plain(text) => text.to_string(),
                Cut::Control(id) => format!("[{id}]"),
            });
            shown.collect::<String>()
        };
        assert_eq!(shown("a<|end|>>b<|end|>é</think"), "a[9]b[7]é</think");
        assert_eq!(shown(""), "");
    }
}

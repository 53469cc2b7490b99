//! The tags around a model's thinking.

/// A pair of tags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ThinkTags {
    /// Opens the thinking.
    pub open: &'static str,
    /// Ends it.
    pub close: &'static str,
}

impl ThinkTags {
    /// The tags of nearly all reasoning models. The default stands for a model without tags of its own.
    pub const COMMON: Self = Self { open: "<think>", close: "</think>" };

    /// Every pair that is recognised: the common one, and that of Magistral and Ministral.
    pub const ALL: [Self; 2] = [Self::COMMON, Self { open: "[THINK]", close: "[/THINK]" }];

    /// Whether `text` is one of the tags.
    pub fn contain(text: &str) -> bool {
        Self::ALL.iter().any(|tags| text == tags.open || text == tags.close)
    }

    /// Where the last opening tag of any pair begins in `text`.
    pub fn last_open(text: &str) -> Option<usize> {
        Self::ALL.iter().filter_map(|tags| text.rfind(tags.open)).max()
    }

    /// Where the last closing tag of any pair ends in `text`.
    pub fn last_close(text: &str) -> Option<usize> {
        Self::ALL.iter().filter_map(|tags| Some(text.rfind(tags.close)? + tags.close.len())).max()
    }
}

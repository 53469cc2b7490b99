//! Settings of pruning that hold for every policy: which layers and heads share a kept set, whose attention counts in
//! its scores, and which positions kept keys have.
use std::fmt;
use std::str::FromStr;

use crate::text_form::{named_variants, serde_as_text};
use crate::{Error, ErrorKind, Result};

fn unknown(what: &str, place: &str, expected: &str, found: &str) -> Error {
    Error::new(ErrorKind::Input, what).at(place).expected(expected).found(format!("{found:?}"))
}

/// Which layers and heads share a kept set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Scope {
    /// One set for all layers and heads.
    #[default]
    Shared,
    /// A set for each layer; their sizes may differ.
    Layer,
    /// A set for each KV head of each layer, of equal size within a layer. The query heads of a KV head are averaged.
    Head,
}

named_variants!(Scope, "a scope", "scope", { Shared = "shared", Layer = "layer", Head = "head" });

/// Whether each head's weights are brought to one scale before they are averaged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Normalise {
    /// The model's own softmax over all keys. A head that attends to the sinks contributes little.
    #[default]
    None,
    /// The weights of each head over the evictable tokens sum to 1, so that every head contributes equally. *(ours)*
    PerHead,
}

named_variants!(Normalise, "a normalisation", "normalise", { None = "none", PerHead = "per-head" });

/// The positions of kept keys after an eviction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Positions {
    /// Each key keeps the position at which it was written.
    #[default]
    Original,
    /// Kept keys get consecutive positions, and the next token follows the last of them.
    Compact,
}

named_variants!(Positions, "a way to count positions", "positions", { Original = "original", Compact = "compact" });

/// The layers whose attention counts in a shared set's scores. Written `all` or as numbers and ranges, `0-3,7`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Layers {
    /// Every layer.
    #[default]
    All,
    /// These layers, ascending, none of them twice.
    Listed(Vec<usize>),
}

impl Layers {
    /// Makes a list of layers, given in any order.
    ///
    /// # Errors
    /// [`ErrorKind::Input`] for an empty list.
    pub fn listed(mut layers: Vec<usize>) -> Result<Self> {
        layers.sort_unstable();
        layers.dedup();
        if layers.is_empty() {
            return Err(unknown("no layer is listed", "`layers`", "all, or numbers and ranges such as 0-3,7", ""));
        }
        Ok(Self::Listed(layers))
    }

    /// Whether the attention of `layer` counts.
    pub fn contains(&self, layer: usize) -> bool {
        match self {
            Self::All => true,
            Self::Listed(layers) => layers.binary_search(&layer).is_ok(),
        }
    }

    /// The number of the first layers, of `layers`, that must be measured so that all layers that count are among
    /// them.
    pub fn deepest(&self, layers: usize) -> usize {
        match self {
            Self::All => layers,
            Self::Listed(listed) => listed.last().map_or(layers, |last| last + 1).min(layers),
        }
    }

    /// Checks that the choice fits a model of `layers` layers and the scope.
    ///
    /// # Errors
    /// [`ErrorKind::Input`] for a layer that the model does not have, and for a list where every layer scores its own
    /// set.
    pub fn check(&self, layers: usize, scope: Scope) -> Result<()> {
        let Self::Listed(listed) = self else { return Ok(()) };
        if scope != Scope::Shared {
            return Err(Error::new(ErrorKind::Input, "a list of layers has an effect only on a shared set")
                .at("`layers`")
                .expected(format!("all, with `scope` {scope}"))
                .found(self)
                .help("leave `layers` out, or use `scope` shared"));
        }
        match listed.iter().find(|l| **l >= layers) {
            None => Ok(()),
            Some(layer) => Err(Error::new(ErrorKind::Input, "the model has no such layer")
                .at("`layers`")
                .expected(format!("layers 0 to {}", layers - 1))
                .found(layer)),
        }
    }
}

serde_as_text!(Layers);

impl fmt::Display for Layers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::Listed(layers) = self else { return f.write_str("all") };
        let mut rest = &layers[..];
        while let [first, ..] = rest {
            let run = rest.iter().zip(*first..).take_while(|(layer, next)| *layer == next).count();
            let comma = if rest.len() == layers.len() { "" } else { "," };
            match run {
                1 => write!(f, "{comma}{first}")?,
                _ => write!(f, "{comma}{first}-{}", first + run - 1)?,
            }
            rest = &rest[run..];
        }
        Ok(())
    }
}

impl FromStr for Layers {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text == "all" {
            return Ok(Self::All);
        }
        let wrong = || unknown("not a list of layers", "`layers`", "all, or numbers and ranges such as 0-3,7", text);
        let mut layers = Vec::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let number = |n: &str| n.trim().parse::<usize>().ok().filter(|n| *n < 10_000).ok_or_else(wrong);
            let (first, last) = (number(first)?, number(last)?);
            if first > last {
                return Err(wrong());
            }
            layers.extend(first..=last);
            // A text with repeated ranges can name a thousand times as many layers as it has bytes.
            if layers.len() > 10_000 {
                return Err(wrong());
            }
        }
        Self::listed(layers)
    }
}

/// The kept sets of one sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sets {
    /// Which layers and heads share a kept set.
    pub scope: Scope,
    /// Layers of the model.
    pub layers: usize,
    /// KV heads of a layer.
    pub kv_heads: usize,
}

impl Sets {
    /// One set for everything.
    pub const SHARED: Self = Self { scope: Scope::Shared, layers: 1, kv_heads: 1 };

    /// The number of sets.
    pub fn count(&self) -> usize {
        match self.scope {
            Scope::Shared => 1,
            Scope::Layer => self.layers,
            Scope::Head => self.layers * self.kv_heads,
        }
    }

    /// The set of a layer and KV head.
    pub fn of(&self, layer: usize, kv_head: usize) -> usize {
        match self.scope {
            Scope::Shared => 0,
            Scope::Layer => layer,
            Scope::Head => layer * self.kv_heads + kv_head,
        }
    }

    /// The layer of a set and, in scope `head`, its KV head; (`None`, `None`) for the shared set.
    pub fn place(&self, set: usize) -> (Option<usize>, Option<usize>) {
        match self.scope {
            Scope::Shared => (None, None),
            Scope::Layer => (Some(set), None),
            Scope::Head => (Some(set / self.kv_heads), Some(set % self.kv_heads)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_value_are_inverse() {
        for text in ["all", "0", "0-3,7", "1,3,5-6", "0-27"] {
            assert_eq!(text.parse::<Layers>().unwrap().to_string(), text);
        }
        assert_eq!("7,0-3,2".parse::<Layers>().unwrap().to_string(), "0-3,7");
        for text in ["shared", "layer", "head"] {
            assert_eq!(text.parse::<Scope>().unwrap().to_string(), text);
        }
        for text in ["none", "per-head"] {
            assert_eq!(text.parse::<Normalise>().unwrap().to_string(), text);
        }
        for text in ["original", "compact"] {
            assert_eq!(text.parse::<Positions>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_no_value_says_what_is() {
        for text in ["", "a", "3-1", "1,", "-1", "1-", "99999999999", "0-99999", "All"] {
            assert!(text.parse::<Layers>().unwrap_err().to_string().contains("0-3,7"), "{text}");
        }
        assert!("each".parse::<Scope>().unwrap_err().to_string().contains("shared, layer or head"));
        assert!("yes".parse::<Normalise>().unwrap_err().to_string().contains("per-head"));
        assert!("0".parse::<Positions>().unwrap_err().to_string().contains("compact"));
    }

    #[test]
    fn layers_must_exist_and_vote_on_a_shared_set() {
        let listed: Layers = "0-3,7".parse().unwrap();
        assert!(listed.check(8, Scope::Shared).is_ok());
        assert!(listed.check(7, Scope::Shared).unwrap_err().to_string().contains("layers 0 to 6"));
        assert!(listed.check(8, Scope::Head).is_err() && Layers::All.check(8, Scope::Head).is_ok());
        assert_eq!((0..9).filter(|l| listed.contains(*l)).collect::<Vec<_>>(), [0, 1, 2, 3, 7]);
    }

    #[test]
    fn sets_and_places_are_inverse() {
        for scope in [Scope::Shared, Scope::Layer, Scope::Head] {
            let sets = Sets { scope, layers: 3, kv_heads: 2 };
            for layer in 0..3 {
                for head in 0..2 {
                    let (l, h) = sets.place(sets.of(layer, head));
                    assert!(l.is_none_or(|l| l == layer) && h.is_none_or(|h| h == head));
                }
            }
            assert_eq!(sets.of(2, 1) + 1, sets.count());
        }
    }
}

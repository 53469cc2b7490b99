//! Reduces the measurements of all layers and heads to one score per slot of a kept set.
use super::{Layers, Normalise, Scope, Sets};
use crate::{Error, ErrorKind, Result};

/// Rows with one number per slot, as a readout gave them, by layer. Rows may be longer than the cached slots, because
/// a probe attends to itself; the rest is ignored.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Measured {
    /// `[layer][row][slot]`. The rows of a layer are its query heads, its KV heads, or the mean of all: their number
    /// is 1 or a multiple of the number of KV heads.
    pub layers: Vec<Vec<Vec<f32>>>,
}

impl Measured {
    /// Takes one list per layer, which holds the layer's rows one after the other, `slots[layer]` values each. The
    /// list of a layer that was not measured is empty.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] for a list that does not consist of whole rows.
    pub fn new(rows: &[Vec<f32>], slots: &[usize]) -> Result<Self> {
        if rows.len() != slots.len() || rows.iter().zip(slots).any(|(r, n)| r.len() % (*n).max(1) != 0) {
            return Err(Error::new(ErrorKind::Internal, "a readout does not consist of whole rows")
                .expected(format!("{slots:?} values a row"))
                .found(format!("{:?}", rows.iter().map(Vec::len).collect::<Vec<_>>())));
        }
        let split = |(r, n): (&Vec<f32>, &usize)| r.chunks((*n).max(1)).map(<[f32]>::to_vec).collect();
        Ok(Self { layers: rows.iter().zip(slots).map(split).collect() })
    }

    /// The rows that count for `set`: those of the listed layers for the shared set, otherwise those of the set's
    /// layer or KV head. The query heads of a KV head are adjacent.
    fn rows<'a>(&'a self, sets: &Sets, layers: &Layers, set: usize) -> Vec<&'a [f32]> {
        let all = |l: usize| self.layers[l].iter().map(Vec::as_slice);
        match (sets.scope, sets.place(set)) {
            (_, (Some(layer), Some(head))) => {
                let per_head = (self.layers[layer].len() / sets.kv_heads).max(1);
                all(layer).skip(head * per_head).take(per_head).collect()
            }
            (_, (Some(layer), None)) => all(layer).collect(),
            _ => (0..self.layers.len()).filter(|l| layers.contains(*l)).flat_map(all).collect(),
        }
    }

    /// One score per slot of `set`: the mean over its rows of the first `evictable.len()` slots. With
    /// [`Normalise::PerHead`], each row is first divided by its sum over the slots that `evictable` marks. A row
    /// whose sum is 0 stays as it is.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] when there is no row, or one with too few slots.
    pub fn scores(
        &self,
        sets: &Sets,
        layers: &Layers,
        normalise: Normalise,
        set: usize,
        evictable: &[bool],
    ) -> Result<Vec<f32>> {
        let rows = self.rows(sets, layers, set);
        let slots = evictable.len();
        if layers.deepest(sets.layers) > self.layers.len() {
            return Err(Error::new(ErrorKind::Internal, "a layer that counts was not measured")
                .expected(format!("{} layers", layers.deepest(sets.layers)))
                .found(self.layers.len()));
        }
        if rows.is_empty() || rows.iter().any(|row| row.len() < slots) {
            return Err(Error::new(ErrorKind::Internal, "a set has no measured row for its slots")
                .at(format!("set {set} of scope {}", sets.scope))
                .expected(format!("rows of at least {slots} slots"))
                .found(format!("{:?}", rows.iter().map(|r| r.len()).collect::<Vec<_>>())));
        }
        let mut sums = vec![0f64; slots];
        for row in &rows {
            let free = row.iter().zip(evictable).filter(|(_, free)| **free).map(|(w, _)| *w);
            let scale = if normalise == Normalise::PerHead { scale_to_one(free) } else { 1.0 };
            sums.iter_mut().zip(*row).for_each(|(sum, weight)| *sum += f64::from(*weight) * scale);
        }
        Ok(sums.iter().map(|sum| (sum / rows.len() as f64) as f32).collect())
    }
}

/// The factor that brings the sum of `values` to 1; 1 for values whose sum is 0, which stay as they are.
pub(super) fn scale_to_one(values: impl Iterator<Item = f32>) -> f64 {
    let sum: f64 = values.map(f64::from).sum();
    if sum > 0.0 { 1.0 / sum } else { 1.0 }
}

/// The rows of an attention readout: what is averaged before the weights leave the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Granularity {
    /// A row for each query head.
    QueryHead,
    /// A row for each KV head, the mean over its query heads.
    KvHead,
    /// A row for each layer, the mean over all of its query heads.
    Layer,
}

/// The coarsest rows from which [`Measured::scores`] can be worked out for this scope and normalisation.
pub fn readout_granularity(scope: Scope, normalise: Normalise) -> Granularity {
    match (normalise, scope) {
        // Each query head is scaled on its own before heads are averaged.
        (Normalise::PerHead, _) => Granularity::QueryHead,
        (Normalise::None, Scope::Head) => Granularity::KvHead,
        (Normalise::None, Scope::Shared | Scope::Layer) => Granularity::Layer,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two layers of four query heads; two KV heads. Three slots and one beyond them.
    fn measured() -> Measured {
        let row = |a: f32| [a, 2.0 * a, 3.0 * a, 99.0];
        let rows: Vec<Vec<f32>> = (0..2).map(|l| (0..4).flat_map(|h| row((1 + h + 10 * l) as f32)).collect()).collect();
        Measured::new(&rows, &[4, 4]).unwrap()
    }

    fn scores(scope: Scope, layers: &str, normalise: Normalise, set: usize) -> Vec<f32> {
        let sets = Sets { scope, layers: 2, kv_heads: 2 };
        let layers: Layers = layers.parse().unwrap();
        measured().scores(&sets, &layers, normalise, set, &[false, true, true]).unwrap()
    }

    #[test]
    fn each_set_is_scored_by_its_own_rows() {
        let none = Normalise::None;
        assert_eq!(scores(Scope::Shared, "all", none, 0), [7.5, 15.0, 22.5]);
        assert_eq!(scores(Scope::Shared, "1", none, 0), [12.5, 25.0, 37.5]);
        assert_eq!(scores(Scope::Layer, "all", none, 0), [2.5, 5.0, 7.5]);
        assert_eq!(scores(Scope::Layer, "all", none, 1), [12.5, 25.0, 37.5]);
        // The group of KV head 1 of layer 1: query heads 2 and 3.
        assert_eq!(scores(Scope::Head, "all", none, 3), [13.5, 27.0, 40.5]);
        assert_eq!(scores(Scope::Head, "all", none, 0), [1.5, 3.0, 4.5]);
    }

    #[test]
    fn normalised_every_head_has_one_vote_over_what_may_go() {
        for (scope, set) in [(Scope::Shared, 0), (Scope::Layer, 1), (Scope::Head, 2)] {
            let s = scores(scope, "all", Normalise::PerHead, set);
            assert!((s[1] + s[2] - 1.0).abs() < 1e-6, "{s:?}");
            assert!((s[0] - 0.2).abs() < 1e-6 && (s[2] - 0.6).abs() < 1e-6, "{s:?}");
        }
        let nothing = Measured::new(&[vec![0.5, 0.0, 0.0]], &[3]).unwrap();
        let s = nothing.scores(&Sets::SHARED, &Layers::All, Normalise::PerHead, 0, &[false, true, true]).unwrap();
        assert_eq!(s, [0.5, 0.0, 0.0], "nothing is divided by nothing");
    }

    #[test]
    fn rows_that_are_too_short_or_missing_are_refused() {
        assert!(Measured::new(&[vec![0.0; 7]], &[4]).is_err());
        assert!(Measured::new(&[vec![0.0; 8]], &[]).is_err());
        let short = Measured::new(&[vec![0.0; 2]], &[2]).unwrap();
        assert!(short.scores(&Sets::SHARED, &Layers::All, Normalise::None, 0, &[true; 3]).is_err());
        let other: Layers = "5".parse().unwrap();
        assert!(short.scores(&Sets::SHARED, &other, Normalise::None, 0, &[true; 2]).is_err());
    }
}

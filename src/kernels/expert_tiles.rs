//! Choices of experts, sorted into tiles of one expert each, for [`experts`](mod@super::experts) of many rows.
//!
//! Contract: `chosen` `[choices]` has the expert of each choice. A tile is `1 + N` words: an expert, and up to
//! [`TILE`] of its choices in their order, filled up with [`NONE`]. The tiles are in the order of their experts;
//! those that are left over are all [`NONE`]. Exact.
use super::cases::{Bound, Case, Check};
use super::cube::launch;
use super::kernel::{Kernel, read, run};
use super::memory::empty;
use super::router::MOST_EXPERTS;
use super::twin::{slice, words};
use super::u32_tensor;
use super::uniform::uniform;
use super::variant::Variant;
use burn::backend::flex::FlexTensor;
use burn::backend::wgpu::CubeTensor;
use burn::tensor::{DType, Int, Tensor};

/// Choices of a tile.
pub const TILE: usize = 8;
/// Stands for no choice, and for no expert.
pub const NONE: u32 = u32::MAX;

/// Parameters of [`expert_tiles`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TilesSpec {
    /// Choices of all rows.
    pub choices: usize,
    /// Number of experts.
    pub experts: usize,
}

impl TilesSpec {
    /// The number of tiles that suffice for any choices: each chosen expert has at most one tile that is not full.
    pub fn tiles(&self) -> usize {
        (self.choices + (TILE - 1) * self.experts.min(self.choices)) / TILE
    }
}

/// Sorts `chosen`, u32 `[choices]`, into tiles: u32 `[tiles * (1 + TILE)]`.
pub fn expert_tiles(chosen: &Tensor<1, Int>, spec: TilesSpec) -> Tensor<1, Int> {
    let [tiles] = run(&spec, [read(chosen)]);
    Tensor::from_dispatch(tiles)
}

uniform! {
    struct Info { choices: u32, experts: u32, tiles: u32, pad0: u32 }
}

fn variant() -> Variant {
    let constants = [("THREADS", 256), ("MOST", MOST_EXPERTS as u32), ("N", TILE as u32)];
    Variant::new::<Info>("expert_tiles", include_str!("../../shaders/expert_tiles.wgsl"), constants)
}

impl Kernel<1, 1> for TilesSpec {
    fn launch(&self, [chosen]: [CubeTensor; 1]) -> [CubeTensor; 1] {
        assert!(self.experts <= MOST_EXPERTS, "the config is checked");
        let tiles = empty(&chosen, vec![self.tiles() * (1 + TILE)], DType::U32);
        let [choices, experts, count] = [self.choices, self.experts, self.tiles()].map(|v| v as u32);
        launch(&variant(), [1, 1, 1], &[&chosen, &tiles], Info { choices, experts, tiles: count, pad0: 0 });
        [tiles]
    }

    fn twin(&self, [chosen]: [FlexTensor; 1]) -> [FlexTensor; 1] {
        [words(twin(slice(&chosen), self))]
    }
}

pub(super) fn variants() -> Vec<Variant> {
    vec![variant()]
}

fn twin(chosen: &[u32], spec: &TilesSpec) -> Vec<u32> {
    let mut tiles = Vec::new();
    for expert in 0..spec.experts as u32 {
        let own: Vec<u32> = (0..spec.choices as u32).filter(|c| chosen[*c as usize] == expert).collect();
        for tile in own.chunks(TILE) {
            tiles.push(expert);
            tiles.extend((0..TILE).map(|i| tile.get(i).copied().unwrap_or(NONE)));
        }
    }
    tiles.resize(spec.tiles() * (1 + TILE), NONE);
    tiles
}

/// One choice; experts without choices; tiles filled exactly and exceeded by one; one expert for all; more experts
/// than invocations.
pub(super) fn cases() -> Vec<Case> {
    let shapes =
        [(1, 1, 1), (24, 4, 1), (75, 10, 7), (72, 16, 11), (2048, 128, 37), (33, 2, 0), (600, MOST_EXPERTS, 13)];
    let case = |(choices, experts, stride): (usize, usize, usize)| {
        let spec = TilesSpec { choices, experts };
        Case::new("expert_tiles", format!("{choices} choices of {experts} experts, stride {stride}"), move |device| {
            let chosen =
                (0..choices).map(|c| ((c * stride + c / 5) % experts * usize::from(stride > 0)) as u32).collect();
            let tiles = expert_tiles(&u32_tensor(chosen, device), spec);
            vec![Check::u32("tiles", tiles, 1 + TILE, Bound::Exact)]
        })
    };
    shapes.map(case).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_tiles_enough_for_any_choices() {
        for (choices, experts) in [(1, 1), (1, 9), (9, 1), (64, 3), (75, 10), (2048, 128)] {
            let spec = TilesSpec { choices, experts };
            // The worst case: as many experts as possible have one choice more than full tiles.
            let one_more = experts.min(choices);
            let chosen: Vec<u32> = (0..choices).map(|c| if c < one_more { c as u32 } else { 0 }).collect();
            let tiles = twin(&chosen, &spec);
            let placed: Vec<u32> =
                tiles.chunks(1 + TILE).flat_map(|tile| tile[1..].to_vec()).filter(|c| *c != NONE).collect();
            assert_eq!(tiles.len(), spec.tiles() * (1 + TILE));
            let mut sorted = placed.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..choices as u32).collect::<Vec<_>>(), "every choice once");
        }
    }

    #[test]
    fn a_tile_has_choices_of_one_expert() {
        let tiles = twin(&[2, 0, 2, 1], &TilesSpec { choices: 4, experts: 3 });
        let none = |n: usize| vec![NONE; n];
        let tile = |expert, choices: &[u32]| [vec![expert], choices.to_vec(), none(TILE - choices.len())].concat();
        assert_eq!(tiles, [tile(0, &[1]), tile(1, &[3]), tile(2, &[0, 2])].concat());
    }
}

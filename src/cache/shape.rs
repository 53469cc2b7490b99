//! The sizes of a KV cache, and the bytes that follow from them.
use crate::device::DeviceInfo;
use crate::dtype::Dtype;
use crate::kernels::{MOST_ROWS, MOST_TOGETHER, state};
use crate::model::config::ModelConfig;
use crate::{Error, ErrorKind, Result};

use super::RING;

/// The sizes of a KV cache.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CacheShape {
    /// Decoder layers, each with a buffer of its own.
    pub layers: usize,
    /// Key/value heads of a layer.
    pub kv_heads: usize,
    /// Values in one head's key or value vector.
    pub head_dim: usize,
    /// Element type of the stored keys and values: `F32` or `F16`.
    pub dtype: Dtype,
    /// The most sequences that run side by side.
    pub seqs: usize,
    /// Capacities are rounded up to a multiple of this many slots.
    pub growth: usize,
}

impl CacheShape {
    /// The shape that a model of `config` needs for `seqs` sequences.
    ///
    /// # Errors
    /// [`ErrorKind::Input`] when `dtype` is neither f32 nor f16 (no kernel writes other types), and for more
    /// sequences than a step can have rows.
    pub fn new(config: &ModelConfig, dtype: Dtype, seqs: usize, growth: usize) -> Result<Self> {
        if !matches!(dtype, Dtype::F32 | Dtype::F16) {
            return Err(Error::new(ErrorKind::Input, format!("the KV cache cannot be {dtype}"))
                .at("`kv`")
                .expected("f32 or f16"));
        }
        if !(1..=MOST_ROWS).contains(&seqs) {
            return Err(Error::new(ErrorKind::Input, "this number of sequences cannot run side by side")
                .at("`sequences`")
                .expected(format!("at least 1, at most {MOST_ROWS}"))
                .found(seqs));
        }
        Ok(Self {
            layers: config.num_layers,
            kv_heads: config.num_kv_heads,
            head_dim: config.head_dim,
            dtype,
            seqs,
            growth: growth.max(1),
        })
    }

    /// u32 words of one head's vector.
    pub(super) fn row_words(&self) -> usize {
        self.dtype.row_words(self.head_dim)
    }

    /// u32 words of the state on the device: headers, tables, rings, the row map, and what steps with drafts need.
    pub(super) fn state_words(&self) -> usize {
        self.seqs * (state::SEQ + self.layers * state::ROW + RING + 1 + state::DRAFTED) + MOST_TOGETHER
    }

    /// Bytes of one slot in one layer: keys and values of every KV head.
    pub fn slot_bytes(&self) -> usize {
        2 * self.kv_heads * self.row_words() * 4
    }

    /// Bytes of the keys and values of one token, all layers together.
    pub fn token_bytes(&self) -> u64 {
        (self.layers * self.slot_bytes()) as u64
    }

    /// Bytes of the keys and values of one sequence with room for `tokens`, all layers together. `None` if the number
    /// does not fit into 64 bits.
    pub fn bytes_for(&self, tokens: usize) -> Option<u64> {
        let slots = tokens.checked_next_multiple_of(self.growth)?;
        u64::try_from(slots.checked_mul(self.layers)?.checked_mul(self.slot_bytes())?).ok()
    }

    /// The most slots that a layer's buffer can have on a device, those of all sequences together.
    pub fn most_slots(&self, info: &DeviceInfo) -> usize {
        let slots = usize::try_from(info.max_binding_bytes / self.slot_bytes() as u64).unwrap_or(usize::MAX);
        slots / self.growth * self.growth
    }

    /// Checks that the cache can hold a prompt of this many tokens on a device, if no other sequence is cached.
    ///
    /// # Errors
    /// [`ErrorKind::Device`] if a layer's buffer would exceed what the device can bind.
    pub fn check_prompt(&self, tokens: usize, info: &DeviceInfo) -> Result<()> {
        let most = self.most_slots(info);
        if tokens <= most {
            return Ok(());
        }
        let e = Error::new(ErrorKind::Device, "the prompt does not fit into the KV cache of this device");
        Err(e
            .at(info.line())
            .expected(format!("at most {most} tokens, because the largest buffer has {} bytes", info.max_binding_bytes))
            .found(format!("{tokens} tokens"))
            .help("shorten the prompt, use `kv` f16, or choose another `device`"))
    }

    /// Checks that the state of this many sequences fits on a device. Whether the buffers can grow as far as the
    /// sequences need is checked when they grow.
    ///
    /// # Errors
    /// [`ErrorKind::Device`] when the state of all sequences exceeds the largest buffer.
    pub fn check(&self, info: &DeviceInfo) -> Result<()> {
        let bytes = 4 * self.state_words() as u64;
        if bytes <= info.max_binding_bytes {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Device, "the state of all sequences exceeds the adapter's largest buffer")
            .at(info.line())
            .expected(format!("at most {} bytes", info.max_binding_bytes))
            .found(format!("{bytes} bytes for {} sequences", self.seqs))
            .help("run fewer `sequences`"))
    }
}

// Shared by every kernel. This text stands between the constants of the variant and the text of the kernel.
//
// Packed words. A word is one u32 of a weight matrix or of a cache row:
//   F32   one value, its bits
//   F16   two values, column 2i in the low half (IEEE binary16); unpack2x16float needs no device feature
//   BF16  two values, column 2i in the low half (the high 16 bits of an f32)
// The words of quantized rows are described in weights.wgsl.
const F32 = 0u;
const F16 = 1u;
const BF16 = 2u;
const Q8_0 = 3u;

// A finite substitute for minus infinity: WGSL and fast-math compilers may assume that no infinity exists.
const LOWEST = -1.0e30;

// The two values of one F16 or BF16 word.
fn unpack_pair(word: u32, dtype: u32) -> vec2<f32> {
    if (dtype == F16) { return unpack2x16float(word); }
    return vec2<f32>(bitcast<f32>(word << 16u), bitcast<f32>(word & 0xffff0000u));
}

// One f32 as f16 bits, rounded to nearest even by integer arithmetic: pack2x16float may round either way, and what
// the cache holds must not depend on the driver. Values beyond the f16 range saturate to +-65504; NaN stays NaN.
fn f16_bits(value: f32) -> u32 {
    let bits = bitcast<u32>(value);
    let sign = (bits >> 16u) & 0x8000u;
    let abs = bits & 0x7fffffffu;
    if (abs > 0x7f800000u) { return sign | 0x7e00u; }
    if (abs >= 0x477ff000u) { return sign | 0x7bffu; }
    if (abs < 0x38800000u) {
        // Subnormal half (or zero): a multiple of 2^-24.
        if (abs < 0x33000000u) { return sign; }
        let shift = 126u - (abs >> 23u);
        let mantissa = (abs & 0x7fffffu) | 0x800000u;
        let half = mantissa >> shift;
        let rest = mantissa & ((1u << shift) - 1u);
        let midway = 1u << (shift - 1u);
        let up = select(0u, 1u, rest > midway || (rest == midway && (half & 1u) == 1u));
        return sign | (half + up);
    }
    let rounded = abs + 0xfffu + ((abs >> 13u) & 1u);
    return sign | ((rounded - 0x38000000u) >> 13u);
}

fn pack_f16(low: f32, high: f32) -> u32 {
    return f16_bits(low) | (f16_bits(high) << 16u);
}

// True for NaN and infinities, by bits: `x != x` may be folded away.
fn not_finite(value: f32) -> bool {
    return (bitcast<u32>(value) & 0x7f800000u) == 0x7f800000u;
}

fn silu(x: f32) -> f32 {
    return x / (1.0 + exp(-x));
}

// The state of the sequences on the device (kernels/state.rs mirrors these constants): a header of SEQ words for each
// sequence, then an entry of ROW words for each layer and sequence, then the rings of sampled ids, then the list of
// the rows' sequences, then that of steps with drafts, then DRAFTED words for each sequence: the tokens of its next
// step with drafts.
const SEQ = 16u;
const SEQ_TOKEN = 0u;
const SEQ_POSITION = 1u;
const SEQ_STEP = 2u;
const SEQ_MISSED = 3u;
const SEQ_TEMPERATURE = 4u;
const SEQ_TOP_K = 5u;
const SEQ_TOP_P = 6u;
const SEQ_MIN_P = 7u;
const SEQ_PENALTY = 8u;
const SEQ_RELIEF = 9u;
const SEQ_SEED_LOW = 10u;
const SEQ_SEED_HIGH = 11u;
const SEQ_FREQUENCY = 12u;
const SEQ_PRESENCE = 13u;
const SEQ_LIMIT = 14u;
const DRAFTED = 8u;
const ROW = 4u;
const ROW_LEN = 0u;
const ROW_BASE = 1u;
const ROW_CAP = 2u;

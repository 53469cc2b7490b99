// Reads packed weights, whose layout weights/pack.rs describes. A kernel that includes this text declares the packed
// rows as `w: array<vec4<u32>>`. What follows a line `// only plain weights` (f32, f16 and bf16) or
// `// only quantized weights`, up to `// end`, is left out for the other types (kernels/variant.rs).
// DTYPE is followed by these constants of its Format (dtype.rs): LOW_BITS, HIGH_BITS (0 for no high plane), OFFSET,
// SCALES, SHARE, and LEVELS (1 for the levels of IQ4).
const ONE = 0u;
const ONE_WITH_MINIMUM = 1u;
const NESTED = 2u;
const NESTED_WITH_MINIMUM = 3u;
const QUANTIZED = DTYPE > BF16;
const HAS_MINIMUM = SCALES == ONE_WITH_MINIMUM || SCALES == NESTED_WITH_MINIMUM;
const LOW_FOURS = 8u / LOW_BITS;                        // fours of quants in a word of the low plane
const LOW_MASK = (0xffffffffu >> (32u - LOW_BITS)) * 0x01010101u;
const HIGH_FOURS = select(8u / max(HIGH_BITS, 1u), 1u, HIGH_BITS == 0u);
const HIGH_MASK = ((1u << HIGH_BITS) - 1u) * 0x01010101u;

// Where the planes of a row begin, counted in vec4s from the start of the row, and the size of the row.
struct Planes { high: u32, shared_scales: u32, scales: u32, size: u32 }

fn planes(cols: u32) -> Planes {
    var p = Planes(0u, 0u, 0u, cols / select(8u, 4u, DTYPE == F32));
    // only quantized weights
    if (QUANTIZED) {
        p.high = (cols * LOW_BITS + 127u) / 128u;
        p.shared_scales = p.high + (cols * HIGH_BITS + 127u) / 128u;
        p.scales = p.shared_scales;
        if (SCALES == NESTED) { p.scales += (cols / SHARE + 15u) / 16u; }
        if (SCALES == NESTED_WITH_MINIMUM) { p.scales += cols / 256u; }
        let blocks = cols / select(32u, 256u, SCALES >= NESTED);
        p.size = p.scales + (blocks * select(16u, 32u, HAS_MINIMUM) + 127u) / 128u;
    }
    // end
    return p;
}

// only quantized weights
// An f16 scale. It is exact for subnormals too, which blocks of small weights have and which unpack2x16float may
// flush.
fn scale_of(bits: u32) -> f32 {
    let normal = bitcast<f32>(((bits & 0x7fffu) << 13u) + 0x38000000u);
    let size = select(normal, f32(bits & 0x3ffu) * 5.9604644775390625e-8, (bits & 0x7c00u) == 0u);
    return select(size, -size, (bits & 0x8000u) != 0u);
}

// Word `at` of the vec4s that begin at `first`.
fn word_at(first: u32, at: u32) -> u32 {
    return w[first + at / 4u][at % 4u];
}

// For the two halves of a block of 32 columns: the scales, and what is added to the scaled quants.
struct BlockScales { scale: vec2<f32>, plus: vec2<f32> }

fn block_scales(p: Planes, row_start: u32, block: u32) -> BlockScales {
    var s = BlockScales(vec2<f32>(1.0), vec2<f32>(0.0));
    if (SCALES == ONE) {
        let word = word_at(row_start + p.scales, block / 2u);
        s.scale = vec2<f32>(scale_of((word >> (16u * (block & 1u))) & 0xffffu));
    } else if (SCALES == ONE_WITH_MINIMUM) {
        let word = word_at(row_start + p.scales, block);
        s.scale = vec2<f32>(scale_of(word & 0xffffu));
        s.plus = vec2<f32>(scale_of(word >> 16u));
    } else if (SCALES == NESTED) {
        let whole = block / 8u;
        let word = word_at(row_start + p.scales, whole / 2u);
        let d = scale_of((word >> (16u * (whole & 1u))) & 0xffffu);
        if (SHARE == 16u) {
            let bytes = bitcast<i32>(word_at(row_start + p.shared_scales, block / 2u) << (16u - 16u * (block & 1u)));
            s.scale = d * vec2<f32>(vec2<i32>((bytes << 8u) >> 24u, bytes >> 24u));
        } else {
            let bytes = bitcast<i32>(word_at(row_start + p.shared_scales, block / 4u) << (24u - 8u * (block & 3u)));
            s.scale = vec2<f32>(d * f32(bytes >> 24u));
        }
    } else {
        let whole = block / 8u;
        let word = word_at(row_start + p.scales, whole);
        let d = scale_of(word & 0xffffu);
        let m = scale_of(word >> 16u);
        if (SHARE == 16u) {
            let bytes = word_at(row_start + p.shared_scales, block / 2u) >> (16u * (block & 1u));
            s.scale = d * vec2<f32>(f32(bytes & 15u), f32((bytes >> 8u) & 15u));
            s.plus = -m * vec2<f32>(f32((bytes >> 4u) & 15u), f32((bytes >> 12u) & 15u));
        } else {
            let bytes = w[row_start + p.shared_scales + whole];
            let at = block & 7u;
            let shift = 8u * (at & 3u);
            let pair = select(bytes.xz, bytes.yw, at >= 4u) >> vec2<u32>(shift);
            s.scale = vec2<f32>(d * f32(pair.x & 255u));
            s.plus = vec2<f32>(-m * f32(pair.y & 255u));
        }
    }
    return s;
}

// Four quants as numbers, without their scale: four `t` of the words of the low and the high plane that hold them.
fn quants(low: u32, high: u32, t: u32) -> vec4<f32> {
    if (DTYPE == Q8_0) {
        let up = vec4<i32>(vec4<u32>(low) << vec4<u32>(24u, 16u, 8u, 0u));
        return vec4<f32>(up >> vec4<u32>(24u));
    }
    var bytes = (low >> (LOW_BITS * (t % LOW_FOURS))) & LOW_MASK;
    if (HIGH_BITS > 0u) { bytes |= ((high >> (HIGH_BITS * (t % HIGH_FOURS))) & HIGH_MASK) << LOW_BITS; }
    let q = (vec4<u32>(bytes) >> vec4<u32>(0u, 8u, 16u, 24u)) & vec4<u32>(255u);
    if (LEVELS == 0u) { return vec4<f32>(q) - f32(OFFSET); }
    // The 16 levels as signed bytes of four words; an array would live in memory.
    let negative = select(vec4<u32>(0xbfad9881u), vec4<u32>(0xf6eaddcfu), (q & vec4<u32>(4u)) != vec4<u32>(0u));
    let positive = select(vec4<u32>(0x26190d01u), vec4<u32>(0x71594535u), (q & vec4<u32>(4u)) != vec4<u32>(0u));
    let level = select(negative, positive, q >= vec4<u32>(8u));
    return vec4<f32>(vec4<i32>(level << (vec4<u32>(24u) - 8u * (q & vec4<u32>(3u)))) >> vec4<u32>(24u));
}

// end
struct Octet { a: vec4<f32>, b: vec4<f32> }

// Columns k to k + 7 of the row that starts at `row_start`; k is a multiple of 8.
fn octet(p: Planes, row_start: u32, k: u32) -> Octet {
    var o = Octet(vec4<f32>(0.0), vec4<f32>(0.0));
    // only plain weights
    if (DTYPE == F32) {
        o.a = bitcast<vec4<f32>>(w[row_start + k / 4u]);
        o.b = bitcast<vec4<f32>>(w[row_start + k / 4u + 1u]);
    } else {
        let words = w[row_start + k / 8u];
        o.a = vec4<f32>(unpack_pair(words.x, DTYPE), unpack_pair(words.y, DTYPE));
        o.b = vec4<f32>(unpack_pair(words.z, DTYPE), unpack_pair(words.w, DTYPE));
    }
    // end
    // only quantized weights
    let t = k / 4u;
    let s = block_scales(p, row_start, k / 32u);
    let second = (k & 16u) != 0u;
    let scale = select(s.scale.x, s.scale.y, second);
    let plus = select(s.plus.x, s.plus.y, second);
    let low = word_at(row_start, t / LOW_FOURS);
    var low_next = low;
    if (LOW_FOURS == 1u) { low_next = word_at(row_start, t + 1u); }
    var high = 0u;
    if (HIGH_BITS > 0u) { high = word_at(row_start + p.high, t / HIGH_FOURS); }
    o.a = scale * quants(low, high, t);
    o.b = scale * quants(low_next, high, t + 1u);
    if (HAS_MINIMUM) {
        o.a += plus;
        o.b += plus;
    }
    // end
    return o;
}

// Reading cached rows, keys or values. This text precedes a kernel that says "include rows.wgsl". It needs the
// kernel's binding `kv` (rows of D values as vectors of words, see cache/) and the constants KV (F32 or F16) and D.
const QUADS = select(D / 8u, D / 4u, KV == F32);    // vec4s of words in a cache row

// Columns 4 c .. 4 c + 3 of a row, as stored.
fn stored(row: u32, c: u32) -> vec4<f32> {
    if (KV == F32) { return bitcast<vec4<f32>>(kv[row * QUADS + c]); }
    let words = kv[row * QUADS + c / 2u];
    let pairs = select(words.xy, words.zw, (c & 1u) == 1u);
    return vec4<f32>(unpack2x16float(pairs.x), unpack2x16float(pairs.y));
}

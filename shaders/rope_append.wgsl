// Normalises the heads of queries and keys if NORM says so (Qwen3), rotates them to their positions (rotate-half RoPE
// of HF Llama and Qwen weights), writes the queries to q, and writes keys and values to their slots of the cache, in
// place.
// Row i is token i % chunk of the sequence that the state lists for i / chunk. Its slot is the layer's length plus
// that number, its position is the sequence's position plus that number. Slot and position differ once something was
// evicted.
// Constants: THREADS, KV (F32 or F16), D (head dimension, a multiple of 8, at most 4 THREADS), NORM (0 or 1),
// COMPACT (0 or 1): the position is the slot, and keys are stored unrotated, to be rotated when they are read.
@group(0) @binding(0) var<storage, read_write> qkv: array<f32>;      // [n, (heads + 2 kv_heads) D]
@group(0) @binding(1) var<storage, read_write> rope: array<f32>;     // [positions, D]: cosines, then sines, D / 2 each
@group(0) @binding(2) var<storage, read_write> state: array<u32>;
@group(0) @binding(3) var<storage, read_write> kv: array<u32>;       // rows of D values, see cache/
@group(0) @binding(4) var<storage, read_write> q: array<f32>;        // [n, heads D]
@group(0) @binding(5) var<storage, read_write> norm: array<f32>;     // [2, D]: of queries, of keys; or one unused value
struct Info {
    n: u32, heads: u32, kv_heads: u32, chunk: u32,
    row_seq_offset: u32, layer_table_offset: u32, positions: u32, eps: f32,
}
@group(0) @binding(6) var<uniform> info: Info;

const HALF = D / 2u;
const QUARTER = D / 4u;
const HEADS = THREADS / QUARTER;
var<workgroup> squares: array<f32, THREADS>;

fn store_pair(row: u32, column: u32, a: f32, b: f32) {
    if (KV == F16) {
        kv[(row * D + column) / 2u] = pack_f16(a, b);
    } else {
        kv[row * D + column] = bitcast<u32>(a);
        kv[row * D + column + 1u] = bitcast<u32>(b);
    }
}

// An invocation handles columns c, c + 1 and their partners c + D/2, c + 1 + D/2 of one head of one row. A workgroup
// has HEADS whole heads, so that it can sum the squares of each.
@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let all_heads = info.heads + 2u * info.kv_heads;
    let i = group.y;
    let head = group.x * HEADS + thread / QUARTER;
    let c = (thread % QUARTER) * 2u;
    let inside = thread < HEADS * QUARTER && head < all_heads && i < info.n;
    let rotated_head = head < info.heads + info.kv_heads;
    var a = vec2<f32>(0.0);
    var b = vec2<f32>(0.0);
    if (inside) {
        let source = (i * all_heads + head) * D + c;
        a = vec2<f32>(qkv[source], qkv[source + 1u]);
        b = vec2<f32>(qkv[source + HALF], qkv[source + HALF + 1u]);
    }
    if (NORM != 0u) {
        squares[thread] = dot(a, a) + dot(b, b);
        workgroupBarrier();
        if (inside && rotated_head) {
            let first = thread - thread % QUARTER;
            var sum = 0.0;
            for (var t = 0u; t < QUARTER; t++) { sum += squares[first + t]; }
            let scale = 1.0 / sqrt(sum / f32(D) + info.eps);
            let w = select(D, 0u, head < info.heads) + c;
            a *= scale * vec2<f32>(norm[w], norm[w + 1u]);
            b *= scale * vec2<f32>(norm[w + HALF], norm[w + HALF + 1u]);
        }
    }
    if (!inside) { return; }
    let seq = state[info.row_seq_offset + i / info.chunk];
    let offset = i % info.chunk;
    let entry = info.layer_table_offset + seq * ROW;
    let slot = state[entry + ROW_LEN] + offset;
    let stands = select(state[seq * SEQ + SEQ_POSITION] + offset, slot, COMPACT == 1u);
    let position = min(stands, info.positions - 1u);
    if (rotated_head && (COMPACT == 0u || head < info.heads)) {
        let t = position * D + c;
        let cosines = vec2<f32>(rope[t], rope[t + 1u]);
        let sines = vec2<f32>(rope[t + HALF], rope[t + HALF + 1u]);
        let rotated = a * cosines - b * sines;
        b = b * cosines + a * sines;
        a = rotated;
    }
    if (head < info.heads) {
        let place = (i * info.heads + head) * D + c;
        q[place] = a.x;
        q[place + 1u] = a.y;
        q[place + HALF] = b.x;
        q[place + HALF + 1u] = b.y;
        return;
    }
    let cap = state[entry + ROW_CAP];
    if (slot >= cap) { return; }
    // Rows of a sequence: first the keys of every KV head, then the values.
    let row = state[entry + ROW_BASE] + (head - info.heads) * cap + slot;
    store_pair(row, c, a.x, a.y);
    store_pair(row, c + HALF, b.x, b.y);
}

// Rotates the queries and keys of a chunk to their logical positions (rotate-half RoPE, HF Llama/Qwen weights), writes
// the queries to q and the keys and values into their slots of the cache, in place.
// Row i belongs to sequence seq0 + i / chunk and is token i % chunk of its chunk; its slot is the layer's length plus
// that, its position the sequence's position plus that: slot and position differ once something was evicted.
// Constants: THREADS, KV (F32 or F16), D (head dimension, a multiple of 8).
@group(0) @binding(0) var<storage, read_write> qkv: array<f32>;      // [n, (heads + 2 kv_heads) D]
@group(0) @binding(1) var<storage, read_write> rope: array<f32>;     // [positions, D]: cosines, then sines, D / 2 each
@group(0) @binding(2) var<storage, read_write> state: array<u32>;
@group(0) @binding(3) var<storage, read_write> kv: array<u32>;       // rows of D values, see cache.rs
@group(0) @binding(4) var<storage, read_write> q: array<f32>;        // [n, heads D]
struct Info { n: u32, heads: u32, kv_heads: u32, chunk: u32, seq0: u32, table: u32, positions: u32, pad0: u32 }
@group(0) @binding(5) var<uniform> info: Info;

const HALF = D / 2u;
const QUARTER = D / 4u;

fn store_pair(row: u32, column: u32, a: f32, b: f32) {
    if (KV == F16) {
        kv[(row * D + column) / 2u] = pack_f16(a, b);
    } else {
        kv[row * D + column] = bitcast<u32>(a);
        kv[row * D + column + 1u] = bitcast<u32>(b);
    }
}

// An invocation handles columns c, c + 1 and their partners c + D/2, c + 1 + D/2 of one head of one row.
@compute @workgroup_size(THREADS)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let all_heads = info.heads + 2u * info.kv_heads;
    let i = id.y;
    if (id.x >= all_heads * QUARTER || i >= info.n) { return; }
    let head = id.x / QUARTER;
    let c = (id.x % QUARTER) * 2u;
    let seq = info.seq0 + i / info.chunk;
    let offset = i % info.chunk;
    let entry = info.table + seq * ROW;
    let slot = state[entry + ROW_LEN] + offset;
    let position = min(state[seq * SEQ + SEQ_POSITION] + offset, info.positions - 1u);
    let source = (i * all_heads + head) * D + c;
    var a = vec2<f32>(qkv[source], qkv[source + 1u]);
    var b = vec2<f32>(qkv[source + HALF], qkv[source + HALF + 1u]);
    if (head < info.heads + info.kv_heads) {
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

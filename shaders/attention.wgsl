// Causal attention of a chunk over the cached slots: grouped queries, online softmax. Scores never leave the
// workgroup.
// A workgroup owns QB queries that share a KV head (rows_per_group rows times heads_per_group query heads), and walks
// the tiles of one split of the slots. Query row i sees length - already_cached + i % chunk + 1 slots, its own
// included.
// What a query sums, and in which order, depends on its length and, in a chunk, on the chunk's length. It never
// depends on the cache's capacity or on other sequences.
// DIRECT 1: out and lse get the result. DIRECT 0: out gets, for each query and split, D unnormalised values, the
// maximum and the sum; attention_combine computes the result from them.
// include rows.wgsl
// include keys.wgsl
// Constants: THREADS (at least D / 2), TILE (slots), KV (F32 or F16), D (a multiple of 8), ROTATE, QB (queries of a
// workgroup, <= 8), DIRECT.
@group(0) @binding(0) var<storage, read_write> q: array<vec4<f32>>;            // [n, heads D], rotated
@group(0) @binding(1) var<storage, read_write> kv: array<vec4<u32>>;     // rows of D values, see cache/
@group(0) @binding(2) var<storage, read_write> state: array<u32>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;          // [n, heads D], or [n, heads, splits, D + 2]
@group(0) @binding(4) var<storage, read_write> lse: array<f32>;          // [n, heads]: log of the sum of exp(score)
@group(0) @binding(5) var<storage, read_write> rope: array<vec4<f32>>;   // [positions, D]
struct Info {
    n: u32, heads: u32, kv_heads: u32, chunk: u32,
    row_seq_offset: u32, layer_table_offset: u32, heads_per_group: u32, splits: u32,
    tiles_per_split: u32, scale: f32, already_cached: u32, positions: u32,
}
@group(0) @binding(6) var<uniform> info: Info;

const PAIRS = D / 2u;
const SLICES = THREADS / PAIRS;
// Numbers of a query in `scores`. At the end they hold the sums of two columns of each invocation.
const SPAN = max(TILE, 2u * THREADS);

var<workgroup> qs: array<vec4<f32>, QB * D / 4u>;
var<workgroup> scores: array<f32, QB * SPAN>;
var<workgroup> part: array<f32, QB * THREADS>;
var<workgroup> top: array<f32, QB>;
var<workgroup> total: array<f32, QB>;
var<workgroup> shrink: array<f32, QB>;
var<workgroup> extent: vec2<u32>;    // length, capacity

fn value_pair(row: u32, pair: u32) -> vec2<f32> {
    if (KV == F32) {
        let words = kv[row * QUADS + pair / 2u];
        return bitcast<vec2<f32>>(select(words.xy, words.zw, (pair & 1u) == 1u));
    }
    let words = kv[row * QUADS + pair / 4u];
    return unpack2x16float(words[pair % 4u]);
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let split = group.x;
    let rows_per_group = QB / info.heads_per_group;
    let first_row = group.z * rows_per_group;
    let first_head = group.y * info.heads_per_group;
    let kv_head = first_head / (info.heads / info.kv_heads);
    let seq = state[info.row_seq_offset + first_row / info.chunk];
    let entry = info.layer_table_offset + seq * ROW;
    // The loops below contain barriers, so the compiler must be able to prove that their bounds are uniform.
    if (thread == 0u) { extent = vec2<u32>(state[entry + ROW_LEN], state[entry + ROW_CAP]); }
    let shared_extent = workgroupUniformLoad(&extent);
    let length = shared_extent.x - info.already_cached;
    let cap = shared_extent.y;
    let keys = state[entry + ROW_BASE] + kv_head * cap;
    let values = keys + info.kv_heads * cap;
    // The last row of the group sees the most slots: `seen`.
    let last_row = min(first_row + rows_per_group, info.n) - 1u;
    let seen = min(length + last_row % info.chunk + 1u, cap);
    let first_tile = split * info.tiles_per_split;
    let begin = first_tile * TILE;
    let end = min(seen, begin + info.tiles_per_split * TILE);
    if (begin >= seen) { return; }

    for (var e = thread; e < QB * D / 4u; e += THREADS) {
        let j = e / (D / 4u);
        let row = first_row + j / info.heads_per_group;
        let head = first_head + j % info.heads_per_group;
        var v = vec4<f32>(0.0);
        if (row < info.n) { v = q[(row * info.heads + head) * (D / 4u) + e % (D / 4u)] * info.scale; }
        qs[e] = v;
    }
    if (thread < QB) {
        top[thread] = LOWEST;
        total[thread] = 0.0;
    }
    workgroupBarrier();

    let pair = thread % PAIRS;
    let slice = thread / PAIRS;
    var acc: array<vec2<f32>, QB>;
    for (var j = 0u; j < QB; j++) { acc[j] = vec2<f32>(0.0); }

    for (var base = begin; base < end; base += TILE) {
        let count = min(TILE, end - base);
        // Scores of the tile: each invocation computes whole slots.
        var highest: array<f32, QB>;
        for (var j = 0u; j < QB; j++) { highest[j] = LOWEST; }
        for (var s = thread; s < count; s += THREADS) {
            var dots: array<f32, QB>;
            for (var j = 0u; j < QB; j++) { dots[j] = 0.0; }
            let row = (keys + base + s) * QUADS;
            if (ROTATE == 1u) {
                for (var c = 0u; c < D / 8u; c++) {
                    let key = key_part(keys + base + s, base + s, c);
                    for (var j = 0u; j < QB; j++) {
                        let at = j * (D / 4u) + c;
                        dots[j] += dot(key.low, qs[at]) + dot(key.high, qs[at + D / 8u]);
                    }
                }
            }
            for (var c = 0u; c < QUADS && ROTATE == 0u; c++) {
                let words = kv[row + c];
                if (KV == F32) {
                    let k = bitcast<vec4<f32>>(words);
                    for (var j = 0u; j < QB; j++) { dots[j] += dot(k, qs[j * (D / 4u) + c]); }
                } else {
                    let a = vec4<f32>(unpack2x16float(words.x), unpack2x16float(words.y));
                    let b = vec4<f32>(unpack2x16float(words.z), unpack2x16float(words.w));
                    for (var j = 0u; j < QB; j++) {
                        let at = j * (D / 4u) + 2u * c;
                        dots[j] += dot(a, qs[at]) + dot(b, qs[at + 1u]);
                    }
                }
            }
            for (var j = 0u; j < QB; j++) {
                let row_of = first_row + j / info.heads_per_group;
                let visible = base + s < length + row_of % info.chunk + 1u;
                let score = select(LOWEST, dots[j], visible);
                scores[j * SPAN + s] = score;
                highest[j] = max(highest[j], score);
            }
        }
        for (var j = 0u; j < QB; j++) { part[j * THREADS + thread] = highest[j]; }
        for (var half = THREADS / 2u; half > 0u; half /= 2u) {
            workgroupBarrier();
            if (thread < half) {
                for (var j = 0u; j < QB; j++) {
                    let at = j * THREADS + thread;
                    part[at] = max(part[at], part[at + half]);
                }
            }
        }
        workgroupBarrier();
        if (thread < QB) {
            let now = max(top[thread], part[thread * THREADS]);
            shrink[thread] = exp(top[thread] - now);
            top[thread] = now;
        }
        workgroupBarrier();
        // Weights. A masked slot has weight 0 even if the query has seen no slot at all.
        for (var j = 0u; j < QB; j++) {
            var sum = 0.0;
            for (var s = thread; s < count; s += THREADS) {
                let score = scores[j * SPAN + s];
                let weight = select(0.0, exp(score - top[j]), score > LOWEST);
                scores[j * SPAN + s] = weight;
                sum += weight;
            }
            part[j * THREADS + thread] = sum;
        }
        for (var half = THREADS / 2u; half > 0u; half /= 2u) {
            workgroupBarrier();
            if (thread < half) {
                for (var j = 0u; j < QB; j++) {
                    let at = j * THREADS + thread;
                    part[at] += part[at + half];
                }
            }
        }
        workgroupBarrier();
        if (thread < QB) { total[thread] = total[thread] * shrink[thread] + part[thread * THREADS]; }
        // Values: each invocation sums two columns over every SLICES-th slot. Each tile is summed by itself, because
        // one sum over thousands of slots would round more than the bound allows.
        var sums: array<vec2<f32>, QB>;
        for (var j = 0u; j < QB; j++) {
            acc[j] *= shrink[j];
            sums[j] = vec2<f32>(0.0);
        }
        if (slice < SLICES) {
            for (var s = slice; s < count; s += SLICES) {
                let v = value_pair(values + base + s, pair);
                for (var j = 0u; j < QB; j++) { sums[j] += scores[j * SPAN + s] * v; }
            }
        }
        for (var j = 0u; j < QB; j++) { acc[j] += sums[j]; }
        workgroupBarrier();
    }

    // Add the slices, in order. `scores` is free again.
    for (var j = 0u; j < QB; j++) {
        scores[j * SPAN + 2u * thread] = acc[j].x;
        scores[j * SPAN + 2u * thread + 1u] = acc[j].y;
    }
    workgroupBarrier();
    if (slice == 0u) {
        for (var j = 0u; j < QB; j++) {
            let row = first_row + j / info.heads_per_group;
            let head = first_head + j % info.heads_per_group;
            if (row >= info.n) { continue; }
            var sum = vec2<f32>(0.0);
            for (var s = 0u; s < SLICES; s++) {
                let at = j * SPAN + 2u * (s * PAIRS + pair);
                sum += vec2<f32>(scores[at], scores[at + 1u]);
            }
            let query = row * info.heads + head;
            if (DIRECT == 1u) {
                // The same division as in attention_combine: a result must not depend on whether another sequence is
                // split.
                out[query * D + 2u * pair] = sum.x / total[j];
                out[query * D + 2u * pair + 1u] = sum.y / total[j];
                if (pair == 0u) { lse[query] = top[j] + log(total[j]); }
            } else {
                let at = (query * info.splits + split) * (D + 2u);
                out[at + 2u * pair] = sum.x;
                out[at + 2u * pair + 1u] = sum.y;
                if (pair == 0u) {
                    out[at + D] = top[j];
                    out[at + D + 1u] = total[j];
                    if (split == 0u) { lse[query] = 0.0; }
                }
            }
        }
    }
}

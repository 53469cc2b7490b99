// The readout: the attention weights of one query row (the probe's last token) over every slot, without the matrix.
// softmax(q . K) = exp(q . k - lse), with the log-sum-exp that attention wrote for this row. An invocation owns a
// slot. REDUCE 0: one row for each query head. 1: one for each KV head, the mean of its query heads. 2: one row, the
// mean of all heads.
// include rows.wgsl
// include keys.wgsl
// Constants: THREADS, KV (F32 or F16), D (head dimension), ROTATE, G (query heads of a KV head), REDUCE.
@group(0) @binding(0) var<storage, read_write> q: array<vec4<f32>>;            // [n, heads D], rotated
@group(0) @binding(1) var<storage, read_write> lse: array<f32>;          // [n, heads]
@group(0) @binding(2) var<storage, read_write> kv: array<vec4<u32>>;     // rows of D values, see cache/
@group(0) @binding(3) var<storage, read_write> state: array<u32>;
@group(0) @binding(4) var<storage, read_write> out: array<f32>;          // [heads | kv_heads | 1, slots]
@group(0) @binding(5) var<storage, read_write> rope: array<vec4<f32>>;   // [positions, D]
struct Info {
    row: u32, kv_heads: u32, slots: u32, seq: u32,
    layer_table_offset: u32, scale: f32, positions: u32, pad0: u32,
}
@group(0) @binding(6) var<uniform> info: Info;

var<workgroup> qs: array<vec4<f32>, G * D / 4u>;

// The weights of one slot for the query heads of a KV head. Writes them (REDUCE 0) or their mean (1), and returns
// their sum.
// `row`: the cache row of the slot's key.
fn weigh(kv_head: u32, slot: u32, row: u32) -> f32 {
    var dots: array<f32, G>;
    for (var j = 0u; j < G; j++) { dots[j] = 0.0; }
    if (ROTATE == 1u) {
        for (var c = 0u; c < D / 8u; c++) {
            let key = key_part(row, slot, c);
            for (var j = 0u; j < G; j++) {
                let at = j * (D / 4u) + c;
                dots[j] += dot(key.low, qs[at]) + dot(key.high, qs[at + D / 8u]);
            }
        }
    }
    for (var c = 0u; c < QUADS && ROTATE == 0u; c++) {
        let words = kv[row * QUADS + c];
        if (KV == F32) {
            let k = bitcast<vec4<f32>>(words);
            for (var j = 0u; j < G; j++) { dots[j] += dot(k, qs[j * (D / 4u) + c]); }
        } else {
            let a = vec4<f32>(unpack2x16float(words.x), unpack2x16float(words.y));
            let b = vec4<f32>(unpack2x16float(words.z), unpack2x16float(words.w));
            for (var j = 0u; j < G; j++) {
                let at = j * (D / 4u) + 2u * c;
                dots[j] += dot(a, qs[at]) + dot(b, qs[at + 1u]);
            }
        }
    }
    let first = kv_head * G;
    var sum = 0.0;
    for (var j = 0u; j < G; j++) {
        let weight = exp(dots[j] - lse[info.row * info.kv_heads * G + first + j]);
        if (REDUCE == 0u) { out[(first + j) * info.slots + slot] = weight; }
        sum += weight;
    }
    if (REDUCE == 1u) { out[kv_head * info.slots + slot] = sum / f32(G); }
    return sum;
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let slot = group.x * THREADS + thread;
    let entry = info.layer_table_offset + info.seq * ROW;
    let cap = state[entry + ROW_CAP];
    let inside = slot < info.slots && slot < cap;
    let heads = info.kv_heads * G;
    var sum = 0.0;
    for (var kv_head = 0u; kv_head < info.kv_heads; kv_head++) {
        workgroupBarrier();
        for (var e = thread; e < G * D / 4u; e += THREADS) {
            qs[e] = q[(info.row * heads + kv_head * G) * (D / 4u) + e] * info.scale;
        }
        workgroupBarrier();
        if (inside) { sum += weigh(kv_head, slot, state[entry + ROW_BASE] + kv_head * cap + slot); }
    }
    if (REDUCE == 2u && inside) { out[slot] = sum / f32(heads); }
}

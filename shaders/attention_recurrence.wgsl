// When each slot last mattered to a query, and the longest time between two such queries. The attention of a query
// comes from the log-sum-exp that attention wrote; a slot matters to the query if it is at least IMPORTANT.
// An invocation owns a slot of one KV head and walks the queries. The records are laid out like the keys (see
// cache/). The chunk's own slots begin with a record of their own, so what a rolled-back chunk left there is never
// read.
// include rows.wgsl
// include keys.wgsl
// Constants: THREADS, KV (F32 or F16), D, ROTATE, G (query heads of a KV head), QB (queries at a time).
@group(0) @binding(0) var<storage, read_write> q: array<vec4<f32>>;          // [n, heads D], rotated
@group(0) @binding(1) var<storage, read_write> lse: array<f32>;              // [n, heads]
@group(0) @binding(2) var<storage, read_write> kv: array<vec4<u32>>;         // rows of D values, see cache/
@group(0) @binding(3) var<storage, read_write> state: array<u32>;
@group(0) @binding(4) var<storage, read_write> rope: array<vec4<f32>>;       // [positions, D]
@group(0) @binding(5) var<storage, read_write> records: array<vec2<u32>>;    // the last position, the longest interval
struct Info {
    chunk: u32, kv_heads: u32, row_seq_offset: u32, layer_table_offset: u32,
    slots: u32, positions: u32, scale: f32, pad0: u32,
}
@group(0) @binding(6) var<uniform> info: Info;

const IMPORTANT = 1.0e-4;
var<workgroup> qs: array<vec4<f32>, QB * D / 4u>;
var<workgroup> norms: array<f32, QB>;

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let slot = group.x * THREADS + thread;
    let kv_head = group.y;
    let seq = state[info.row_seq_offset + group.z];
    let entry = info.layer_table_offset + seq * ROW;
    let cap = state[entry + ROW_CAP];
    let base = state[entry + ROW_BASE];
    let length = state[entry + ROW_LEN];
    let position = state[seq * SEQ + SEQ_POSITION];
    let inside = slot < min(length + info.chunk, cap) && slot < info.slots;
    let row = base + kv_head * cap + slot;
    // A sequence's region has 2 kv_heads cap rows of keys and values, and kv_heads cap records.
    let at = base / 2u + kv_head * cap + slot;
    // A new slot counts as if it had mattered one token before its own, without an interval.
    var record = vec2<u32>(position + slot - length - 1u, 0u);
    if (inside && slot < length) { record = records[at]; }
    let queries = info.chunk * G;
    let heads = info.kv_heads * G;
    var weight = 0.0;
    for (var first = 0u; first < queries; first += QB) {
        workgroupBarrier();
        for (var e = thread; e < QB * D / 4u; e += THREADS) {
            let t = first + e / (D / 4u);
            let query = (group.z * info.chunk + t / G) * heads + kv_head * G + t % G;
            var v = vec4<f32>(0.0);
            if (t < queries) { v = q[query * (D / 4u) + e % (D / 4u)] * info.scale; }
            qs[e] = v;
            if (e % (D / 4u) == 0u) {
                var norm = 0.0;
                if (t < queries) { norm = lse[query]; }
                norms[e / (D / 4u)] = norm;
            }
        }
        workgroupBarrier();
        // No `continue`: the next barrier must be reached in uniform control flow.
        if (inside) {
            var dots: array<f32, QB>;
            for (var j = 0u; j < QB; j++) { dots[j] = 0.0; }
            for (var c = 0u; c < D / 8u; c++) {
                let key = key_part(row, slot, c);
                for (var j = 0u; j < QB; j++) {
                    let part = j * (D / 4u) + c;
                    dots[j] += dot(key.low, qs[part]) + dot(key.high, qs[part + D / 8u]);
                }
            }
            for (var j = 0u; j < QB; j++) {
                let t = first + j;
                let i = t / G;
                let visible = t < queries && slot < length + i + 1u;
                weight += select(0.0, exp(min(dots[j] - norms[j], 1.0)), visible);
                if (t % G == G - 1u) {
                    if (visible && weight >= IMPORTANT * f32(G)) {
                        record = vec2<u32>(position + i, max(record.y, position + i - record.x));
                    }
                    weight = 0.0;
                }
            }
        }
    }
    if (inside) { records[at] = record; }
}

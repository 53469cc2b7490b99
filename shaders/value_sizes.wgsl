// The size of each cached value: the range of its components (the largest minus the smallest), and its length. An
// invocation owns a slot of one KV head.
// include rows.wgsl
// Constants: THREADS, KV (F32 or F16), D.
@group(0) @binding(0) var<storage, read_write> kv: array<vec4<u32>>;     // rows of D values, see cache/
@group(0) @binding(1) var<storage, read_write> state: array<u32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;          // [2, kv_heads, slots]: ranges, then lengths
struct Info { kv_heads: u32, slots: u32, seq: u32, layer_table_offset: u32 }
@group(0) @binding(3) var<uniform> info: Info;

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let slot = group.x * THREADS + thread;
    let kv_head = group.y;
    let entry = info.layer_table_offset + info.seq * ROW;
    let cap = state[entry + ROW_CAP];
    if (slot >= min(info.slots, cap)) { return; }
    // The values of the KV heads follow their keys.
    let row = state[entry + ROW_BASE] + (info.kv_heads + kv_head) * cap + slot;
    var low = stored(row, 0u);
    var high = low;
    var square = 0.0;
    for (var c = 0u; c < D / 4u; c++) {
        let part = stored(row, c);
        low = min(low, part);
        high = max(high, part);
        square += dot(part, part);
    }
    let at = kv_head * info.slots + slot;
    out[at] = max(max(high.x, high.y), max(high.z, high.w)) - min(min(low.x, low.y), min(low.z, low.w));
    out[info.kv_heads * info.slots + at] = sqrt(square);
}

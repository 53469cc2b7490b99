// How similar each cached key is to the others of its KV head: the mean cosine of the angle between them, without
// each key's latest look-alike. Two passes run over all pairs; no pair is stored. An invocation owns a slot and
// walks the others, TILE at a time, in ascending order.
// PASS 0: latest[head, i] = the last slot j != i with cosine > 0.5, or NONE.
// PASS 1: out[head, j] = 1 / slots . sum over i != j with latest[head, i] != j of cosine(i, j).
// include rows.wgsl
// include keys.wgsl
// Constants: THREADS, KV (F32 or F16), D, ROTATE, PASS.
@group(0) @binding(0) var<storage, read_write> kv: array<vec4<u32>>;     // rows of D values, see cache/
@group(0) @binding(1) var<storage, read_write> state: array<u32>;
@group(0) @binding(2) var<storage, read_write> rope: array<vec4<f32>>;   // [positions, D]
@group(0) @binding(3) var<storage, read_write> latest: array<u32>;       // [kv_heads, slots]
@group(0) @binding(4) var<storage, read_write> out: array<f32>;          // [kv_heads, slots]
struct Info { kv_heads: u32, slots: u32, seq: u32, layer_table_offset: u32, positions: u32, pad0: u32, pad1: u32, pad2: u32 }
@group(0) @binding(5) var<uniform> info: Info;

const TILE = select(16u, 8u, D > 128u);    // whose keys fit 16 KiB of workgroup memory
const NONE = 0xffffffffu;
const ALIKE = 0.5;
var<workgroup> keys: array<vec4<f32>, TILE * D / 4u>;
var<workgroup> shrink: array<f32, TILE>;    // the inverse length of each key of the tile
var<workgroup> spared: array<u32, TILE>;

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let slot = group.x * THREADS + thread;
    let kv_head = group.y;
    let entry = info.layer_table_offset + info.seq * ROW;
    let cap = state[entry + ROW_CAP];
    let slots = min(info.slots, cap);
    let first_row = state[entry + ROW_BASE] + kv_head * cap;
    let inside = slot < slots;
    var own = 0.0;
    if (inside) {
        for (var c = 0u; c < D / 8u; c++) {
            let key = key_part(first_row + slot, slot, c);
            own += dot(key.low, key.low) + dot(key.high, key.high);
        }
        own = 1.0 / (sqrt(own) + 1.0e-8);
    }
    var last = NONE;
    var sum = 0.0;
    // info.slots, not slots: the loop contains barriers, so the compiler must be able to prove that its bound is
    // uniform.
    for (var first = 0u; first < info.slots; first += TILE) {
        workgroupBarrier();
        for (var e = thread; e < TILE * D / 8u; e += THREADS) {
            let other = first + e / (D / 8u);
            let c = e % (D / 8u);
            var key = KeyPart(vec4<f32>(0.0), vec4<f32>(0.0));
            if (other < slots) { key = key_part(first_row + other, other, c); }
            let at = e / (D / 8u) * (D / 4u) + c;
            keys[at] = key.low;
            keys[at + D / 8u] = key.high;
        }
        workgroupBarrier();
        for (var t = thread; t < TILE; t += THREADS) {
            var square = 0.0;
            for (var c = 0u; c < D / 4u; c++) { square += dot(keys[t * (D / 4u) + c], keys[t * (D / 4u) + c]); }
            shrink[t] = 1.0 / (sqrt(square) + 1.0e-8);
            var spare = NONE;
            if (PASS == 1u && first + t < slots) { spare = latest[kv_head * info.slots + first + t]; }
            spared[t] = spare;
        }
        workgroupBarrier();
        // No `continue`: the next barrier must be reached in uniform control flow.
        if (inside) {
            var dots: array<f32, TILE>;
            for (var t = 0u; t < TILE; t++) { dots[t] = 0.0; }
            for (var c = 0u; c < D / 8u; c++) {
                let key = key_part(first_row + slot, slot, c);
                for (var t = 0u; t < TILE; t++) {
                    let at = t * (D / 4u) + c;
                    dots[t] += dot(key.low, keys[at]) + dot(key.high, keys[at + D / 8u]);
                }
            }
            for (var t = 0u; t < TILE; t++) {
                let other = first + t;
                if (other >= slots || other == slot) { continue; }
                let cosine = dots[t] * shrink[t] * own;
                if (PASS == 0u) {
                    if (cosine > ALIKE) { last = other; }
                } else if (spared[t] != slot) {
                    sum += cosine;
                }
            }
        }
    }
    if (!inside) { return; }
    let at = kv_head * info.slots + slot;
    if (PASS == 0u) {
        latest[at] = last;
    } else {
        out[at] = sum / f32(slots);
    }
}

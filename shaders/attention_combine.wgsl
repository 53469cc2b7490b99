// Second pass of attention when the slots were split: combines the partial results of a query. The order of the sums
// depends on how many splits the query's own slots fill, not on the splits of a longer sequence in the same dispatch.
// Constants: THREADS (a power of two), D (head dimension, at most 2 THREADS).
@group(0) @binding(0) var<storage, read_write> partials: array<f32>;     // [n, heads, splits, D + 2]: values, maximum, sum
@group(0) @binding(1) var<storage, read_write> state: array<u32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;          // [n, heads D]
@group(0) @binding(3) var<storage, read_write> lse: array<f32>;          // [n, heads]
struct Info {
    n: u32, heads: u32, chunk: u32, row_seq_offset: u32,
    layer_table_offset: u32, splits: u32, slots_per_split: u32, already_cached: u32,
}
@group(0) @binding(4) var<uniform> info: Info;

var<workgroup> part: array<f32, THREADS>;
var<workgroup> filled: u32;

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let head = group.x;
    let row = group.y;
    // The loops below contain barriers, so the compiler must be able to prove that their bounds are uniform.
    if (thread == 0u) {
        let seq = state[info.row_seq_offset + row / info.chunk];
        let seen = state[info.layer_table_offset + seq * ROW + ROW_LEN] - info.already_cached + row % info.chunk + 1u;
        filled = min((seen + info.slots_per_split - 1u) / info.slots_per_split, info.splits);
    }
    let splits = workgroupUniformLoad(&filled);
    let query = row * info.heads + head;
    let first = query * info.splits * (D + 2u);

    var highest = LOWEST;
    for (var s = thread; s < splits; s += THREADS) { highest = max(highest, partials[first + s * (D + 2u) + D]); }
    part[thread] = highest;
    for (var half = THREADS / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if (thread < half) { part[thread] = max(part[thread], part[thread + half]); }
    }
    workgroupBarrier();
    let top = part[0];
    workgroupBarrier();

    // Blocks of splits: an invocation computes the weight of one split, then sums its own columns over the block.
    var total = 0.0;
    var sum = vec2<f32>(0.0);
    for (var block = 0u; block < splits; block += THREADS) {
        let count = min(THREADS, splits - block);
        if (thread < count) {
            let at = first + (block + thread) * (D + 2u) + D;
            let weight = exp(partials[at] - top);
            part[thread] = weight;
            total += partials[at + 1u] * weight;
        }
        workgroupBarrier();
        for (var s = 0u; s < count; s++) {
            let at = first + (block + s) * (D + 2u) + thread;
            if (thread < D) { sum.x += partials[at] * part[s]; }
            if (thread + THREADS < D) { sum.y += partials[at + THREADS] * part[s]; }
        }
        workgroupBarrier();
    }
    part[thread] = total;
    for (var half = THREADS / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if (thread < half) { part[thread] += part[thread + half]; }
    }
    workgroupBarrier();
    if (thread < D) { out[query * D + thread] = sum.x / part[0]; }
    if (thread + THREADS < D) { out[query * D + thread + THREADS] = sum.y / part[0]; }
    if (thread == 0u) { lse[query] = top + log(part[0]); }
}

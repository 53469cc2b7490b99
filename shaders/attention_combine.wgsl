// Second half of attention when its slots were split: merges the partial results of a query, in the order of the splits.
// Constants: THREADS, D (head dimension).
@group(0) @binding(0) var<storage, read_write> partials: array<f32>;     // [n, heads, splits, D + 2]: values, maximum, sum
@group(0) @binding(1) var<storage, read_write> state: array<u32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;          // [n, heads D]
@group(0) @binding(3) var<storage, read_write> lse: array<f32>;          // [n, heads]
struct Info {
    n: u32, heads: u32, chunk: u32, map: u32,
    table: u32, splits: u32, slots_per_split: u32, back: u32,
}
@group(0) @binding(4) var<uniform> info: Info;

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let head = group.x;
    let row = group.y;
    if (head >= info.heads || row >= info.n) { return; }
    let seq = state[info.map + row / info.chunk];
    let seen = state[info.table + seq * ROW + ROW_LEN] - info.back + row % info.chunk + 1u;
    let splits = min((seen + info.slots_per_split - 1u) / info.slots_per_split, info.splits);
    let query = row * info.heads + head;
    let first = query * info.splits * (D + 2u);
    var top = LOWEST;
    for (var s = 0u; s < splits; s++) { top = max(top, partials[first + s * (D + 2u) + D]); }
    var total = 0.0;
    for (var s = 0u; s < splits; s++) {
        let at = first + s * (D + 2u);
        total += partials[at + D + 1u] * exp(partials[at + D] - top);
    }
    for (var c = thread; c < D; c += THREADS) {
        var sum = 0.0;
        for (var s = 0u; s < splits; s++) {
            let at = first + s * (D + 2u);
            sum += partials[at + c] * exp(partials[at + D] - top);
        }
        out[query * D + c] = sum / total;
    }
    if (thread == 0u) { lse[query] = top + log(total); }
}

// The pruning: copies the rows of the kept slots, in the given (ascending) order, to the front of a new buffer. One
// dispatch copies the planes of every sequence: keys and values of every KV head, or running sums. The kernel moves
// u32 words, four at a time where a row is a multiple of four words, so it is exact for any contents. Growing a
// cache is the same kernel with every slot kept.
// Rows after the kept ones are not written.
// Constants: UNIT (words that move at once, 1 or 4; it makes Unit u32 or vec4<u32>), UNITS (units of a row), THREADS,
// EACH (units that an invocation moves: with one each, workgroups would end sooner than a GPU can start them).
@group(0) @binding(0) var<storage, read_write> kv: array<Unit>;
@group(0) @binding(1) var<storage, read_write> keep: array<u32>;     // kept slots of each sequence, or of each of its KV heads
@group(0) @binding(2) var<storage, read_write> moves: array<u32>;    // [seqs, 8], see cache_gather.rs
@group(0) @binding(3) var<storage, read_write> out: array<Unit>;
struct Info { kv_heads: u32, planes: u32, most_kept: u32, pad0: u32 }
@group(0) @binding(4) var<uniform> info: Info;

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let plane = group.z % info.planes;
    let seq = group.z / info.planes;
    let head = plane % info.kv_heads;
    let m = seq * 8u;
    let old_cap = moves[m + 1u];
    let source = moves[m] + plane * old_cap;
    let place = moves[m + 2u] + plane * moves[m + 3u];
    let kept = moves[m + 4u];
    let first = moves[m + 5u] + head * moves[m + 6u];
    // x counts the units of all kept rows of the plane; y extends it beyond the limit of one grid dimension.
    let begin = (group.y * 65535u + group.x) * THREADS * EACH + thread;
    for (var e = 0u; e < EACH; e++) {
        let i = (begin + e * THREADS) / UNITS;
        let unit = (begin + e * THREADS) % UNITS;
        if (i >= kept) { return; }
        let slot = keep[first + i];
        if (slot < old_cap) { out[(place + i) * UNITS + unit] = kv[(source + slot) * UNITS + unit]; }
    }
}

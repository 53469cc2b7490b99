// The pruning: rows of the kept slots, in the order given (ascending), to the front of a new, tight buffer; keys and
// values of every KV head of every sequence in one dispatch, or whatever else has `planes` of rows, a multiple of the KV
// heads. Moves u32 words, four at a time where a row has whole fours: exact, whatever they hold. Growing is the same kernel
// with every slot kept. Rows past the kept ones stay as they were.
// Constants: UNIT: words that move at once, 1 or 4, which makes Unit u32 or vec4<u32>; UNITS: units of a row; THREADS; EACH: units
// that an invocation moves, or workgroups would end sooner than a GPU can begin them.
@group(0) @binding(0) var<storage, read_write> kv: array<Unit>;
@group(0) @binding(1) var<storage, read_write> keep: array<u32>;     // kept slots; per sequence and KV head, or shared
@group(0) @binding(2) var<storage, read_write> moves: array<u32>;    // [seqs, 8]: old base, old cap, new base, new cap, kept, first keep, keep stride per KV head
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
    // x runs over the units of all kept rows of the plane; y extends it past the limit of one grid dimension.
    let begin = (group.y * 65535u + group.x) * THREADS * EACH + thread;
    for (var e = 0u; e < EACH; e++) {
        let i = (begin + e * THREADS) / UNITS;
        let unit = (begin + e * THREADS) % UNITS;
        if (i >= kept) { return; }
        let slot = keep[first + i];
        if (slot < old_cap) { out[(place + i) * UNITS + unit] = kv[(source + slot) * UNITS + unit]; }
    }
}

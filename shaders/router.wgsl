// Chooses the experts of each row: the K with the largest logits, the larger first, of equal ones the lower index
// first; and the weight of each, its softmax over all experts (NORMALISE 0) or over the chosen ones (NORMALISE 1).
// One workgroup for each row. An invocation counts for each of its experts how many come before it, which is the
// expert's place: there are no rounds, and every place is taken once, whatever the logits are.
// Constants: THREADS, MOST (of experts).
@group(0) @binding(0) var<storage, read_write> logits: array<f32>;    // [n, experts]
@group(0) @binding(1) var<storage, read_write> chosen: array<u32>;    // [n, k]
@group(0) @binding(2) var<storage, read_write> gains: array<f32>;     // [n, k]
struct Info { n: u32, experts: u32, k: u32, normalise: u32 }
@group(0) @binding(3) var<uniform> info: Info;

var<workgroup> keys: array<u32, MOST>;     // of all experts
var<workgroup> best: array<f32, MOST>;     // the logits of the chosen ones, in order
var<workgroup> part: array<f32, THREADS>;

// A number that orders as the logit does. NaN has such a number too, and both zeros have the same.
fn order(logit: f32) -> u32 {
    let bits = bitcast<u32>(logit);
    if ((bits & 0x7fffffffu) == 0u) { return 0x80000000u; }
    return select(bits | 0x80000000u, ~bits, (bits & 0x80000000u) != 0u);
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let row = group.y * groups.x + group.x;
    let inside = row < info.n;
    let at = row * info.experts;
    let experts = select(0u, info.experts, inside);
    for (var e = thread; e < experts; e += THREADS) { keys[e] = order(logits[at + e]); }
    workgroupBarrier();
    for (var e = thread; e < experts; e += THREADS) {
        let key = keys[e];
        var place = 0u;
        for (var other = 0u; other < experts; other++) {
            let before = keys[other] > key || (keys[other] == key && other < e);
            place += select(0u, 1u, before);
        }
        if (place < info.k) {
            best[place] = logits[at + e];
            chosen[row * info.k + place] = e;
        }
    }
    workgroupBarrier();
    let highest = best[0];
    var sum = 0.0;
    if (info.normalise == 0u) {
        for (var e = thread; e < experts; e += THREADS) { sum += exp(logits[at + e] - highest); }
    } else if (inside) {
        for (var i = thread; i < info.k; i += THREADS) { sum += exp(best[i] - highest); }
    }
    part[thread] = sum;
    for (var half = THREADS / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if (thread < half) { part[thread] += part[thread + half]; }
    }
    workgroupBarrier();
    if (!inside) { return; }
    for (var i = thread; i < info.k; i += THREADS) { gains[row * info.k + i] = exp(best[i] - highest) / part[0]; }
}

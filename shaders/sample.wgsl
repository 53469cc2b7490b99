// Greedy sampling and the end of a step: argmax of each sequence's logits (the lowest id among equals) becomes its next
// token, enters the ring of sampled ids, and position, length and step advance. A logit that is not finite gives the
// id 0xffffffff. One workgroup a row of logits; the state
// lists whose they are.
// Constants: THREADS (a power of two).
@group(0) @binding(0) var<storage, read_write> logits: array<f32>;   // [seqs, vocab]
@group(0) @binding(1) var<storage, read_write> state: array<u32>;
struct Info { vocab: u32, seqs: u32, layers: u32, all_seqs: u32, ring: u32, advance: u32, map: u32, pad0: u32 }
@group(0) @binding(2) var<uniform> info: Info;

var<workgroup> best: array<f32, THREADS>;
var<workgroup> arg: array<u32, THREADS>;
var<workgroup> broken: array<u32, THREADS>;

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let seq = state[info.map + group.x];
    let at = group.x * info.vocab;
    var value = LOWEST;
    var index = 0xffffffffu;
    var bad = 0u;
    for (var i = thread; i < info.vocab; i += THREADS) {
        let v = logits[at + i];
        if (not_finite(v)) { bad = 1u; }
        if (v > value) {
            value = v;
            index = i;
        }
    }
    best[thread] = value;
    arg[thread] = index;
    broken[thread] = bad;
    for (var half = THREADS / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if (thread < half) {
            let v = best[thread + half];
            let i = arg[thread + half];
            if (v > best[thread] || (v == best[thread] && i < arg[thread])) {
                best[thread] = v;
                arg[thread] = i;
            }
            broken[thread] |= broken[thread + half];
        }
    }
    workgroupBarrier();
    let header = seq * SEQ;
    for (var layer = thread; layer < info.layers; layer += THREADS) {
        state[info.all_seqs * SEQ + (layer * info.all_seqs + seq) * ROW + ROW_LEN] += info.advance;
    }
    if (thread != 0u) { return; }
    let token = select(arg[0], 0xffffffffu, broken[0] != 0u);
    let step = state[header + SEQ_STEP];
    let ring = info.all_seqs * SEQ + info.layers * info.all_seqs * ROW + seq * info.ring;
    state[ring + step % info.ring] = token;
    state[header + SEQ_STEP] = step + 1u;
    state[header + SEQ_TOKEN] = token;
    state[header + SEQ_POSITION] += info.advance;
}

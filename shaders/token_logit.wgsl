// The logit of one token in each row: of the token that was sampled from it, or of one in a list.
// Constants: THREADS, SAMPLED (1: the pending tokens of the rows' sequences; 0: the list).
@group(0) @binding(0) var<storage, read_write> logits: array<f32>;   // [n, count]
@group(0) @binding(1) var<storage, read_write> ids: array<u32>;      // the state, or a list [n]
@group(0) @binding(2) var<storage, read_write> found: array<f32>;    // [n, 1]
struct Info { n: u32, count: u32, row_seq_offset: u32, pad0: u32 }
@group(0) @binding(3) var<uniform> info: Info;

@compute @workgroup_size(THREADS)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let row = id.x;
    if (row >= info.n) { return; }
    var token = 0u;
    if (SAMPLED == 1u) {
        token = ids[ids[info.row_seq_offset + row] * SEQ + SEQ_TOKEN];
    } else {
        token = ids[row];
    }
    var value = LOWEST;
    if (token < info.count) { value = logits[row * info.count + token]; }
    found[row] = value;
}

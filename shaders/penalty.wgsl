// Makes the tokens that a sequence has generated less likely: a fixed amount for each of them, and more for each
// time. First counts the pending token, which was generated last; a sequence that has sampled nothing yet has none.
// Constants: THREADS.
@group(0) @binding(0) var<storage, read_write> logits: array<f32>;      // [n, count]
@group(0) @binding(1) var<storage, read_write> state: array<u32>;
@group(0) @binding(2) var<storage, read_write> counts: array<u32>;      // [sequences, count]: times a token was generated
@group(0) @binding(3) var<storage, read_write> penalised: array<f32>;   // [n, count]
struct Info { n: u32, count: u32, row_seq_offset: u32, pad0: u32 }
@group(0) @binding(4) var<uniform> info: Info;

@compute @workgroup_size(THREADS)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let token = id.x;
    let row = id.y;
    if (token >= info.count) { return; }
    let seq = state[info.row_seq_offset + row];
    let header = seq * SEQ;
    var times = counts[seq * info.count + token];
    if (state[header + SEQ_STEP] > 0u && state[header + SEQ_TOKEN] == token) {
        times += 1u;
        counts[seq * info.count + token] = times;
    }
    var value = logits[row * info.count + token];
    if (times > 0u) {
        let frequency = bitcast<f32>(state[header + SEQ_FREQUENCY]);
        value -= f32(times) * frequency + bitcast<f32>(state[header + SEQ_PRESENCE]);
    }
    penalised[row * info.count + token] = value;
}

// Leaves a sampler only the tokens that an answer's format allows: all other logits become LOWEST. A logit that is
// not finite stays, so that the sampler still detects that the model failed.
// Constants: THREADS.
@group(0) @binding(0) var<storage, read_write> logits: array<f32>;      // [n, count]
@group(0) @binding(1) var<storage, read_write> allowed: array<u32>;     // [n, words]: a bit a token
@group(0) @binding(2) var<storage, read_write> masked: array<f32>;      // [n, count]
struct Info { n: u32, count: u32, words: u32, pad0: u32 }
@group(0) @binding(3) var<uniform> info: Info;

@compute @workgroup_size(THREADS)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let token = id.x;
    let row = id.y;
    if (token >= info.count) { return; }
    let value = logits[row * info.count + token];
    let bit = (allowed[row * info.words + token / 32u] >> (token % 32u)) & 1u;
    masked[row * info.count + token] = select(LOWEST, value, bit == 1u || not_finite(value));
}

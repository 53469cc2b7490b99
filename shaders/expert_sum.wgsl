// x[i, :] += gains[i, 0] * y[i * k, :] + gains[i, 1] * y[i * k + 1, :] + …, always in this order.
// Constants: THREADS.
@group(0) @binding(0) var<storage, read_write> y: array<vec4<f32>>;      // [n * k, cols / 4]
@group(0) @binding(1) var<storage, read_write> gains: array<f32>;        // [n, k]
@group(0) @binding(2) var<storage, read_write> x: array<vec4<f32>>;      // [n, cols / 4]
struct Info { n: u32, k: u32, cols: u32, pad0: u32 }
@group(0) @binding(3) var<uniform> info: Info;

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let at = (group.y * groups.x + group.x) * THREADS + thread;
    let quads = info.cols / 4u;
    if (at >= info.n * quads) { return; }
    let row = at / quads;
    var sum = vec4<f32>(0.0);
    for (var j = 0u; j < info.k; j++) {
        let c = row * info.k + j;
        sum += gains[c] * y[c * quads + at % quads];
    }
    x[at] += sum;
}

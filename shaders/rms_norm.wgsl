// out[i, :] = v / sqrt(mean(v^2) + eps) * weight, v = x[first_row + i, :]. One workgroup for each row. Squares are
// summed in f32: a sum in f16 would overflow for activations of 256 and more.
// Constants: THREADS (a power of two).
@group(0) @binding(0) var<storage, read_write> x: array<f32>;         // [first_row + n, cols]
@group(0) @binding(1) var<storage, read_write> weight: array<f32>;    // [cols]
@group(0) @binding(2) var<storage, read_write> out: array<f32>;       // [n, cols]
struct Info { n: u32, cols: u32, eps: f32, first_row: u32 }
@group(0) @binding(3) var<uniform> info: Info;

var<workgroup> part: array<f32, THREADS>;

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let row = group.y * groups.x + group.x;
    let inside = row < info.n;
    let at = (info.first_row + row) * info.cols;
    var sum = 0.0;
    if (inside) {
        for (var c = thread; c < info.cols; c += THREADS) {
            let v = x[at + c];
            sum += v * v;
        }
    }
    part[thread] = sum;
    for (var half = THREADS / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if (thread < half) { part[thread] += part[thread + half]; }
    }
    workgroupBarrier();
    if (!inside) { return; }
    let scale = 1.0 / sqrt(part[0] / f32(info.cols) + info.eps);
    for (var c = thread; c < info.cols; c += THREADS) { out[row * info.cols + c] = x[at + c] * scale * weight[c]; }
}

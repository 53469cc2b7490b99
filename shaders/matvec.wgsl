// out[i, shard_first_row + r] = W[r, :] . x[i, :] + bias[shard_first_row + r] for N vectors x at once: decoding.
// LANES invocations share a row.
// MODE 0 stores; 1 adds to out (the residual stream); 2 takes rows in pairs, gate then up, and stores
// silu(gate) * up at out[i, (shard_first_row + r) / 2] (SwiGLU); 3 finds the gate in out and multiplies silu(gate) by
// the sum.
// Constants: THREADS, DTYPE, LANES (a power of two, <= THREADS), N, MODE, HAS_BIAS.
@group(0) @binding(0) var<storage, read_write> w: array<vec4<u32>>;      // [rows, row_words / 4]
@group(0) @binding(1) var<storage, read_write> x: array<vec4<f32>>;      // [n, cols / 4]
@group(0) @binding(2) var<storage, read_write> bias: array<f32>;         // [all rows of all shards], or one unused value
@group(0) @binding(3) var<storage, read_write> out: array<f32>;          // [n, out_stride]
struct Info { rows: u32, cols: u32, shard_first_row: u32, out_stride: u32 }
@group(0) @binding(4) var<uniform> info: Info;

// include weights.wgsl
// include dots.wgsl

const ROWS = THREADS / LANES;
var<workgroup> part: array<f32, THREADS * N>;

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let lane = thread % LANES;
    let row = (group.y * groups.x + group.x) * ROWS + thread / LANES;
    var acc: array<f32, N>;
    for (var i = 0u; i < N; i++) { acc[i] = 0.0; }
    if (row < info.rows) {
        let p = planes(info.cols);
        var vectors: array<u32, N>;
        for (var i = 0u; i < N; i++) { vectors[i] = i * (info.cols / 4u); }
        acc = dots(p, row * p.size, lane, vectors);
    }
    for (var i = 0u; i < N; i++) { part[i * THREADS + thread] = acc[i]; }
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if (lane < half) {
            for (var i = 0u; i < N; i++) { part[i * THREADS + thread] += part[i * THREADS + thread + half]; }
        }
    }
    workgroupBarrier();
    if (lane != 0u || row >= info.rows) { return; }
    let at = info.shard_first_row + row;
    for (var i = 0u; i < N; i++) {
        var y = part[i * THREADS + thread];
        if (HAS_BIAS != 0u) { y += bias[at]; }
        if (MODE == 0u) {
            out[i * info.out_stride + at] = y;
        } else if (MODE == 1u) {
            out[i * info.out_stride + at] += y;
        } else if (MODE == 3u) {
            out[i * info.out_stride + at] = silu(out[i * info.out_stride + at]) * y;
        } else if (row % 2u == 0u) {
            out[i * info.out_stride + at / 2u] = silu(y) * part[i * THREADS + thread + LANES];
        }
    }
}

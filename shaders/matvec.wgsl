// out[i, shard_first_row + r] = W[r, :] . x[i, :] + bias[shard_first_row + r] for N vectors x at once: decoding.
// LANES invocations share a row.
// With NORM 1, the vectors are v * gains / sqrt(mean(v^2) + eps) with v = x[first_row + i, :]. The root is the same
// for a whole vector, so the sum of a row is divided by it, and the gains are multiplied into the weights.
// MODE 0 stores; 1 adds to out (the residual stream); 2 takes rows in pairs, gate then up, and stores
// silu(gate) * up at out[i, (shard_first_row + r) / 2] (SwiGLU); 3 finds the gate in out and multiplies silu(gate) by
// the sum.
// Constants: THREADS, DTYPE, LANES (a power of two, <= THREADS), N, NORM, MODE, HAS_BIAS.
@group(0) @binding(0) var<storage, read_write> w: array<vec4<u32>>;      // [rows, row_words / 4]
@group(0) @binding(1) var<storage, read_write> x: array<vec4<f32>>;      // [first_row + n, cols / 4]
@group(0) @binding(2) var<storage, read_write> gains: array<vec4<f32>>;  // [cols / 4], or one unused value
@group(0) @binding(3) var<storage, read_write> bias: array<f32>;         // [all rows of all shards], or one unused value
@group(0) @binding(4) var<storage, read_write> out: array<f32>;          // [n, out_stride]
struct Info {
    rows: u32, cols: u32, shard_first_row: u32, out_stride: u32, first_row: u32, eps: f32, pad0: u32, pad1: u32,
}
@group(0) @binding(5) var<uniform> info: Info;

// include weights.wgsl
// include dots.wgsl

// The factors of the columns 4 at to 4 at + 3, if NORM is 1.
fn gain(at: u32) -> vec4<f32> { return gains[at]; }

const ROWS = THREADS / LANES;
// The shares in the products, then the shares in the sums of squares.
var<workgroup> part: array<f32, THREADS * N * (1u + NORM)>;
const SQUARES = THREADS * N;

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let lane = thread % LANES;
    let row = (group.y * groups.x + group.x) * ROWS + thread / LANES;
    var vectors: array<u32, N>;
    for (var i = 0u; i < N; i++) { vectors[i] = (info.first_row + i) * (info.cols / 4u); }
    var acc: array<f32, N>;
    for (var i = 0u; i < N; i++) { acc[i] = 0.0; }
    if (row < info.rows) {
        let p = planes(info.cols);
        acc = dots(p, row * p.size, lane, vectors);
    }
    for (var i = 0u; i < N; i++) { part[i * THREADS + thread] = acc[i]; }
    // Each workgroup sums the squares anew. All its invocations share them, in the same order for every N and LANES.
    if (NORM != 0u) {
        var squares: array<f32, N>;
        for (var i = 0u; i < N; i++) { squares[i] = 0.0; }
        for (var c = thread; c < info.cols / 4u; c += THREADS) {
            for (var i = 0u; i < N; i++) {
                let v = x[vectors[i] + c];
                squares[i] += dot(v, v);
            }
        }
        for (var i = 0u; i < N; i++) { part[SQUARES + i * THREADS + thread] = squares[i]; }
    }
    for (var half = select(LANES, THREADS, NORM != 0u) / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if (NORM != 0u && thread < half) {
            for (var i = 0u; i < N; i++) {
                part[SQUARES + i * THREADS + thread] += part[SQUARES + i * THREADS + thread + half];
            }
        }
        if (half < LANES && lane < half) {
            for (var i = 0u; i < N; i++) { part[i * THREADS + thread] += part[i * THREADS + thread + half]; }
        }
    }
    workgroupBarrier();
    if (lane != 0u || row >= info.rows) { return; }
    let at = info.shard_first_row + row;
    for (var i = 0u; i < N; i++) {
        var scale = 1.0;
        if (NORM != 0u) { scale = 1.0 / sqrt(part[SQUARES + i * THREADS] / f32(info.cols) + info.eps); }
        var y = part[i * THREADS + thread] * scale;
        if (HAS_BIAS != 0u) { y += bias[at]; }
        if (MODE == 0u) {
            out[i * info.out_stride + at] = y;
        } else if (MODE == 1u) {
            out[i * info.out_stride + at] += y;
        } else if (MODE == 3u) {
            out[i * info.out_stride + at] = silu(out[i * info.out_stride + at]) * y;
        } else if (row % 2u == 0u) {
            out[i * info.out_stride + at / 2u] = silu(y) * part[i * THREADS + thread + LANES] * scale;
        }
    }
}

// The tiling of matmul for adapters whose invocations are lanes of a CPU's vector unit (lavapipe, SwiftShader). There
// every load is a loop over the lanes, from any kind of memory, and costs as much as dozens of multiplications. So
// an invocation holds a large tile, EACH rows of W for TILE_N vectors x, in registers, and uses no workgroup memory.
// Contract and modes are those of matmul.
// Constants: THREADS, EACH (rows of an invocation, even), TILE_N (vectors of a workgroup), DTYPE, MODE, HAS_BIAS.
@group(0) @binding(0) var<storage, read_write> w: array<vec4<u32>>;      // [rows, row_words / 4]
@group(0) @binding(1) var<storage, read_write> x: array<vec4<f32>>;      // [n, cols / 4]
@group(0) @binding(2) var<storage, read_write> bias: array<f32>;         // [all rows of all shards], or one unused value
@group(0) @binding(3) var<storage, read_write> out: array<f32>;          // [n, out_stride]
struct Info { rows: u32, cols: u32, shard_first_row: u32, out_stride: u32, n: u32, pad0: u32, pad1: u32, pad2: u32 }
@group(0) @binding(4) var<uniform> info: Info;

// include weights.wgsl

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let row = (group.x * THREADS + thread) * EACH;
    let first_n = group.y * TILE_N;
    let p = planes(info.cols);
    let quads = info.cols / 4u;
    var acc: array<array<f32, EACH>, TILE_N>;
    for (var i = 0u; i < TILE_N; i++) {
        for (var r = 0u; r < EACH; r++) { acc[i][r] = 0.0; }
    }
    for (var q = 0u; q < quads; q += 2u) {
        // Rows and vectors are clamped, so that no load needs a branch. Results that are computed twice are not
        // stored.
        var a: array<vec4<f32>, EACH>;
        var b: array<vec4<f32>, EACH>;
        for (var r = 0u; r < EACH; r++) {
            let o = octet(p, min(row + r, info.rows - 1u) * p.size, 4u * q);
            a[r] = o.a;
            b[r] = o.b;
        }
        for (var i = 0u; i < TILE_N; i++) {
            let at = min(first_n + i, info.n - 1u) * quads + q;
            let low = x[at];
            let high = x[at + 1u];
            for (var r = 0u; r < EACH; r++) { acc[i][r] += dot(a[r], low) + dot(b[r], high); }
        }
    }
    for (var i = 0u; i < TILE_N; i++) {
        let line = (first_n + i) * info.out_stride;
        for (var r = 0u; r < EACH; r++) {
            if (first_n + i >= info.n || row + r >= info.rows) { continue; }
            let at = info.shard_first_row + row + r;
            var y = acc[i][r];
            if (HAS_BIAS != 0u) { y += bias[at]; }
            if (MODE == 0u) {
                out[line + at] = y;
            } else if (MODE == 1u) {
                out[line + at] += y;
            } else if (MODE == 3u) {
                out[line + at] = silu(out[line + at]) * y;
            } else if (r % 2u == 0u) {
                out[line + at / 2u] = silu(y) * acc[i][r + 1u];
            }
        }
    }
}

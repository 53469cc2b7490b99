// The tiling of experts for tiles, on adapters whose invocations are lanes of a CPU's vector unit. As in matmul_rows,
// an invocation holds EACH rows for the N choices of a tile in registers, and uses no workgroup memory.
// Contract and modes are those of experts.
// Constants: THREADS, EACH (rows of an invocation, even), DTYPE, N (choices of a tile), MODE.
@group(0) @binding(0) var<storage, read_write> w: array<vec4<u32>>;       // [experts of the shard, rows, row_words / 4]
@group(0) @binding(1) var<storage, read_write> x: array<vec4<f32>>;       // [choices / share, cols / 4]
@group(0) @binding(2) var<storage, read_write> tiles: array<u32>;         // [tiles, 1 + N]
@group(0) @binding(3) var<storage, read_write> out: array<f32>;           // [choices, out_stride]
struct Info { rows: u32, cols: u32, first_expert: u32, experts: u32, share: u32, out_stride: u32, pad0: u32, pad1: u32 }
@group(0) @binding(4) var<uniform> info: Info;

// include weights.wgsl

const NONE = 0xffffffffu;

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let row = (group.x * THREADS + thread) * EACH;
    let tile = group.z * (1u + N);
    // For an expert of another shard, and for NONE, the unsigned difference is too large.
    let expert = tiles[tile] - info.first_expert;
    if (expert >= info.experts) { return; }
    let p = planes(info.cols);
    let quads = info.cols / 4u;
    // Rows are clamped, and the first choice of a tile stands in for those that it lacks, so that no load needs a
    // branch. Results that are computed twice are not stored.
    var first: array<u32, N>;
    for (var i = 0u; i < N; i++) {
        let c = tiles[tile + 1u + i];
        first[i] = select(c, tiles[tile + 1u], c == NONE) / info.share * quads;
    }
    var acc: array<array<f32, EACH>, N>;
    for (var i = 0u; i < N; i++) {
        for (var r = 0u; r < EACH; r++) { acc[i][r] = 0.0; }
    }
    for (var q = 0u; q < quads; q += 2u) {
        var a: array<vec4<f32>, EACH>;
        var b: array<vec4<f32>, EACH>;
        for (var r = 0u; r < EACH; r++) {
            let o = octet(p, (expert * info.rows + min(row + r, info.rows - 1u)) * p.size, 4u * q);
            a[r] = o.a;
            b[r] = o.b;
        }
        for (var i = 0u; i < N; i++) {
            let low = x[first[i] + q];
            let high = x[first[i] + q + 1u];
            for (var r = 0u; r < EACH; r++) { acc[i][r] += dot(a[r], low) + dot(b[r], high); }
        }
    }
    for (var i = 0u; i < N; i++) {
        let c = tiles[tile + 1u + i];
        let line = c * info.out_stride;
        for (var r = 0u; r < EACH; r++) {
            if (c == NONE || row + r >= info.rows) { continue; }
            if (MODE == 0u) {
                out[line + row + r] = acc[i][r];
            } else if (MODE == 3u) {
                out[line + row + r] = silu(out[line + row + r]) * acc[i][r];
            } else if (r % 2u == 0u) {
                out[line + (row + r) / 2u] = silu(acc[i][r]) * acc[i][r + 1u];
            }
        }
    }
}

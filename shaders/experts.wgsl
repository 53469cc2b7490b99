// out[c, r] = W[expert of choice c, r, :] . x[c / share, :] for the choices of rows: only the chosen experts are
// read. With TILED 0 a workgroup takes one choice, and `tiles` is the list of the choices' experts; with TILED 1 it
// takes a tile of expert_tiles, N choices of one expert. A choice whose expert is not in this shard is left alone.
// MODE 0 stores; 2 takes rows in pairs, gate then up, and stores silu(gate) * up at out[c, r / 2] (SwiGLU); 3 finds
// the gate in out and multiplies silu(gate) by the product.
// Constants: THREADS, DTYPE, LANES (a power of two, < THREADS), N (1 if TILED is 0), TILED, MODE.
@group(0) @binding(0) var<storage, read_write> w: array<vec4<u32>>;       // [experts of the shard, rows, row_words / 4]
@group(0) @binding(1) var<storage, read_write> x: array<vec4<f32>>;       // [choices / share, cols / 4]
@group(0) @binding(2) var<storage, read_write> tiles: array<u32>;         // [tiles, 1 + N] or [choices]
@group(0) @binding(3) var<storage, read_write> out: array<f32>;           // [choices, out_stride]
struct Info { rows: u32, cols: u32, first_expert: u32, experts: u32, share: u32, out_stride: u32, pad0: u32, pad1: u32 }
@group(0) @binding(4) var<uniform> info: Info;

// include weights.wgsl
// include dots.wgsl

// The vectors are normalised already: the router reads the same.
const NORM = 0u;
fn gain(at: u32) -> vec4<f32> { return vec4<f32>(1.0); }

const NONE = 0xffffffffu;
const ROWS = THREADS / LANES;
var<workgroup> part: array<f32, THREADS * N>;

// Choice `i` of a tile, or NONE.
fn choice(tile: u32, i: u32) -> u32 {
    if (TILED == 0u) { return tile; }
    return tiles[tile * (1u + N) + 1u + i];
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let lane = thread % LANES;
    let row = (group.y * groups.x + group.x) * ROWS + thread / LANES;
    let tile = group.z;
    // For an expert of another shard, and for NONE, the unsigned difference is too large.
    let expert = tiles[select(tile, tile * (1u + N), TILED == 1u)] - info.first_expert;
    let inside = row < info.rows && expert < info.experts;
    var acc: array<f32, N>;
    for (var i = 0u; i < N; i++) { acc[i] = 0.0; }
    if (inside) {
        let p = planes(info.cols);
        var vectors: array<u32, N>;
        for (var i = 0u; i < N; i++) {
            let c = choice(tile, i);
            vectors[i] = select(c / info.share, 0u, c == NONE) * (info.cols / 4u);
        }
        acc = dots(p, (expert * info.rows + row) * p.size, lane, vectors);
    }
    for (var i = 0u; i < N; i++) { part[i * THREADS + thread] = acc[i]; }
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if (lane < half) {
            for (var i = 0u; i < N; i++) { part[i * THREADS + thread] += part[i * THREADS + thread + half]; }
        }
    }
    workgroupBarrier();
    if (lane != 0u || !inside) { return; }
    for (var i = 0u; i < N; i++) {
        let c = choice(tile, i);
        if (c == NONE) { continue; }
        let line = c * info.out_stride;
        let y = part[i * THREADS + thread];
        if (MODE == 0u) {
            out[line + row] = y;
        } else if (MODE == 3u) {
            out[line + row] = silu(out[line + row]) * y;
        } else if (row % 2u == 0u) {
            out[line + row / 2u] = silu(y) * part[i * THREADS + thread + LANES];
        }
    }
}

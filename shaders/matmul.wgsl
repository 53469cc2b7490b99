// out[i, shard_first_row + r] = W[r, :] . x[i, :] + bias[shard_first_row + r] for many x: prefill and probe chunks.
// Weights, modes and contract are those of matvec. A workgroup computes TILE_ROWS rows of W for TILE_N vectors x,
// DEPTH columns at a time, from workgroup memory. An invocation computes four rows and eight vectors. With several
// SLICES it sums only its share of the columns:
// few vectors make few tiles, and slices keep the GPU busy all the same.
// The accumulators are variables, not an array: an array in a loop that a compiler does not unroll would live in
// memory.
// Constants: THREADS (TILE_ROWS / 4 * TILE_N / 8 * SLICES), TILE_ROWS, TILE_N, DEPTH (a multiple of 8 SLICES; with
// several slices >= TILE_N), SLICES, DTYPE, MODE, HAS_BIAS.
@group(0) @binding(0) var<storage, read_write> w: array<vec4<u32>>;      // [rows, row_words / 4]
@group(0) @binding(1) var<storage, read_write> x: array<vec4<f32>>;      // [n, cols / 4]
@group(0) @binding(2) var<storage, read_write> bias: array<f32>;         // [all rows of all shards], or one unused value
@group(0) @binding(3) var<storage, read_write> out: array<f32>;          // [n, out_stride]
struct Info { rows: u32, cols: u32, shard_first_row: u32, out_stride: u32, n: u32, pad0: u32, pad1: u32, pad2: u32 }
@group(0) @binding(4) var<uniform> info: Info;

const ROW_QUADS = TILE_ROWS / 4u;
const N_QUADS = TILE_N / 4u;
const PLANE = ROW_QUADS * TILE_N / 8u;   // invocations of a slice
const SLICE = DEPTH / SLICES;            // columns of a tile that belong to one slice
var<workgroup> ws: array<vec4<f32>, DEPTH * ROW_QUADS>;   // [DEPTH, ROW_QUADS], four rows each
var<workgroup> xs: array<vec4<f32>, DEPTH * N_QUADS>;     // [DEPTH, N_QUADS], four vectors each

// include weights.wgsl

// Columns k to k + 7 of a row, zeros outside the matrix.
fn row_octet(p: Planes, row: u32, k: u32) -> Octet {
    if (row >= info.rows || k >= info.cols) { return Octet(vec4<f32>(0.0), vec4<f32>(0.0)); }
    return octet(p, row * p.size, k);
}

// Columns k to k + 3 of a vector, zeros outside.
fn quad(i: u32, k: u32) -> vec4<f32> {
    if (i >= info.n || k >= info.cols) { return vec4<f32>(0.0); }
    return x[(i * info.cols + k) / 4u];
}

fn store(i: u32, row: u32, sums: vec4<f32>) {
    if (i >= info.n) { return; }
    let line = i * info.out_stride;
    let at = info.shard_first_row + row;
    if (MODE == 2u) {
        if (row < info.rows) { out[line + at / 2u] = silu(sums.x) * sums.y; }
        if (row + 2u < info.rows) { out[line + at / 2u + 1u] = silu(sums.z) * sums.w; }
        return;
    }
    put(line, at, row, sums.x);
    put(line, at + 1u, row + 1u, sums.y);
    put(line, at + 2u, row + 2u, sums.z);
    put(line, at + 3u, row + 3u, sums.w);
}

fn put(line: u32, at: u32, row: u32, sum: f32) {
    if (row >= info.rows) { return; }
    var y = sum;
    if (HAS_BIAS != 0u) { y += bias[at]; }
    if (MODE == 1u) { y += out[line + at]; }
    if (MODE == 3u) { y *= silu(out[line + at]); }
    out[line + at] = y;
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let p = planes(info.cols);
    let first_row = group.x * TILE_ROWS;
    let first_n = group.y * TILE_N;
    let place = thread % PLANE;
    let slice = thread / PLANE;
    let tr = place % ROW_QUADS;
    let tn = 2u * (place / ROW_QUADS);
    var s0 = vec4<f32>(0.0);
    var s1 = vec4<f32>(0.0);
    var s2 = vec4<f32>(0.0);
    var s3 = vec4<f32>(0.0);
    var s4 = vec4<f32>(0.0);
    var s5 = vec4<f32>(0.0);
    var s6 = vec4<f32>(0.0);
    var s7 = vec4<f32>(0.0);
    for (var k0 = 0u; k0 < info.cols; k0 += DEPTH) {
        for (var step = thread; step < ROW_QUADS * DEPTH / 8u; step += THREADS) {
            let r = step % ROW_QUADS;
            let k = (step / ROW_QUADS) * 8u;
            let row = first_row + 4u * r;
            let e = row_octet(p, row, k0 + k);
            let f = row_octet(p, row + 1u, k0 + k);
            let g = row_octet(p, row + 2u, k0 + k);
            let h = row_octet(p, row + 3u, k0 + k);
            let at = k * ROW_QUADS + r;
            ws[at] = vec4<f32>(e.a.x, f.a.x, g.a.x, h.a.x);
            ws[at + ROW_QUADS] = vec4<f32>(e.a.y, f.a.y, g.a.y, h.a.y);
            ws[at + 2u * ROW_QUADS] = vec4<f32>(e.a.z, f.a.z, g.a.z, h.a.z);
            ws[at + 3u * ROW_QUADS] = vec4<f32>(e.a.w, f.a.w, g.a.w, h.a.w);
            ws[at + 4u * ROW_QUADS] = vec4<f32>(e.b.x, f.b.x, g.b.x, h.b.x);
            ws[at + 5u * ROW_QUADS] = vec4<f32>(e.b.y, f.b.y, g.b.y, h.b.y);
            ws[at + 6u * ROW_QUADS] = vec4<f32>(e.b.z, f.b.z, g.b.z, h.b.z);
            ws[at + 7u * ROW_QUADS] = vec4<f32>(e.b.w, f.b.w, g.b.w, h.b.w);
        }
        for (var step = thread; step < N_QUADS * DEPTH / 4u; step += THREADS) {
            let i = step % N_QUADS;
            let k = (step / N_QUADS) * 4u;
            let vector = first_n + 4u * i;
            let e = quad(vector, k0 + k);
            let f = quad(vector + 1u, k0 + k);
            let g = quad(vector + 2u, k0 + k);
            let h = quad(vector + 3u, k0 + k);
            let at = k * N_QUADS + i;
            xs[at] = vec4<f32>(e.x, f.x, g.x, h.x);
            xs[at + N_QUADS] = vec4<f32>(e.y, f.y, g.y, h.y);
            xs[at + 2u * N_QUADS] = vec4<f32>(e.z, f.z, g.z, h.z);
            xs[at + 3u * N_QUADS] = vec4<f32>(e.w, f.w, g.w, h.w);
        }
        workgroupBarrier();
        for (var k = 0u; k < SLICE; k++) {
            let column = slice * SLICE + k;
            let rows = ws[column * ROW_QUADS + tr];
            let low = xs[column * N_QUADS + tn];
            let high = xs[column * N_QUADS + tn + 1u];
            s0 += rows * low.x;
            s1 += rows * low.y;
            s2 += rows * low.z;
            s3 += rows * low.w;
            s4 += rows * high.x;
            s5 += rows * high.y;
            s6 += rows * high.z;
            s7 += rows * high.w;
        }
        workgroupBarrier();
    }
    // Adds the slices one after the other, in workgroup memory that the tiles no longer need.
    for (var other = 1u; other < SLICES; other++) {
        let at = place * 8u;
        if (slice == other) {
            ws[at] = s0;
            ws[at + 1u] = s1;
            ws[at + 2u] = s2;
            ws[at + 3u] = s3;
            ws[at + 4u] = s4;
            ws[at + 5u] = s5;
            ws[at + 6u] = s6;
            ws[at + 7u] = s7;
        }
        workgroupBarrier();
        if (slice == 0u) {
            s0 += ws[at];
            s1 += ws[at + 1u];
            s2 += ws[at + 2u];
            s3 += ws[at + 3u];
            s4 += ws[at + 4u];
            s5 += ws[at + 5u];
            s6 += ws[at + 6u];
            s7 += ws[at + 7u];
        }
        workgroupBarrier();
    }
    if (slice != 0u) { return; }
    let row = first_row + 4u * tr;
    let i = first_n + 4u * tn;
    store(i, row, s0);
    store(i + 1u, row, s1);
    store(i + 2u, row, s2);
    store(i + 3u, row, s3);
    store(i + 4u, row, s4);
    store(i + 5u, row, s5);
    store(i + 6u, row, s6);
    store(i + 7u, row, s7);
}

// out[i, row0 + r] = W[r, :] . x[i, :] + bias[row0 + r] for many x: prefill and probe chunks. The same weights, modes and
// meaning as matvec. A workgroup computes TILE_ROWS rows of W for TILE_N vectors x; an invocation 4 x 4 of them.
// Constants: THREADS (TILE_ROWS / 4 * TILE_N / 4), TILE_ROWS, TILE_N, DTYPE, MODE, HAS_BIAS.
@group(0) @binding(0) var<storage, read_write> w: array<vec4<u32>>;      // [rows, row_words / 4]
@group(0) @binding(1) var<storage, read_write> x: array<vec4<f32>>;      // [n, cols / 4]
@group(0) @binding(2) var<storage, read_write> bias: array<f32>;         // [all rows of all shards], or one unused value
@group(0) @binding(3) var<storage, read_write> out: array<f32>;          // [n, out_stride]
struct Info { rows: u32, cols: u32, row0: u32, out_stride: u32, n: u32, pad0: u32, pad1: u32, pad2: u32 }
@group(0) @binding(4) var<uniform> info: Info;

const TILE_K = 32u;
var<workgroup> ws: array<f32, TILE_K * TILE_ROWS>;    // [TILE_K, TILE_ROWS]
var<workgroup> xs: array<f32, TILE_K * TILE_N>;    // [TILE_K, TILE_N]

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let first_row = group.x * TILE_ROWS;
    let first_n = group.y * TILE_N;
    let tr = (thread % (TILE_ROWS / 4u)) * 4u;
    let tn = (thread / (TILE_ROWS / 4u)) * 4u;
    var acc: array<vec4<f32>, 4>;
    for (var j = 0u; j < 4u; j++) { acc[j] = vec4<f32>(0.0); }
    for (var k0 = 0u; k0 < info.cols; k0 += TILE_K) {
        // 8 values a step: two f32 quads or one f16/bf16 quad of words.
        for (var step = thread; step < TILE_ROWS * TILE_K / 8u; step += THREADS) {
            let r = step % TILE_ROWS;
            let k = (step / TILE_ROWS) * 8u;
            var a = vec4<f32>(0.0);
            var b = vec4<f32>(0.0);
            if (first_row + r < info.rows && k0 + k < info.cols) {
                if (DTYPE == F32) {
                    let at = ((first_row + r) * info.cols + k0 + k) / 4u;
                    a = bitcast<vec4<f32>>(w[at]);
                    if (k0 + k + 4u < info.cols) { b = bitcast<vec4<f32>>(w[at + 1u]); }
                } else if (DTYPE == Q8_0 || DTYPE == Q4_0) {
                    let blocks = info.cols / BLOCK;
                    let quads = select(blocks, 2u * blocks, DTYPE == Q8_0);
                    let first = (first_row + r) * (quads + (blocks + 7u) / 8u);
                    let block = (k0 + k) / BLOCK;
                    let scale = block_scale(w[first + quads + block / 8u][(block / 2u) % 4u], block);
                    if (DTYPE == Q8_0) {
                        let words = w[first + (k0 + k) / 16u];
                        let pair = select(words.xy, words.zw, (k & 8u) != 0u);
                        a = scale * unpack_bytes(pair.x);
                        b = scale * unpack_bytes(pair.y);
                    } else {
                        let word = w[first + block][(k % BLOCK) / 8u];
                        a = scale * unpack_nibbles(word);
                        b = scale * unpack_nibbles(word >> 4u);
                    }
                } else {
                    let words = w[((first_row + r) * info.cols + k0 + k) / 8u];
                    a = vec4<f32>(unpack_pair(words.x, DTYPE), unpack_pair(words.y, DTYPE));
                    b = vec4<f32>(unpack_pair(words.z, DTYPE), unpack_pair(words.w, DTYPE));
                }
            }
            for (var j = 0u; j < 4u; j++) {
                ws[(k + j) * TILE_ROWS + r] = a[j];
                ws[(k + 4u + j) * TILE_ROWS + r] = b[j];
            }
        }
        for (var step = thread; step < TILE_N * TILE_K / 4u; step += THREADS) {
            let i = step % TILE_N;
            let k = (step / TILE_N) * 4u;
            var v = vec4<f32>(0.0);
            if (first_n + i < info.n && k0 + k < info.cols) { v = x[((first_n + i) * info.cols + k0 + k) / 4u]; }
            for (var j = 0u; j < 4u; j++) { xs[(k + j) * TILE_N + i] = v[j]; }
        }
        workgroupBarrier();
        for (var k = 0u; k < TILE_K; k++) {
            let at = k * TILE_ROWS + tr;
            let rows = vec4<f32>(ws[at], ws[at + 1u], ws[at + 2u], ws[at + 3u]);
            let column = k * TILE_N + tn;
            acc[0] += rows * xs[column];
            acc[1] += rows * xs[column + 1u];
            acc[2] += rows * xs[column + 2u];
            acc[3] += rows * xs[column + 3u];
        }
        workgroupBarrier();
    }
    for (var i = 0u; i < 4u; i++) {
        if (first_n + tn + i >= info.n) { continue; }
        let line = (first_n + tn + i) * info.out_stride;
        for (var j = 0u; j < 4u; j++) {
            let row = first_row + tr + j;
            if (row >= info.rows) { continue; }
            let at = info.row0 + row;
            var y = acc[i][j];
            if (HAS_BIAS != 0u) { y += bias[at]; }
            if (MODE == 0u) {
                out[line + at] = y;
            } else if (MODE == 1u) {
                out[line + at] += y;
            } else if (row % 2u == 0u) {
                out[line + at / 2u] = silu(y) * acc[i][(j + 1u) % 4u];
            }
        }
    }
}

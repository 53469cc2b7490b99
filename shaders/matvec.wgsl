// out[i, shard_first_row + r] = W[r, :] . x[i, :] + bias[shard_first_row + r] for N vectors x at once: decoding.
// LANES invocations share a row.
// MODE 0 stores; 1 adds to out (the residual stream); 2 takes rows in pairs, gate then up, and stores
// silu(gate) * up at out[i, (shard_first_row + r) / 2] (SwiGLU).
// Constants: THREADS, DTYPE, LANES (a power of two, <= THREADS), N, MODE, HAS_BIAS.
@group(0) @binding(0) var<storage, read_write> w: array<vec4<u32>>;      // [rows, row_words / 4]
@group(0) @binding(1) var<storage, read_write> x: array<vec4<f32>>;      // [n, cols / 4]
@group(0) @binding(2) var<storage, read_write> bias: array<f32>;         // [all rows of all shards], or one unused value
@group(0) @binding(3) var<storage, read_write> out: array<f32>;          // [n, out_stride]
struct Info { rows: u32, cols: u32, shard_first_row: u32, out_stride: u32 }
@group(0) @binding(4) var<uniform> info: Info;

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
        let xs = info.cols / 4u;
        if (DTYPE == F32) {
            let quads = info.cols / 4u;
            for (var q = lane; q < quads; q += LANES) {
                let v = bitcast<vec4<f32>>(w[row * quads + q]);
                for (var i = 0u; i < N; i++) { acc[i] += dot(v, x[i * xs + q]); }
            }
        } else if (DTYPE == Q8_0 || DTYPE == Q4_0) {
            // A step takes a block of 32 columns: two vec4s of bytes or one of nibbles, and one scale.
            let blocks = info.cols / BLOCK;
            let quads = select(blocks, 2u * blocks, DTYPE == Q8_0);
            let first = row * (quads + (blocks + 7u) / 8u);
            for (var b = lane; b < blocks; b += LANES) {
                let scale = block_scale(w[first + quads + b / 8u][(b / 2u) % 4u], b);
                // Unpacked once for all vectors.
                var v: array<vec4<f32>, 8>;
                if (DTYPE == Q8_0) {
                    let low = w[first + 2u * b];
                    let high = w[first + 2u * b + 1u];
                    v[0] = unpack_bytes(low.x);
                    v[1] = unpack_bytes(low.y);
                    v[2] = unpack_bytes(low.z);
                    v[3] = unpack_bytes(low.w);
                    v[4] = unpack_bytes(high.x);
                    v[5] = unpack_bytes(high.y);
                    v[6] = unpack_bytes(high.z);
                    v[7] = unpack_bytes(high.w);
                } else {
                    let words = w[first + b];
                    v[0] = unpack_nibbles(words.x);
                    v[1] = unpack_nibbles(words.x >> 4u);
                    v[2] = unpack_nibbles(words.y);
                    v[3] = unpack_nibbles(words.y >> 4u);
                    v[4] = unpack_nibbles(words.z);
                    v[5] = unpack_nibbles(words.z >> 4u);
                    v[6] = unpack_nibbles(words.w);
                    v[7] = unpack_nibbles(words.w >> 4u);
                }
                for (var i = 0u; i < N; i++) {
                    let at = i * xs + 8u * b;
                    let low = dot(v[0], x[at]) + dot(v[1], x[at + 1u]) + dot(v[2], x[at + 2u]) + dot(v[3], x[at + 3u]);
                    let high = dot(v[4], x[at + 4u]) + dot(v[5], x[at + 5u]) + dot(v[6], x[at + 6u]) + dot(v[7], x[at + 7u]);
                    acc[i] += scale * (low + high);
                }
            }
        } else {
            let quads = info.cols / 8u;
            for (var q = lane; q < quads; q += LANES) {
                let words = w[row * quads + q];
                let a = vec4<f32>(unpack_pair(words.x, DTYPE), unpack_pair(words.y, DTYPE));
                let b = vec4<f32>(unpack_pair(words.z, DTYPE), unpack_pair(words.w, DTYPE));
                for (var i = 0u; i < N; i++) {
                    acc[i] += dot(a, x[i * xs + 2u * q]) + dot(b, x[i * xs + 2u * q + 1u]);
                }
            }
        }
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
        } else if (row % 2u == 0u) {
            out[i * info.out_stride + at / 2u] = silu(y) * part[i * THREADS + thread + LANES];
        }
    }
}

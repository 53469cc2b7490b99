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

const ROWS = THREADS / LANES;
var<workgroup> part: array<f32, THREADS * N>;

// The word of the low plane with four `t` of a block, of the vec4 (or two) that holds the block.
fn low_word(low: vec4<u32>, low_next: vec4<u32>, t: u32) -> u32 {
    if (LOW_BITS == 8u && t >= 4u) { return low_next[t % 4u]; }
    return low[(t / LOW_FOURS) % 4u];
}

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
        let start = row * p.size;
        let xs = info.cols / 4u;
        // only plain weights
        if (!QUANTIZED) {
            for (var k = 8u * lane; k < info.cols; k += 8u * LANES) {
                let o = octet(p, start, k);
                for (var i = 0u; i < N; i++) {
                    acc[i] += dot(o.a, x[i * xs + k / 4u]) + dot(o.b, x[i * xs + k / 4u + 1u]);
                }
            }
        }
        // end
        // only quantized weights
        if (QUANTIZED) {
            // A step takes a block of 32 columns, whose quants are unpacked once for all vectors.
            for (var b = lane; b < info.cols / 32u; b += LANES) {
                let s = block_scales(p, start, b);
                var low = w[start + b * LOW_BITS / 4u];
                var low_next = low;
                if (LOW_BITS == 8u) { low_next = w[start + 2u * b + 1u]; }
                if (LOW_BITS == 2u && (b & 1u) != 0u) { low = low.zwzw; }
                var high = vec2<u32>(0u);
                if (HIGH_BITS == 1u) { high = vec2<u32>(word_at(start + p.high, b)); }
                if (HIGH_BITS == 2u) {
                    let both = w[start + p.high + b / 2u];
                    high = select(both.xy, both.zw, (b & 1u) != 0u);
                }
                var v: array<vec4<f32>, 8>;
                v[0] = quants(low_word(low, low_next, 0u), high.x, 0u);
                v[1] = quants(low_word(low, low_next, 1u), high.x, 1u);
                v[2] = quants(low_word(low, low_next, 2u), high.x, 2u);
                v[3] = quants(low_word(low, low_next, 3u), high.x, 3u);
                v[4] = quants(low_word(low, low_next, 4u), high.y, 4u);
                v[5] = quants(low_word(low, low_next, 5u), high.y, 5u);
                v[6] = quants(low_word(low, low_next, 6u), high.y, 6u);
                v[7] = quants(low_word(low, low_next, 7u), high.y, 7u);
                if (HAS_MINIMUM) {
                    for (var j = 0u; j < 4u; j++) {
                        v[j] = s.scale.x * v[j] + s.plus.x;
                        v[j + 4u] = s.scale.y * v[j + 4u] + s.plus.y;
                    }
                }
                for (var i = 0u; i < N; i++) {
                    let at = i * xs + 8u * b;
                    let first = dot(v[0], x[at]) + dot(v[1], x[at + 1u]) + dot(v[2], x[at + 2u]) + dot(v[3], x[at + 3u]);
                    let second = dot(v[4], x[at + 4u]) + dot(v[5], x[at + 5u]) + dot(v[6], x[at + 6u]) + dot(v[7], x[at + 7u]);
                    if (HAS_MINIMUM) {
                        acc[i] += first + second;
                    } else if (SHARE == 32u) {
                        acc[i] += s.scale.x * (first + second);
                    } else {
                        acc[i] += s.scale.x * first + s.scale.y * second;
                    }
                }
            }
        }
        // end
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
